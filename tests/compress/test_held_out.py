"""Training images in two parts that never meet, the same each time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

import secateur
from secateur.compress.held_out import Source, held_of, rows_of, source_of

ONE = torch.zeros(1, 1)


def _numbers(pairs: Any) -> list[int]:
    return [int(value) for inputs, _ in pairs for value in inputs.flatten()]


def _numbered(count: int, **options: Any) -> DataLoader[Any]:
    values = torch.arange(count, dtype=torch.float32)[:, None]
    return DataLoader(TensorDataset(values, values[:, 0].long()), batch_size=16, **options)


@pytest.mark.parametrize(("count", "held"), [(10, 3), (90, 30), (3000, 500), (20_000, 2000), (90_000, 5000), (2, 1)])
def test_how_many_are_held_out(count: int, held: int) -> None:
    assert held_of(count) == held


def test_nothing_to_divide() -> None:
    with pytest.raises(secateur.DataError, match="one training image"):
        held_of(1)


@pytest.mark.parametrize("kind", ["loader", "few batches", "many batches"])
def test_the_parts_never_meet(kind: str) -> None:
    loader = _numbered(400, shuffle=True)
    data: Any = loader if kind == "loader" else list(loader)
    if kind == "few batches":
        data = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    source = source_of(data, ONE, 0)
    held, rounds = _numbers(source.held()), [_numbers(source.round(k)) for k in (1, 1, 2)]  # type: ignore[misc]
    assert source.held_count == len(held) >= 133
    assert source.count == len(rounds[0]) == 400 - len(held)
    for numbers in (*rounds, _numbers(source.shown())):  # type: ignore[misc]
        assert not set(numbers) & set(held)
    assert rounds[0] == rounds[1]  # a round is the same each time
    assert sorted(rounds[0]) == sorted(rounds[2])
    if kind != "few batches":
        assert rounds[0] != rounds[2]
    assert held == _numbers(source.held())


def test_a_loader_is_divided_alike_each_time_and_otherwise_with_another_seed() -> None:
    first, again, other = (_numbers(source_of(_numbered(300), ONE, seed).held()) for seed in (0, 0, 1))
    assert first == again != other


def test_only_images_of_the_users_own_sampler_are_taken() -> None:
    source = source_of(_numbered(300, sampler=SubsetRandomSampler(range(100, 190))), ONE, 0)
    assert source.held_count == 30
    assert set(_numbers(source.held()) + _numbers(source.round(1))) == set(range(100, 190))  # type: ignore[misc]


def test_a_stream_needs_images_to_compare_on() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(torch.zeros(1), 0)])

    with pytest.raises(secateur.ConfigError, match="held_out="):
        source_of(DataLoader(Stream()), ONE, 0)


class Flipped(Dataset[Any]):
    """Samples that are another way round every second time."""

    def __init__(self, draw: Callable[[], float] = lambda: float(torch.rand(()))) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 60

    def __getitem__(self, number: int) -> Any:
        sample = torch.tensor([1.0 + number, 0.0])
        return sample.flip(0) if self.draw() < 0.5 else sample, float("nan")


def _seen(pairs: Any) -> torch.Tensor:
    return torch.cat([inputs for inputs, _ in pairs])


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_change_are_the_same_for_every_network(workers: int) -> None:
    source = source_of(DataLoader(Flipped(), batch_size=8, num_workers=workers), ONE, 0)
    for part in (source.held, source.shown, lambda: source.round(1)):  # type: ignore[misc]
        first = _seen(part())  # type: ignore[misc]
        torch.manual_seed(1)
        before = torch.get_rng_state()
        assert torch.equal(first, _seen(part()))  # type: ignore[misc]
        assert torch.equal(before, torch.get_rng_state())
    rounds = [_seen(source.round(number)) for number in (1, 2)]  # type: ignore[misc]
    assert not torch.equal(*(each[each.amax(1).argsort()] for each in rounds))  # and others in every round
    assert "changes its samples at random, and those that are held out, too, the same way for" in source.notes[0]


def test_samples_that_draw_from_a_generator_of_their_own_differ_from_network_to_network() -> None:
    source = source_of(DataLoader(Flipped(np.random.default_rng(0).random), batch_size=8), ONE, 0)
    assert not torch.equal(_seen(source.held()), _seen(source.held()))
    assert "by a generator of its own and another way for every network" in source.notes[0]


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_samples_that_draw_elsewhere_are_noticed(draw: Any) -> None:
    source = source_of(DataLoader(Flipped(draw), batch_size=8), ONE, 0)
    assert torch.equal(_seen(source.held()), _seen(source.held()))
    assert "changes its samples at random" in source.notes[0]


def test_samples_that_do_not_change_are_not_accused() -> None:
    assert source_of(DataLoader(Flipped(lambda: 1.0), batch_size=8), ONE, 0).notes == ()


def test_a_shuffled_loader_beside_held_out_samples_shows_every_candidate_the_same() -> None:
    learnt, held = _numbered(2000, shuffle=True), DataLoader(Flipped(), batch_size=8, shuffle=True, num_workers=1)
    source = source_of(learnt, ONE, 0, held_out=held)
    assert source.shown is not None
    assert source.round is not None
    assert _numbers(source.shown()) == _numbers(source.shown())
    assert torch.equal(_seen(source.held()), _seen(source.held()))
    first, again, other = (_numbers(source.round(number)) for number in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == list(range(2000))


def test_parts_that_the_user_made_are_not_divided() -> None:
    source = source_of(list(_numbered(32)), ONE, 0, held_out=[torch.full((4, 1), 7.0)])
    assert _numbers(source.held()) == [7] * 4
    assert len(_numbers(source.round(1))) == 32  # type: ignore[misc]
    assert "none of its images" in source.notes[0]


def test_lists_of_targets_are_divided_with_their_images() -> None:
    images, boxes = torch.arange(6.0)[:, None], [{"boxes": torch.full((1, 4), float(k))} for k in range(6)]
    source: Source = source_of([(images, boxes)], ONE, 0)
    for pairs in (source.held(), source.round(1)):  # type: ignore[misc]
        for inputs, targets in pairs:
            assert [float(each["boxes"][0, 0]) for each in targets] == inputs.flatten().tolist()


def test_rows() -> None:
    assert rows_of(torch.zeros(5, 2)) == 5
    assert rows_of([{"boxes": torch.zeros(9, 4)}, {"boxes": torch.zeros(1, 4)}]) == 2
    assert rows_of(([torch.zeros(3, 8, 8)] * 4,)) == 4


def test_noise_is_like_the_example_and_always_the_same() -> None:
    first, again = (list(source_of(None, torch.zeros(1, 3, 4, 4), 0).held()) for _ in range(2))
    assert sum(rows_of(inputs) for inputs, _ in first) == 16
    assert torch.equal(first[0][0].args[0], again[0][0].args[0])
    assert first[0][0].args[0].shape == (4, 3, 4, 4)


@pytest.mark.parametrize("kind", ["loader", "few batches", "generator"])
def test_methods_see_the_first_batches_with_so_many_images(kind: str) -> None:
    loader = _numbered(400)
    data: Any = loader if kind == "loader" else list(loader) if kind == "few batches" else (each for each in loader)
    source = source_of(data, ONE, 0)
    assert source.shown is not None
    everything = _numbers(source.shown())
    few = source.showing(40)
    assert few.shown is not None
    first = _numbers(few.shown())
    assert 40 <= len(first) < 40 + 16
    assert first == everything[: len(first)] == _numbers(few.shown())  # and from the beginning each time
    assert source.showing(5000) is source
    assert _numbers(few.held()) == _numbers(source.held())


def test_networks_are_compared_on_evenly_spaced_batches() -> None:
    batches = [(torch.full((5, 1), float(k)), torch.zeros(5, dtype=torch.long)) for k in range(8)]
    source = source_of(batches[:1], ONE, 0, held_out=batches)
    few = source.judging(20)
    assert few.held_count == 20
    assert _numbers(few.held()) == [k for k in (1, 3, 5, 7) for _ in range(5)] == _numbers(few.held())
    assert source.judging(1).held_count == 5  # a batch at least
    assert source.judging(40) is source
    assert few.shown is not None
    assert _numbers(few.shown()) == [0] * 5


def test_what_a_loader_holds_out_is_in_no_order_of_its_own() -> None:
    held = _numbers(source_of(_numbered(400), ONE, 0).held())  # files of a folder come class by class
    assert held != sorted(held)
