"""A search whose record cannot be written ends in a sentence, and goes on once it can."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from secateur.compress.record import Record
from secateur.errors import RunError


def disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def file() -> None:
    try:
        disk()
    except OSError as problem:
        raise RunError("The weights cannot be written: No space left on device.") from problem


def database() -> None:
    raise OperationalError("INSERT ...", {}, Exception("attempt to write a readonly database"))


def storage() -> None:
    try:
        database()
    except OperationalError as problem:
        raise StorageInternalError("An exception is raised during the commit.") from problem


@pytest.mark.parametrize("failing", [disk, file, database, storage])
def test_what_refuses_is_named_with_how_to_go_on(failing: Callable[[], None], tmp_path: Path) -> None:
    record = Record(tmp_path, 0)
    with pytest.raises(RunError, match=r"(No space left|readonly).*goes on from there") as caught, record.at_work():
        failing()
    assert "\n" not in str(caught.value)


def test_what_is_no_matter_of_the_disk_is_told_as_it_is(tmp_path: Path) -> None:
    for folder in (tmp_path, None):
        with pytest.raises(RunError, match=r"^Something else\.$"), Record(folder, 0).at_work():
            raise RunError("Something else.")


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_a_database_that_is_full_keeps_what_it_had(key: str, tmp_path: Path) -> None:
    record = Record(tmp_path, 0)
    assert record.decide(key, lambda: 1) == 1
    engine = record._storage._backend.engine

    @event.listens_for(engine, "connect")
    def limited(connection: object, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]

    engine.dispose()
    with pytest.raises(RunError, match="full"), record.at_work():
        record.decide("another", lambda: "x" * 100_000)
    engine.dispose()
    again = Record(tmp_path, 0)
    assert again.decision(key) == 1
    assert again.decide("another", lambda: 2) == 2
