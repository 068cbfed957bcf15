"""`--mean` and `--std`, and the sentence that says how the images of `--data` are normalised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from secateur.cli import app
from secateur.cli._choice import training_data
from secateur.cli._normalising import Normalising
from secateur.data.normalisation import USUAL
from secateur.errors import ConfigError
from secateur.references import Loaded

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, configured=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 2)
        if configured:
            self.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 16, 16)}
    def forward(self, x):
        return self.head(self.body(x).flatten(1))

def plain():
    return Net()

def configured():
    return Net(True)

batches = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 2)]
"""
IMAGENET = ("0.485,0.456,0.406", "0.229,0.224,0.225")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images of 16x16 a class, and a file with networks."""
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for k in range(10):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / label / f"{k}.png")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def _loaded(configured: bool = False) -> Loaded:
    space: dict[str, Any] = {}
    exec(NET, space)
    return Loaded("net.py:plain", space["Net"](configured), torch.zeros(1, 3, 16, 16), ((1, 3, 16, 16),))


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [
        ("0.5,0.4,0.3", "0.2,0.3,0.4", ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))),
        ("0.5", "0.25", ((0.5,) * 3, (0.25,) * 3)),
        ("half", None, ((0.5,) * 3, (0.5,) * 3)),
        (None, "cifar10", USUAL["cifar10"]),
        ("imagenet", "1", (USUAL["imagenet"][0], (1.0,) * 3)),
        (None, None, USUAL["imagenet"]),
    ],
)
def test_what_is_typed_is_what_images_are_normalised_by(
    photos: Path, mean: str | None, std: str | None, found: tuple[tuple[float, ...], ...]
) -> None:
    split = training_data("photos", _loaded(), 0, Normalising(mean, std))
    assert (split.mean, split.std) == found
    usual = training_data("photos", _loaded(), 0, Normalising())
    back = [
        images * torch.tensor(s.std)[:, None, None] + torch.tensor(s.mean)[:, None, None]
        for s in (split, usual)
        for images, _ in s.batches(20)
    ]
    assert torch.allclose(back[0], back[1], atol=1e-6)  # the pixels are the same
    (sentence,) = split.notes
    assert "normalised by mean " + ",".join(f"{n:.4g}" for n in found[0]) in sentence
    assert "--mean and --std give others" in sentence
    assert ("the usual ones: those of imagenet" in sentence) == (mean is None and std is None)


def test_measured_is_measured(photos: Path) -> None:
    split = training_data("photos", _loaded(), 0, Normalising("measured"))
    images = torch.cat([images for images, _ in split.batches(20)])
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-4)
    assert images.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-4)
    assert "measured from 20 training images" in split.notes[0]


def test_the_networks_own_configuration_is_asked(photos: Path) -> None:
    split = training_data("photos", _loaded(configured=True), 0, Normalising())
    assert (split.mean, split.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert "those of the network's own configuration" in split.notes[0]
    split = training_data("photos", _loaded(configured=True), 0, Normalising("0.5", "0.5"))
    assert split.mean == (0.5,) * 3
    assert "as given" in split.notes[0]


def test_a_runs_folder_knows_what_it_was_trained_with(photos: Path) -> None:
    told = {"normalisation": json.dumps({"mean": [0.3, 0.2, 0.1], "std": [0.7, 0.8, 0.9]})}
    save_file({"x": torch.zeros(1)}, "model.safetensors", told)
    split = training_data("photos", replace(_loaded(), reference="."), 0, Normalising())
    assert (split.mean, split.std) == ((0.3, 0.2, 0.1), (0.7, 0.8, 0.9))
    assert split.notes[0].endswith("those of the run in .; --mean and --std give others.")


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ("0.5,0.5", "0.5", "--mean has 2 numbers for images of 3 colours: give one for each, or one for all."),
        ("0.5", "0.5,0.5,0.5,0.5", "--std has 4 numbers for images of 3 colours"),
        ("0.5", None, "--mean is given without --std: give both."),
        (None, "0.5", "--std is given without --mean: give both."),
        ("imagnet", None, "did you mean 'imagenet'?"),
        ("123.675,116.28,103.53", "0.5", "(123.675 of 255 is 0.4850)"),
        ("0.5", "0", "numbers above 0 to 1"),
        ("-0.5", "0.5", "numbers from 0 to 1"),
        ("nan", "0.5", "numbers from 0 to 1"),
        ("0.5;0.5;0.5", "0.5", "by commas"),
        ("", "0.5", "not understood"),
    ],
)
def test_refused_in_a_sentence(photos: Path, mean: str | None, std: str | None, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        training_data("photos", _loaded(), 0, Normalising(mean, std))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "net.py:plain", "--input-size", "3x16x16", "--budget", "flops=0.7", "--mean", "half"],
        ["compress", "net.py:plain", "--input-size", "3x16x16", "--flops", "0.7", "--std", "half", "--out", "c"],
        ["sensitivity", "net.py:plain", "--input-size", "3x16x16", "--data", "net.py:batches", "--mean", "half"],
    ],
)
def test_without_images_to_normalise_they_are_refused(photos: Path, words: list[str]) -> None:
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "has no effect" in found.output
    assert found.output.count("error:") == 1


def test_commands_say_it(photos: Path) -> None:
    words = ["net.py:plain", "--input-size", "3x16x16", "--data", "photos", "--mean", IMAGENET[0], "--std", IMAGENET[1]]
    found = CliRunner().invoke(app, ["prune", *words, "--budget", "flops=0.7", "--method", "taylor", "--json"])
    assert found.exit_code == 0, found.output
    said = "Images of folder are normalised by mean 0.485,0.456,0.406 and std 0.229,0.224,0.225, as given"
    assert said in found.stdout
    found = CliRunner().invoke(app, ["sensitivity", *words, "--shares", "0.5", "--json"])
    assert found.exit_code == 0, found.output
    assert any(note.startswith(said) for note in json.loads(found.stdout)["notes"])
