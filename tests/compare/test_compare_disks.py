"""A comparison whose disk is full or read-only ends in a sentence, and goes on once it can write."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _contest import contest, recipe

from secateur import _files
from secateur.compare.cells import Cell
from secateur.compare.record import Comparison, working
from secateur.errors import ConfigError, RunError

CELL = Cell.parse("scratch", 0, "flops=0.6")
REFUSED = [errno.ENOSPC, errno.EROFS, errno.EACCES]


def begin(folder: Path) -> None:
    comparison = Comparison.open(folder, recipe(), {})
    with working(folder):
        comparison.begin([CELL], {"macs": 1}, {"command": ""})
        comparison.failed(CELL, "It failed.")
        comparison.forget(CELL)


def refusing(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("file", ["comparison.json", f"{CELL.name}.json"])
def test_a_file_that_cannot_be_written(file: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = _files._replace

    def replace(path: Path, data: bytes) -> None:
        if path.name == file:
            raise refusing(number)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "_replace", replace)
        with pytest.raises(RunError, match=r"cannot continue .*start the same again") as caught:
            begin(tmp_path / "a")
    assert os.strerror(number) in str(caught.value)
    assert "\n" not in str(caught.value)
    begin(tmp_path / "a")
    assert Comparison.open(tmp_path / "a", recipe(), {}).cells == [CELL]


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("call", ["mkdir", "unlink"])
def test_a_room_that_cannot_be_changed(call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path / "a")
    do, room = getattr(Path, call), tmp_path / "a" / "failed"

    def refuse(path: Path, *given: object, **options: object) -> None:
        if path.is_relative_to(room):
            raise refusing(number)
        do(path, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refuse)
        with pytest.raises(RunError, match="start the same again") as caught:
            begin(tmp_path / "a")
    assert os.strerror(number) in str(caught.value)


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize(("call", "said"), [("mkdir", "cannot be made"), ("iterdir", "cannot be read .*another --out")])
def test_a_folder_that_is_refused(
    call: str, said: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise refusing(number)

    (tmp_path / "a").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refuse)
        with pytest.raises(RunError, match=said):
            begin(tmp_path / "a")


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path) -> None:
    def work() -> None:
        with working(tmp_path / "a"):
            shutil.rmtree(tmp_path / "a")
            _files.write_json(tmp_path / "a" / "comparison.json", {})

    with pytest.raises(RunError, match="was moved or removed"):
        work()


@pytest.mark.parametrize("problem", [ConfigError("No method."), BrokenPipeError(), ValueError("a defect")])
def test_what_is_no_matter_of_the_disk_is_told_as_it_is(problem: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(problem)) as caught, working(tmp_path / "a"):
        raise problem
    assert caught.value is problem


def test_a_leaderboard_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = _files._replace

    def replace(path: Path, data: bytes) -> None:
        if path.name == "leaderboard.json":
            raise refusing(errno.ENOSPC)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "_replace", replace)
        with pytest.raises(RunError, match=r"No space left .*start the same again"):
            contest(tmp_path / "a", "scratch")
    assert len(contest(tmp_path / "a", "scratch").document["rows"]) == 1
