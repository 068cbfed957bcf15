"""Data of one's own by import path: every form, the same bits whatever the interruption, and refusals."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secateur.data import digest_of, open_data
from secateur.errors import ConfigError, DataError
from secateur.recipe import DataConfig

CODE = """
import random
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

class Noisy(Dataset):
    classes = ["a", "b"]

    def __init__(self, count=20):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number == self.count - 1 and getattr(self, "broken", False):
            raise OSError("torn")
        drawn = torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])
        return number + drawn[:, None, None], number % 2

class Module:
    def setup(self, stage):
        self.data = Noisy()

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=3, shuffle=True)

    def val_dataloader(self):
        return []

    def test_dataloader(self):
        return DataLoader(Noisy(6))

class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3, 1, 1), 0

def alone(count=20):
    return Noisy(count)

def named():
    return {"train": Noisy(), "val": Noisy(5), "test": Noisy(6)}

def pair():
    return Noisy(), Noisy(6)

def joined():
    def collate(samples):
        return torch.stack([x for x, _ in samples]) * 2, torch.zeros(len(samples), dtype=torch.long)

    return DataLoader(Noisy(), collate_fn=collate)

def broken():
    found = Noisy()
    found.broken = True
    return found

def endless():
    return Endless()

def empty():
    return Noisy(), Noisy(0)

def odd():
    return {"training": Noisy()}

thing = Noisy()
"""


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)


def _open(name: str, **options: Any) -> Any:
    return open_data(DataConfig(name=f"mine.py:{name}", batch_size=4, **options), 7)


def _seen(split: Any, **options: Any) -> list[torch.Tensor]:
    return [images for images, _ in split.batches(4, shuffle=True, seed=3, **options)]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("alone", (18, 2, 2)), ("named", (20, 5, 6)), ("pair", (18, 2, 6)), ("Module", (18, 2, 6)), ("thing", (18, 2, 2))],
)
def test_every_form(name: str, sizes: tuple[int, ...]) -> None:
    data = _open(name)
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert data.input_size == (3, 1, 1)
    assert any("no test set" in note for note in data.notes) == (name in ("alone", "thing"))
    images, labels = next(data.train.batches(4))
    assert images.shape == (4, 3, 1, 1)
    assert labels.tolist() == (images[:, 0, 0, 0].long() % 2).tolist()


def test_an_epoch_goes_on_from_any_batch_with_the_same_bits() -> None:
    train = _open("alone").train
    whole = _seen(train, epoch=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], _seen(train, epoch=1, start=2), strict=True))
    assert torch.equal(state, torch.get_rng_state())  # nobody else's numbers were drawn
    assert not torch.equal(torch.cat(whole).sort(0)[0], torch.cat(_seen(train, epoch=2)).sort(0)[0])
    halves = [_seen(train, epoch=1, rank=rank, world=2) for rank in (0, 1)]
    assert all(torch.equal(torch.cat([a, b]), c) for a, b, c in zip(*halves, whole, strict=True))


def test_workers_change_nothing() -> None:
    alone, helped = (_open("alone", workers=workers).train for workers in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(_seen(alone), _seen(helped), strict=True))


def test_a_loaders_own_way_of_joining_samples_is_kept() -> None:
    images, labels = next(_open("joined").train.batches(4))
    assert labels.tolist() == [0, 0, 0, 0]
    assert float(images.min()) >= 0
    assert np.allclose((images[:, 0, 0, 0] / 2).floor(), np.sort(_open("joined").train.indices)[:4])


def test_other_samples_are_other_data() -> None:
    assert digest_of(_open("alone")) == digest_of(_open("alone"))
    assert digest_of(_open("alone"))["sha256"] != digest_of(_open("alone", options={"count": 21}))["sha256"]


def test_what_data_say_of_themselves() -> None:
    told = _open("named").describe()
    assert told["classes"] == 2
    assert told["class_names"] == ["a", "b"]
    assert told["train"] == 20
    assert len(_open("alone", train_images=10).train) == 9


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("gone", {}, ConfigError, "no 'gone'"),
        ("odd", {}, ConfigError, "train, validation and test"),
        ("endless", {}, ConfigError, "by its number"),
        ("alone", {"options": {"size": 3}}, ConfigError, "size"),
        ("thing", {"options": {"size": 3}}, ConfigError, "object already"),
        ("alone", {"path": "x"}, ConfigError, "data.path has no effect"),
        ("alone", {"validation": 0.0}, DataError, "nothing to test on"),
        ("alone", {"train_images": 30}, DataError, "ask for fewer"),
        ("empty", {}, DataError, "empty"),
        ("pair", {"train_images": 3}, DataError, "batch_size"),
    ],
)
def test_what_cannot_be_is_one_sentence(name: str, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _open(name, **options)


def test_a_sample_that_cannot_be_had_is_named() -> None:
    data = _open("broken")
    every = itertools.chain(data.train.batches(4), data.validation.batches(4))
    with pytest.raises(DataError, match=r"Sample 19 of mine\.py:broken \(train\).*torn"):
        list(every)
