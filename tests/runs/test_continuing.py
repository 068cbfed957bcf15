"""A run that goes on: on the same data, with what may be changed, and without the files that cannot be written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from _small import outcome, recipe

import secateur
from secateur import runs
from secateur.errors import ConfigError, RunError
from secateur.runs.folder import Folder
from secateur.runs.stages import Stages
from secateur.runtime import check_folder
from secateur.training import Silent


class Told(Silent):
    """Remembers every sentence."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


class Stop(Exception):
    """What a test ends a run with."""


def stopped(folder: Path, at: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Path:
    """A run that ended before a stage."""
    original = Stages.run

    def run(self: Stages, stage: str) -> None:
        if stage == at:
            raise Stop
        original(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "run", run)
        with pytest.raises(Stop):
            runs.start(recipe("train.epochs=1", "finetune=null", *overrides), folder)
    return folder


def saved(path: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    dice = np.random.default_rng(0)
    arrays = {
        "x_train": dice.integers(0, 256, (120, 8, 8), dtype=np.uint8),
        "y_train": np.arange(120) % 4,
        "x_test": dice.integers(0, 256, (40, 8, 8), dtype=np.uint8),
        "y_test": np.arange(40) % 4,
    }
    change(arrays)
    np.savez(path, **arrays)
    return path


def shift(arrays: dict[str, Any]) -> None:
    arrays["y_train"] = (arrays["y_train"] + 1) % 4


def swap(arrays: dict[str, Any]) -> None:
    arrays["y_test"][[0, 1]] = arrays["y_test"][[1, 0]]


def touch(arrays: dict[str, Any]) -> None:
    arrays["x_train"][7, 3, 3] ^= 1


@pytest.mark.parametrize("change", [shift, swap, touch])
@pytest.mark.parametrize("at", ["train", "prune"])
def test_other_data_of_the_same_counts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, at: str
) -> None:
    data = f"data={{name: npz, path: '{saved(tmp_path / 'd.npz')}', batch_size: 30}}"
    folder = stopped(tmp_path / "a", at, monkeypatch, data)
    state = (folder / "state.json").read_bytes()
    saved(tmp_path / "d.npz", change)
    with pytest.raises(RunError, match=r"data are not those that the run .* digest, of all pixels and labels, is ano"):
        runs.resume(folder)
    assert (folder / "state.json").read_bytes() == state
    saved(tmp_path / "d.npz")
    assert runs.resume(folder).results["data"]["train"] == 108


def test_a_run_that_did_not_note_its_data_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped(tmp_path / "a", "prune", monkeypatch)
    state = json.loads((folder / "state.json").read_text())
    del state["data"]
    (folder / "state.json").write_text(json.dumps(state))
    notes = runs.resume(folder).results["method"]["notes"]
    assert any("whether they changed is unknown" in note for note in notes)
    assert json.loads((folder / "state.json").read_text())["data"]["sha256"]


def test_another_number_of_threads_or_method_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped(tmp_path / "a", "train", monkeypatch)
    state = json.loads((folder / "state.json").read_text())
    state["recipe"] = state["recipe"].replace("name: l1", "name: l2")
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "recipe.yaml").write_text(state["recipe"])
    threads, told = torch.get_num_threads(), Told()
    try:
        torch.set_num_threads(threads + 1)
        notes = runs.resume(folder, progress=told).results["method"]["notes"]
    finally:
        torch.set_num_threads(threads)
    for words in (f"with threads {threads} and continued with {threads + 1}", "with method l1 and continued with l2"):
        assert any(words in note for note in notes)
        assert sum(words in sentence for sentence in told.said) == 1


# ------------------------------------------------------------------------------------------------ what may be changed


def test_what_does_not_touch_training_may_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped(tmp_path / "a", "export", monkeypatch)
    whole = outcome(runs.start(recipe("train.epochs=1", "finetune=null"), tmp_path / "b").folder)
    wanted = ("export.pt2=true", "latency={repeats: 3, runtimes: [pytorch]}", "engine.keep_checkpoints=1")
    results = runs.resume(folder, wanted).results
    found = outcome(folder)
    assert found["model.safetensors"] == whole["model.safetensors"]
    assert {"model.pt2", "latency.json"} <= set(found["names"])
    assert secateur.recipe.Recipe.read(folder / "recipe.yaml").export.pt2
    (note,) = [note for note in results["method"]["notes"] if "recipe was changed" in note]
    assert "export.pt2=true" in note
    assert "engine.keep_checkpoints=1" in note
    check_folder(folder)
    again = runs.resume(folder, ["export.pt2=false", "latency=null"])  # of a run that is finished
    assert not again.already
    assert not (folder / "model.pt2").exists()
    assert not (folder / "latency.json").exists()
    assert "model.pt2" not in again.results["files"]
    check_folder(folder)
    assert runs.resume(folder, ["export.pt2=false"]).already  # as it is anyway


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.epochs=7", "train.epochs"),
        ("method=l2", "method.name"),
        ("budget=flops=0.3", "budget"),
        ("seed=3", "seed"),
        ("data.batch_size=20", "data.batch_size"),
        ("engine.precision=bf16", "engine.precision"),
        ("finetune.epochs=2", "finetune"),
    ],
)
def test_what_touches_training_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, key: str
) -> None:
    Folder.create(tmp_path / "a", recipe("train.epochs=1", "finetune=null"))
    state = (tmp_path / "a" / "state.json").read_bytes()
    with pytest.raises(ConfigError, match=rf"^{key} cannot be changed .* a resume changes export, latency, "):
        runs.resume(tmp_path / "a", ["export.onnx=true", override])
    assert (tmp_path / "a" / "state.json").read_bytes() == state


