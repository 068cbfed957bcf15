"""Between a crash and the resuming of a run things change: what matters is refused or told, the rest is no obstacle."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import secateur
from secateur import runs
from secateur.errors import SecateurError
from secateur.recipe import Recipe
from secateur.training import Silent

pytestmark = pytest.mark.long  # `make long` runs it

BASE = """
name: small
model: zoo:tiny
data: {name: npz, path: PATH, batch_size: 30}
method: l1
budget: flops=0.6
train: {epochs: 2, lr: 0.05}
finetune: {epochs: 1, lr: 0.02}
export: {onnx: false, pt2: false}
latency: null
engine: {device: cpu, precision: fp32}
"""


class Crashed(BaseException):
    """The process is gone."""


class Watched(Silent):
    """Remembers every sentence and stage; crashes after an epoch of a stage."""

    def __init__(self, stage: str = "", epoch: int = 0) -> None:
        self.said: list[str] = []
        self.stages: list[str] = []
        self.at = (stage, epoch)

    def start_stage(self, name: str, epochs: int, steps: int, done: int = 0) -> None:
        self.stages.append(name)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def epoch(self, row: Any) -> None:
        if (row["stage"], row["epoch"]) == self.at:
            raise Crashed


def digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = (found.images * 15).astype(np.uint8)
    return {"x_train": pixels[:90], "y_train": found.target[:90], "x_test": pixels[90:130],
            "y_test": found.target[90:130]}  # fmt: skip


def crashed_run(folder: Path, file: Path, stage: str, epoch: int, *overrides: str, text: str = BASE) -> None:
    watched = Watched(stage, epoch)
    with pytest.raises(Crashed):
        runs.start(Recipe.parse(text.replace("PATH", json.dumps(str(file))), overrides), folder, progress=watched)
    assert not (folder / "results.json").exists()


def resumed(folder: Path) -> tuple[SecateurError | None, list[str]]:
    """How resuming ends, and all that was said, in notes too."""
    watched = Watched()
    try:
        outcome = runs.resume(folder, progress=watched)
    except SecateurError as refusal:
        return refusal, [str(refusal)]
    return None, [*watched.said, *outcome.results["method"]["notes"], *outcome.results["data"].get("notes", [])]


def shifted(held: dict[str, np.ndarray]) -> None:
    held["y_train"] = (held["y_train"] + 3) % 10


def inverted(held: dict[str, np.ndarray]) -> None:
    held["x_train"] = 255 - held["x_train"]


def reordered(held: dict[str, np.ndarray]) -> None:
    held["x_train"], held["y_train"] = held["x_train"][::-1].copy(), held["y_train"][::-1].copy()


def other_test_labels(held: dict[str, np.ndarray]) -> None:
    held["y_test"] = held["y_test"][::-1].copy()


def one_pixel(held: dict[str, np.ndarray]) -> None:
    held["x_train"][17, 3, 3] ^= 1


CHANGES = [
    (shifted, "train"), (inverted, "train"), (reordered, "train"), (other_test_labels, "train"), (one_pixel, "train"),
    (shifted, "finetune"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "stage"), CHANGES)
def test_data_that_changed_meanwhile_are_noticed(
    change: Callable[[dict[str, np.ndarray]], None], stage: str, tmp_path: Path
) -> None:
    held, file = digits(), tmp_path / "digits.npz"
    np.savez(file, **held)
    crashed_run(tmp_path / "run", file, stage, 1)
    change(held)
    np.savez(file, **held)
    _, said = resumed(tmp_path / "run")
    assert any("data" in sentence or "digits.npz" in sentence for sentence in said), said


def test_data_that_are_the_same_are_not_spoken_of(tmp_path: Path) -> None:
    file = tmp_path / "digits.npz"
    np.savez(file, **digits())
    crashed_run(tmp_path / "run", file, "train", 1)
    os.utime(file, (1, 1))
    refusal, said = resumed(tmp_path / "run")
    assert refusal is None
    assert not any("changed" in sentence or "differ" in sentence for sentence in said), said


@pytest.mark.parametrize("same_size", [False, True])
def test_a_picture_that_was_replaced_is_noticed(same_size: bool, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    held = digits()
    for part in ("train", "test"):
        for number, (pixels, label) in enumerate(zip(held[f"x_{part}"], held[f"y_{part}"], strict=True)):
            path = tmp_path / "set" / part / f"class{label}" / f"{number:03}.bmp"  # all of one size
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels).save(path)
    text = BASE.replace("name: npz", "name: folder").replace("batch_size", "options: {size: 8}, batch_size")
    crashed_run(tmp_path / "run", tmp_path / "set", "train", 1, text=text)
    victim = sorted((tmp_path / "set" / "train" / "class3").iterdir())[0]
    replacement = np.zeros((8, 8) if same_size else (9, 11), np.uint8) + 200
    image.fromarray(replacement).save(victim)
    _, said = resumed(tmp_path / "run")
    assert any("data" in sentence or "picture" in sentence or "image" in sentence for sentence in said), said


# ----------------------------------------------------------------------------------------------- exports that fail

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.fc, self.g = nn.Linear(16, num_classes), nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
        return FORWARD
"""
FORWARDS = {
    "an operator ONNX lacks": "y + 0 * torch.linalg.svdvals(torch.eye(3) * self.g).sum()",
    "eigenvalues": "y * torch.linalg.eigvalsh(torch.eye(2) * self.g).mean()",
}


