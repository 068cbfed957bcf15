"""The real sets, where they are at hand: $SECATEUR_DATA, or .data in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from _sets import Config

from secateur.data import DATASETS, open_data

FOLDER = Path(os.environ.get("SECATEUR_DATA") or Path(__file__).parents[2] / ".data")


def real(name, *places):
    path = next((FOLDER / place for place in places if (FOLDER / place).exists()), None)
    if path is None:
        pytest.skip(f"{name} is not in {FOLDER}: {DATASETS[name].get}; SECATEUR_DATA may name another folder")
    return open_data(Config(name, str(path), validation=0.1, batch_size=128), seed=0)


@pytest.fixture(scope="module")
def cifar10():
    return real("cifar10", "cifar10.npz", "cifar-10-batches-bin")


def test_cifar10_is_complete(cifar10):
    assert (len(cifar10.train), len(cifar10.validation), len(cifar10.test)) == (45_000, 5_000, 10_000)
    assert cifar10.notes == ()
    assert np.bincount(cifar10.train.labels).tolist() == [4500] * 10
    assert np.bincount(cifar10.validation.labels).tolist() == [500] * 10


def test_the_usual_mean_and_std_are_those_of_the_images(cifar10):
    data = cifar10
    values = np.arange(256) / 255
    for plane, mean, std in zip(data.train.images.pixels.movedim(1, 0), data.mean, data.std, strict=True):
        share = np.bincount(plane.flatten().numpy(), minlength=256) / plane.numel()
        assert mean == pytest.approx(share @ values, abs=1e-4)
        assert std == pytest.approx(np.sqrt(share @ (values - share @ values) ** 2), abs=1e-4)


def test_cifar10_in_binary_files_is_the_same(cifar10, tmp_path):
    images, labels = cifar10.train.images.pixels.numpy(), cifar10.train.images.labels
    for number in range(5):
        part = slice(200 * number, 200 * (number + 1))
        rows = np.concatenate([labels[part, None].astype(np.uint8), images[part].reshape(200, -1)], axis=1)
        (tmp_path / f"data_batch_{number + 1}.bin").write_bytes(rows.tobytes())
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes())
    binary = open_data(Config("cifar10", str(tmp_path)), seed=0)
    assert torch.equal(binary.train.images.pixels, cifar10.train.images.pixels[:1000])
    assert (binary.train.labels == labels[:1000]).all()


def test_a_batch_of_cifar10_is_reproduced(cifar10):
    batches = [
        next(cifar10.train.batches(128, epoch=3, seed=1, shuffle=True, augment=True, start=start))
        for start in (9, 9, 8)
    ]
    assert torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(batches[0][0], batches[2][0])
    assert batches[0][0].shape == (128, 3, 32, 32)