def test_a_change_that_was_interrupted_is_no_edit(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    run = Folder.create(folder, recipe())
    before = (folder / "recipe.yaml").read_text()
    run.change(recipe("export.pt2=true"), "said", [])
    (folder / "recipe.yaml").write_text(before)  # as if the process had ended between the two files
    assert Folder.open(folder).recipe.export.pt2
    assert "pt2: true" in (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(before.replace("small", "other"))
    with pytest.raises(RunError, match="has been changed since the run began"):
        Folder.open(folder)


# ----------------------------------------------------------------------------------------- what cannot be written

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.g = nn.Linear(8, 10), nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))
        %s
"""
BODIES = {
    "no ONNX operator": ("return self.fc(x) * torch.linalg.slogdet(torch.eye(3) * self.g)[1].exp()", ("onnx",)),
    "depends on numbers": ("return self.fc(x) * (1 if float(self.g.sum()) > 0 else 2)", ("onnx", "pt2")),
    "not traced": ("return self.fc(x) + torch.from_numpy(x.detach().numpy() * 0).sum()", ("onnx", "pt2")),
}


@pytest.mark.long
@pytest.mark.parametrize("name", BODIES)
def test_a_format_that_cannot_be_written_is_named_and_the_run_goes_on(tmp_path: Path, name: str) -> None:
    body, failing = BODIES[name]
    (tmp_path / "net.py").write_text(NETWORK % body)
    model = f"model={{reference: '{tmp_path / 'net.py'}:Net'}}"
    told = Told()
    wanted = ("train.epochs=1", "finetune=null", "export={onnx: true, pt2: true}", model)
    results = runs.start(recipe(*wanted), tmp_path / "a", progress=told).results
    assert set(results["not_exported"]) == set(failing)
    first = next(place for place, said in enumerate(told.said) if "will not be written unless" in said)
    assert not any("Cutting" in said for said in told.said[:first])  # said before anything is done
    for form in failing:
        reason = results["not_exported"][form]
        assert not (tmp_path / "a" / f"model.{form}").exists()
        assert "\x1b" not in reason
        assert "step 3/3" not in reason
        assert any(f"model.{form} was not written" in note for note in results["method"]["notes"])
        assert any(f"model.{form} was not written" in said for said in told.said)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "was not written." in page
    check_folder(tmp_path / "a")
    sys.path.insert(0, str(tmp_path))
    try:
        sys.modules.pop("net", None)
        import net  # type: ignore[import-not-found]

        assert secateur.load(tmp_path / "a", net.Net())(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    finally:
        sys.path.remove(str(tmp_path))


def test_a_library_network_loads_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a PyTorch puts pickles into its archive."""
    from secateur.runtime.exporters import pt2

    def refuses(path: Path) -> Any:
        raise RunError("It holds a pickle.")

    monkeypatch.setattr(pt2, "read_archive", refuses)
    wanted = ("train.epochs=1", "finetune=null", "export.pt2=true")
    results = runs.start(recipe(*wanted), tmp_path / "a").results
    assert "in a form that cannot be read without running it" in results["not_exported"]["pt2"]
    assert secateur.load(tmp_path / "a")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_stranded_run_of_before_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped(tmp_path / "a", "export", monkeypatch, "export.pt2=true")
    from secateur.runs import exporting

    def fails(*_: Any) -> Any:
        raise RunError("It cannot be.")

    (folder / "model.pt2").write_bytes(b"half")  # of an attempt before
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "export_subject", fails)
        shutil.copytree(folder, tmp_path / "b")
        assert runs.resume(folder).results["not_exported"] == {"pt2": "It cannot be."}
    assert not (folder / "model.pt2").exists()
    assert runs.resume(tmp_path / "b").results["not_exported"] == {}