def plain(text: str) -> bool:
    return "\x1b" not in text and "[96m" not in text and "\n" not in text


def epochs_of(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORWARDS)
def test_an_export_that_cannot_work_costs_no_training(name: str, tmp_path: Path) -> None:
    """It is refused before training, or the run is finished, says which format failed, and can be loaded."""
    file, folder = tmp_path / "digits.npz", tmp_path / "run"
    np.savez(file, **digits())
    (tmp_path / "net.py").write_text(NETWORK.replace("FORWARD", FORWARDS[name]))
    reference = f"model={{reference: {json.dumps(str(tmp_path / 'net.py') + ':Net')}}}"
    recipe = Recipe.parse(
        BASE.replace("PATH", json.dumps(str(file))), (reference, "export.onnx=true", "train.epochs=1", "finetune=null")
    )
    watched = Watched()
    try:
        outcome = runs.start(recipe, folder, progress=watched)
    except SecateurError as refusal:
        text = str(refusal)
        assert plain(text)
        assert "onnx" in text.casefold()
        assert epochs_of(folder) == 0
        return
    notes = [*outcome.results["method"]["notes"], *watched.said]
    told = [sentence for sentence in notes if "onnx" in sentence.casefold()]
    assert told, notes
    assert all(plain(sentence) for sentence in told)
    assert not (folder / "model.onnx").exists()
    namespace: dict[str, Any] = {"__name__": "net"}
    exec((tmp_path / "net.py").read_text(), namespace)
    assert secateur.load(folder, namespace["Net"]())(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


# ---------------------------------------------------------------------------------------------------------- threads


def test_another_number_of_threads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, threads = tmp_path / "digits.npz", torch.get_num_threads()
    np.savez(file, **digits())
    crashed_run(tmp_path / "run", file, "train", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)  # two threads on a busy machine would crawl
    _, said = resumed(tmp_path / "run")
    assert any("thread" in sentence for sentence in said), said


def test_the_same_number_of_threads_is_not_spoken_of(tmp_path: Path) -> None:
    file = tmp_path / "digits.npz"
    np.savez(file, **digits())
    crashed_run(tmp_path / "run", file, "finetune", 1)
    refusal, said = resumed(tmp_path / "run")
    assert refusal is None
    assert not any("thread" in sentence for sentence in said), said
