"""Disks that fill up or refuse, folders that go away, changes that are refused: a sentence, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _small import outcome, recipe

from secateur import _files, runs
from secateur.cli import app
from secateur.errors import ConfigError, RunError, SecateurError
from secateur.recipe import Recipe
from secateur.runs import exporting
from secateur.runs.folder import Folder
from secateur.runs.stages import Stages
from secateur.training import Silent, checkpoints

SHORT = ("train.epochs=1", "finetune=null", "export.pt2=true")


def refusing(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def no_file(name: str, number: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Every attempt to write this file fails."""

    def arrange(patch: pytest.MonkeyPatch) -> None:
        original = _files._replace

        def replace(path: Path, data: bytes) -> None:
            if path.name == name:
                raise refusing(number)
            original(path, data)

        patch.setattr(_files, "_replace", replace)

    return arrange


def no_tensors(patch: pytest.MonkeyPatch) -> None:
    def save(*_: Any) -> None:
        raise refusing(errno.ENOSPC)

    patch.setattr(checkpoints, "save_file", save)


def no_line(patch: pytest.MonkeyPatch) -> None:
    """Only a part of a line of the metrics has reached the disk when it is full."""
    original = Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        if mode == "ab":
            with original(self, "ab") as file:
                file.write(b'{"stage": "tr')
            raise refusing(errno.ENOSPC)
        return original(self, mode, *args, **keywords)

    patch.setattr(Path, "open", opened)


PLACES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a checkpoint": no_tensors,
    "a checkpoint's folder": lambda patch: patch.setattr(checkpoints, "_sync", _raise(errno.EIO)),
    "a line of the metrics": no_line,
    "the state": no_file("state.json", errno.EDQUOT),
    "the plan": no_file("plan.json", errno.ENOSPC),
    "the weights": no_file("model.safetensors", errno.EROFS),
    "an export": no_file("model.pt2", errno.ENOSPC),
    "the results": no_file("results.json", errno.EIO),
    "the report": no_file("report.html", errno.ENOSPC),
}


def _raise(number: int) -> Callable[..., None]:
    def refused(*_: Any) -> None:
        raise refusing(number)

    return refused


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.start(recipe(*SHORT), folder)
    return outcome(folder)


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_a_disk_that_refuses_ends_in_a_sentence_and_costs_no_bit(
    place: str,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, file = tmp_path / "run", tmp_path / "recipe.yaml"
    file.write_text(recipe(*SHORT).to_yaml())
    begun = ["run", str(file), "--out", str(folder)]
    if place == "the state":  # which is there from the beginning
        Folder.create(folder, recipe(*SHORT))
        begun = ["run", "--resume", str(folder)]
    for arguments in (begun, ["run", "--resume", str(folder)]):
        with monkeypatch.context() as patch:
            PLACES[place](patch)
            code = app([*arguments, "-q"], standalone_mode=False)
        told = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        assert len(told) == 1, told
        assert f"--resume {folder}" in told[0], told
        assert not list(folder.rglob("*.tmp"))
    runs.resume(folder)
    assert outcome(folder) == whole


# -------------------------------------------------------------------------------------------- folders that go away


class Removing(Silent):
    """Takes the folder away when an epoch has ended."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work

    def epoch(self, row: Any) -> None:
        self.work()


def before(stage: str, work: Callable[[], Any], patch: pytest.MonkeyPatch) -> None:
    original = Stages.run

    def run(self: Stages, name: str) -> None:
        if name == stage:
            work()
        original(self, name)

    patch.setattr(Stages, "run", run)


@pytest.mark.long
@pytest.mark.parametrize("when", ["in training", "prune", "export"])
def test_a_folder_that_is_removed_is_missed_and_not_made_again(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def work() -> None:
        shutil.rmtree(folder)

    if when != "in training":
        before(when, work, monkeypatch)
    with pytest.raises(RunError, match="moved or removed while the run was at work"):
        runs.start(recipe(*SHORT, "train.epochs=2"), folder, progress=Removing(work) if when == "in training" else None)
    assert not folder.exists()


@pytest.mark.long
@pytest.mark.parametrize("when", ["prune", "export", "in training"])
def test_a_folder_that_is_moved_goes_on_where_it_is(
    when: str, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"

    def work() -> None:
        folder.rename(other)

    with monkeypatch.context() as patch:
        if when != "in training":
            before(when, work, patch)
        with pytest.raises(RunError, match="moved or removed"):
            runs.start(recipe(*SHORT), folder, progress=Removing(work) if when == "in training" else None)
    assert not folder.exists()
    runs.resume(other)
    assert outcome(other) == whole


# ------------------------------------------------------------------------------------------ no place to try exports


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT])
def test_exports_that_cannot_be_tried_beforehand_end_no_run(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    prepared = runs.prepare(recipe(*SHORT))
    monkeypatch.setattr(tempfile, "TemporaryDirectory", _raise(number))
    exporting.try_exports(prepared, lambda sentence, note: said.append(sentence))
    assert len(said) == 1
    assert "Exports were not tried before training" in said[0]


def test_a_full_disk_is_not_taken_for_a_network_that_cannot_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    no_file("model.pt2", errno.ENOSPC)(monkeypatch)
    exporting.try_exports(runs.prepare(recipe(*SHORT)), lambda sentence, note: said.append(sentence))
    assert len(said) == 1
    assert "No space left" in said[0]
    assert "will not be written" not in said[0]


# ---------------------------------------------------------------------------------------- changes that are refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on data in a file beside it."""
    place = tmp_path_factory.mktemp("finished")
    dice = np.random.default_rng(0)
    pixels, labels = dice.integers(0, 256, (160, 8, 8), dtype=np.uint8), np.arange(160) % 4
    np.savez(place / "data.npz", x_train=pixels[:120], y_train=labels[:120], x_test=pixels[120:], y_test=labels[120:])
    data = f"data={{name: npz, path: {str(place / 'data.npz')!r}, batch_size: 30}}"
    runs.start(recipe("train.epochs=1", "finetune=null", data), place / "run")
    return place


def without_data(place: Path, patch: pytest.MonkeyPatch) -> None:
    (place / "data.npz").unlink()


def with_other_data(place: Path, patch: pytest.MonkeyPatch) -> None:
    with np.load(place / "data.npz") as found:
        held = dict(found)
    np.savez(place / "data.npz", **{**held, "y_train": held["y_train"][::-1].copy()})


def without_a_package(place: Path, patch: pytest.MonkeyPatch) -> None:
    def refused(_: Recipe, *__: Any) -> None:
        raise ConfigError("A package is not installed.")

    patch.setattr(runs, "prepare", refused)


@pytest.mark.parametrize("hindrance", [without_data, with_other_data, without_a_package])
@pytest.mark.parametrize("override", ["export.pt2=true", "latency={repeats: 2}"])
def test_a_change_that_is_refused_leaves_a_finished_run_finished(
    override: str,
    hindrance: Callable[[Path, pytest.MonkeyPatch], None],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file()}
    data = (finished / "data.npz").read_bytes()
    try:
        with monkeypatch.context() as patch:
            hindrance(finished, patch)
            with pytest.raises(SecateurError):
                runs.resume(finished / "run", [override])
    finally:
        (finished / "data.npz").write_bytes(data)
    assert {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file()} == kept
    assert runs.resume(finished / "run").already
