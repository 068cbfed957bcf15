"""Data sets of torchvision by the names of their classes, made on the spot in the forms torchvision downloads."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _sets import Config, encoded, pixels

from secateur.data import Data, digest_of, open_data
from secateur.errors import ConfigError, DataError

pytest.importorskip("torchvision", reason="torchvision is not installed: pip install torchvision")


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def raw(root: Path, kind: str = "FashionMNIST", prefix: str = "") -> Path:
    """The four files of an MNIST: 20 images to train on, 10 to test on."""
    (root / kind / "raw").mkdir(parents=True)
    for part, count in (("train", 20), ("t10k" if not prefix else "test", 10)):
        made = {"images-idx3": pixels(count, 28, 28), "labels-idx1": np.arange(count) % 10}
        for name, array in made.items():
            (root / kind / "raw" / f"{prefix}{part}-{name}-ubyte").write_bytes(idx(array))
    return root


def food(root: Path) -> Path:
    """Food101 of two dishes: files that are decoded, and splits."""
    names = {"train": range(6), "test": range(6, 9)}
    for part, numbers in names.items():
        listed = {dish: [f"{dish}/{n}" for n in numbers] for dish in ("pie", "soup")}
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{part}.json").write_text(json.dumps(listed))
        for place, dish in enumerate(listed):
            (root / "food-101" / "images" / dish).mkdir(parents=True, exist_ok=True)
            for n in numbers:
                path = root / "food-101" / "images" / dish / f"{n}.jpg"
                path.write_bytes(encoded(100 * place + n, kind="JPEG"))
    return root


def opened(root: Path | None, dataset: str | None, workers: int = 0, on_broken: str = "error", **options: Any) -> Data:
    named = {"dataset": dataset, **options} if dataset else options
    path = None if root is None else str(root)
    return open_data(Config("torchvision", path, workers=workers, on_broken=on_broken, options=named), seed=0)


def test_a_small_set_lies_in_memory_as_it_is(tmp_path: Path) -> None:
    data = opened(raw(tmp_path), "FashionMNIST")
    assert (len(data.train), len(data.test), data.input_size, data.classes) == (20, 10, (1, 28, 28), 10)
    assert (data.train.images.pixels[:, 0].numpy() == pixels(20, 28, 28)).all()
    assert data.test.labels.tolist() == list(range(10))
    assert data.class_names is not None
    assert data.class_names[0] == "T-shirt/top"
    assert "torchvision.datasets.FashionMNIST" in data.describe()["files"][0]["name"]
    json.dumps(data.describe(), allow_nan=False)


def test_a_size_that_is_asked_for_is_made(tmp_path: Path) -> None:
    data = opened(raw(tmp_path), "FashionMNIST", size=16, channels=3)
    assert data.input_size == (3, 16, 16)
    assert next(data.train.batches(4))[0].shape == (4, 3, 16, 16)


def test_without_a_path_the_data_folder_is_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_DATA", str(raw(tmp_path / "all", "KMNIST")))
    assert len(opened(None, "KMNIST").train) == 20


def test_a_set_of_several_takes_its_argument(tmp_path: Path) -> None:
    raw(tmp_path, "EMNIST", "emnist-digits-")
    data = opened(tmp_path, "EMNIST", arguments={"split": "digits"})
    assert (len(data.train), len(data.test)) == (20, 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_files_are_decoded_when_needed(tmp_path: Path, workers: int) -> None:
    data = opened(food(tmp_path), "Food101", workers, size=8)
    assert (data.class_names, data.input_size, data.train.labels.tolist()) == (
        ("pie", "soup"), (3, 8, 8), [0] * 6 + [1] * 6
    )  # fmt: skip
    options = {"shuffle": True, "augment": True, "epoch": 2}
    whole = list(data.train.batches(5, **options))
    again = opened(tmp_path, "Food101", size=8).train.batches(5, start=1, **options)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[1:], again, strict=True))


def test_a_digest_sees_other_pixels(tmp_path: Path) -> None:
    digests = []
    for seed in (1, 1, 2):
        (food(tmp_path) / "food-101/images/pie/0.jpg").write_bytes(encoded(seed, kind="JPEG"))
        digests.append(digest_of(opened(tmp_path, "Food101", size=8))["sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_a_broken_image_is_one_sentence_or_left_out(tmp_path: Path) -> None:
    (food(tmp_path) / "food-101/images/soup/2.jpg").write_bytes(encoded(1, kind="JPEG")[:300])
    with pytest.raises(DataError, match=r"in row 8 of torchvision's Food101 \(train\) cannot be read [^\n]*\.$"):
        opened(tmp_path, "Food101", size=8)
    data = opened(tmp_path, "Food101", size=8, on_broken="skip")
    assert (len(data.train), data.notes[0][:26]) == (11, "1 of 12 training images ca")


def no_files(root: Path) -> None:
    """Nothing is there."""


def cut_off(root: Path) -> None:
    path = raw(root) / "FashionMNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(("dataset", "message", "make", "options"), [
    (None, "data.options.dataset is missing", no_files, {}),
    ("FashionMnist", "no data set 'FashionMnist': did you mean 'FashionMNIST'", no_files, {}),
    ("CIFAR10", "pickles, which can run code: set data.name: cifar10", no_files, {}),
    ("LSUN", "pickles, which can run code: take another", no_files, {}),
    ("EuroSAT", "EuroSAT is not divided into training and test images", no_files, {}),
    ("FashionMNIST", "data.options.test has no effect on FashionMNIST", raw, {"test": "test"}),
    ("FashionMNIST", "cannot be opened in", no_files, {}),
    ("FashionMNIST", "cannot be opened in", cut_off, {}),
    ("Food101", "cannot be opened in", food, {"test": "validation"}),
    ("Food101", "cannot be opened in", food, {"arguments": {"size": 3}}),
    ("Food101", "set data.options.download: true", no_files, {}),
])  # fmt: skip
def test_one_sentence_says_what_is_wrong(
    dataset: str | None, message: str, make: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises((ConfigError, DataError)) as caught:
        opened(tmp_path, dataset, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_without_torchvision_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", None)
    with pytest.raises(ConfigError, match=r"torchvision cannot be imported .*pip install"):
        opened(None, "KMNIST")
