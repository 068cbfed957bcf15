"""What a DataLoader gives: which samples of its data set, how many at a time, and what of its ways is not kept.

Whoever makes batches of its own from a user's loader asks here first; the samples that its sampler leaves out are no
part of it, as they may be those that are meant to test by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from secateur._files import said
from secateur.data.each import drawing
from secateur.errors import ConfigError


@dataclass(frozen=True)
class Given:
    """numbers: of the samples in its data set. size: of a batch; None: samples are whole batches. notes: for people."""

    numbers: Sequence[int]
    size: int | None
    notes: tuple[str, ...] = ()


def given_by(loader: DataLoader[Any]) -> Given:
    """Which samples a loader of a map-style data set gives.

    Raises:
        ConfigError: its sampler fails, or gives other things than numbers.
    """
    batches: Any = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        made = _drawn(batches, len(loader.dataset), list)  # type: ignore[arg-type]
        numbers = _numbers(batches, chain.from_iterable(made), len(loader.dataset))  # type: ignore[arg-type]
        return Given(numbers, max(map(len, made), default=1), (_kept(batches),))
    sampler: Any = loader.sampler if batches is None else batches.sampler
    drawn, notes = _sampled(sampler, len(loader.dataset))  # type: ignore[arg-type]
    return Given(drawn, None if batches is None else batches.batch_size, notes)


def _sampled(sampler: Any, count: int) -> tuple[Sequence[int], tuple[str, ...]]:
    """The numbers, each once and in order, and what is to be said. count: of samples in the data set."""
    if isinstance(sampler, RandomSampler | SequentialSampler):
        return range(len(sampler.data_source)), ()
    name = type(sampler).__name__
    uneven = f"The {name} of the DataLoader is not used: samples come evenly."
    if isinstance(sampler, WeightedRandomSampler):
        return [number for number, weight in enumerate(sampler.weights.tolist()) if weight > 0], (uneven,)
    if isinstance(sampler, DistributedSampler):
        return range(len(sampler.dataset)), (uneven,)  # type: ignore[arg-type]
    own = getattr(sampler, "indices", None)
    if own is not None:
        numbers = _numbers(sampler, own, count)
        return numbers, (uneven,) if len(numbers) < len(own) else ()
    return _numbers(sampler, _drawn(sampler, count), count), (_kept(sampler),)


def _kept(sampler: Any) -> str:
    name = type(sampler).__name__
    return f"The {name} of the DataLoader decides which samples there are, but not their order: they come evenly."


def _drawn(sampler: Any, count: int, kind: Callable[[Any], Any] = lambda value: value) -> list[Any]:
    """What a sampler gives in one pass, which may have no end."""
    try:
        with drawing(0):
            return [kind(value) for value in islice(sampler, len(sampler) if hasattr(sampler, "__len__") else count)]
    except Exception as error:
        name = type(sampler).__name__
        raise ConfigError(
            f"The {name} of the DataLoader failed ({type(error).__name__}: {said(error)}): correct it."
        ) from error


def _numbers(sampler: Any, values: Iterable[Any], count: int) -> list[int]:
    """Each once, in order; those below 0 count from the end, as data sets take them."""
    return sorted({_number(sampler, value, count) for value in values})


def _number(sampler: Any, value: Any, count: int) -> int:
    try:
        number = int(value.__index__())
    except (AttributeError, TypeError):
        number = count  # which no sample has
    if not -count <= number < count:
        raise ConfigError(
            f"The {type(sampler).__name__} of the DataLoader gives {value!r}, which is no number of a sample, of which "
            f"its data set has {count}: use a sampler that gives whole numbers below that."
        )
    return number % count
