"""Which samples a DataLoader gives, however it was told: its own sampler's, each once, and no others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from secateur.compress.held_out import source_of
from secateur.data import digest_of, open_data
from secateur.data.loaders import given_by
from secateur.errors import ConfigError
from secateur.recipe import DataConfig

SET = TensorDataset(torch.arange(24.0)[:, None], torch.arange(24) % 3)
PART = [5, 3, 9, 1, 20, 7]


class Own(Sampler[Any]):
    """A sampler that nobody knows: every second sample, in batches or one by one, or without end."""

    def __init__(self, batch: int = 0, *, endless: bool = False, values: Any = None) -> None:
        self.batch, self.endless = batch, endless
        self.values = list(range(0, 24, 2)) if values is None else values

    def __iter__(self) -> Iterator[Any]:
        if self.endless:
            return itertools.cycle(self.values)
        if self.batch:
            return iter([self.values[k : k + self.batch] for k in range(0, len(self.values), self.batch)])
        return iter(self.values)


ALL, EVEN, SOME = list(range(24)), list(range(0, 24, 2)), sorted(PART)
KNOWN, KEPT, LOST = 0, 1, 2  # nothing to say; which samples is kept; nothing of it is kept


@pytest.mark.parametrize(
    ("options", "numbers", "size", "says"),
    [
        ({"batch_size": 4}, ALL, 4, KNOWN),
        ({"batch_size": 4, "shuffle": True}, ALL, 4, KNOWN),
        ({"batch_size": None}, ALL, None, KNOWN),
        ({"batch_size": 4, "sampler": SequentialSampler(range(9))}, ALL[:9], 4, KNOWN),
        ({"batch_size": 4, "sampler": RandomSampler(SET, num_samples=3)}, ALL, 4, KNOWN),
        ({"batch_size": 4, "sampler": SubsetRandomSampler(PART)}, SOME, 4, KNOWN),
        ({"batch_size": 4, "sampler": SubsetRandomSampler(torch.tensor(PART))}, SOME, 4, KNOWN),  # type: ignore[arg-type]
        ({"batch_size": 4, "sampler": SubsetRandomSampler(PART * 2)}, SOME, 4, LOST),
        ({"batch_size": 4, "sampler": WeightedRandomSampler([1.0, 0.0, 2.0], 9)}, [0, 2], 4, LOST),
        ({"batch_size": 4, "sampler": DistributedSampler(SET, num_replicas=2, rank=1)}, ALL, 4, LOST),
        ({"batch_size": 4, "sampler": Own()}, EVEN, 4, KEPT),
        ({"batch_size": 4, "sampler": Own(endless=True)}, EVEN, 4, KEPT),
        ({"batch_size": 4, "sampler": PART}, SOME, 4, KEPT),
        ({"batch_size": 4, "sampler": [-1, 23, 2]}, [2, 23], 4, KEPT),  # the same one twice
        ({"batch_sampler": BatchSampler(SubsetRandomSampler(PART), 5, False)}, SOME, 5, KNOWN),
        ({"batch_sampler": Own(batch=5)}, EVEN, 5, KEPT),
        ({"batch_sampler": [[1, 2], [4, 5, 8]]}, [1, 2, 4, 5, 8], 3, KEPT),
    ],
)  # fmt: skip
def test_which_samples_a_loader_gives(options: dict[str, Any], numbers: list[int], size: int | None, says: int) -> None:
    given = given_by(DataLoader(SET, **options))
    assert list(given.numbers) == numbers
    assert given.size == size
    words = {KNOWN: [], KEPT: ["decides which samples there are"], LOST: ["is not used: samples come evenly"]}[says]
    assert len(given.notes) == len(words)
    assert all(word in note for word, note in zip(words, given.notes, strict=True))


def test_a_sampler_that_draws_gives_the_same_each_time() -> None:
    class Drawn(Own):
        def __iter__(self) -> Iterator[Any]:
            return iter(torch.randint(24, (6,)).tolist())

    before = torch.get_rng_state()
    first, again = (given_by(DataLoader(SET, batch_size=4, sampler=Drawn())).numbers for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("values", [[(1, 2)], ["a"], [1.5], [24], [-25]])
def test_samples_without_numbers_are_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"The Own of the DataLoader gives .*, which is no number of a sample"):
        given_by(DataLoader(SET, batch_size=4, sampler=Own(values=values)))


@pytest.mark.parametrize(
    "options", [{"batch_size": 4, "sampler": Own(values=3)}, {"batch_sampler": Own(values=[1, 2])}]
)
def test_a_sampler_that_fails_is_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"The Own of the DataLoader failed \(TypeError: .*\): correct it"):
        given_by(DataLoader(SET, **options))


def test_a_search_learns_from_the_samples_of_batches_that_the_user_makes() -> None:
    source = source_of(DataLoader(SET, batch_sampler=Own(batch=5)), torch.zeros(1, 1), 0)
    assert source.round is not None
    held, learnt = ([int(x) for inputs, _ in part for x in inputs] for part in (source.held(), source.round(1)))
    assert sorted(held + learnt) == EVEN
    assert "The Own of the DataLoader decides which samples" in source.notes[0]


CODE = """
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

class Set(TensorDataset):
    classes = ["a", "b", "c"]

    def __init__(self):
        super().__init__(torch.arange(24.0)[:, None, None, None].expand(24, 3, 1, 1), torch.arange(24) % 3)
        self.targets = (torch.arange(24) % 3).tolist()

def weighted():
    return DataLoader(Set(), batch_size=4, sampler=WeightedRandomSampler([0.0] * 4 + [1.0] * 20, 9))

def build(last=None):
    data, loaders = Set(), {}
    if last is not None:
        data.targets[last] = 2 - data.targets[last]
    for name, numbers in {"train": range(12), "val": range(12, 18), "test": range(18, 24)}.items():
        loaders[name] = DataLoader(data, batch_size=4, sampler=SubsetRandomSampler(numbers))
    return loaders

def whole():
    return DataLoader(Set(), batch_size=None)
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)


def _open(name: str, **options: Any) -> Any:
    return open_data(DataConfig(name=f"mine.py:{name}", batch_size=4, **options), 7)


@pytest.mark.usefixtures("code")
def test_parts_of_one_set_by_samplers_do_not_meet() -> None:
    """The usual way to hold out a part of the training images: one data set, a sampler for each loader."""
    data = _open("build")
    parts = [[int(x[0, 0, 0]) for inputs, _ in s.batches(4) for x in inputs] for s in (data.train, data.validation)]
    parts.append([int(x[0, 0, 0]) for inputs, _ in data.test.batches(4) for x in inputs])
    assert [sorted(part) for part in parts] == [ALL[:12], ALL[12:18], ALL[18:]]
    assert data.class_names == ("a", "b", "c")


@pytest.mark.usefixtures("code")
def test_what_a_run_does_not_follow_is_said() -> None:
    data = _open("weighted")
    assert len(data.train) + len(data.validation) == 20
    assert any("The WeightedRandomSampler of the DataLoader is not used" in note for note in data.notes)


@pytest.mark.usefixtures("code")
def test_labels_of_the_samples_that_are_given_count() -> None:
    first, same, other = (digest_of(_open("build", options=options)) for options in ({}, {}, {"last": 23}))
    assert first == same
    assert first != other


@pytest.mark.usefixtures("code")
def test_a_loader_of_whole_batches_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no batch size"):
        _open("whole")


def test_a_subset_of_a_subset() -> None:
    inner = Subset(SET, PART)
    assert list(given_by(DataLoader(inner, batch_size=4)).numbers) == list(range(len(PART)))
