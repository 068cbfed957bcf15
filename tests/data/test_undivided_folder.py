"""A folder of images whose classes lie in it, without folders for training and testing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from secateur.cli import app
from secateur.data import open_data
from secateur.errors import DataError
from secateur.recipe import DataConfig


def folder(place: Path, **counts: int) -> Path:
    """So many images of each class, each of one grey."""
    for name, count in counts.items():
        (place / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(place / name / f"{number:02}.png")
    return place


def opened(place: Path) -> object:
    config = {"name": "folder", "path": str(place), "validation": 0.0, "batch_size": 1, "options": {"size": 8}}
    return open_data(DataConfig.model_validate(config), 0)


def test_every_fifth_image_of_each_class_is_for_testing(tmp_path: Path) -> None:
    data = opened(folder(tmp_path / "photos", cat=10, dog=7, eel=4))
    assert (len(data.train), len(data.test)) == (8 + 6 + 4, 2 + 1 + 0)
    assert data.class_names == ("cat", "dog", "eel")
    (note,) = [note for note in data.notes if "kept for testing" in note]
    assert "3 of 21" in note
    seen = sorted(round(float(x.amax()), 4) for x, _ in data.test.batches(1))
    again = opened(tmp_path / "photos")
    assert sorted(round(float(x.amax()), 4) for x, _ in again.test.batches(1)) == seen


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"only": 9}, "has no folder 'train'"),  # the folder above the classes, perhaps
        ({"a": 4, "b": 4}, "fewer than 5 images of each class"),
        ({"a/train": 6, "b/train": 6}, "has no folder 'train'"),
        ({"train": 6, "other": 6}, "has no folder 'test'"),
    ],
    ids=str,
)
def test_what_may_be_something_else_is_refused(tmp_path: Path, counts: dict[str, int], says: str) -> None:
    with pytest.raises(DataError, match=says):
        opened(folder(tmp_path / "photos", **counts))


def test_a_command_prunes_with_it_and_says_so(tmp_path: Path) -> None:
    place = folder(tmp_path / "photos", **{f"c{k}": 6 for k in range(10)})
    words = ["prune", "zoo:tiny", "--input-size", "3x32x32", "--method", "taylor", "--data", str(place)]
    words += [
        "--images",
        "16",
        "--mean",
        "0.5",
        "--std",
        "0.5",
        "--budget",
        "flops=0.7",
        "--model-arg",
        "num_classes=10",
    ]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert "every fifth image of each class, 10 of 60, is kept for testing" in " ".join(found.output.split())
