"""A split: some of a set's images, given out as batches that depend on nothing but seed, epoch and batch number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.data.augment import Augmentation
from secateur.data.each import Each
from secateur.data.images import Drawn, Images, MemoryImages, Request
from secateur.data.order import Indices, permutation, rank_slice, uniform
from secateur.errors import DataError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Split:
    """The images at `indices` of `images`; `len()` is how many there are.

    `mean` and `std` are those of each colour, for pixels from 0 to 1. `augment` is done where a batch asks for it.
    `notes` is what a user should be told of it.
    """

    images: Images
    indices: Indices
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: tuple[Augmentation, ...] = ()
    workers: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def draws_here(self) -> bool:
        """Whether augmentations draw from this process's generators, so that no thread may take batches meanwhile."""
        here = self.workers == 0 or isinstance(self.images, MemoryImages)
        return here and any(isinstance(row.function, Each) for row in self.augment)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of every image, in the order of the split."""
        return self.images.labels[self.indices]

    def batch_count(self, batch_size: int, drop_last: bool = False) -> int:
        """How many batches make an epoch."""
        if batch_size < 1:
            raise DataError(f"The batch size is {batch_size}: give at least 1.")
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on: float32 [n, C, H, W], normalised, and int64 labels [n].

        What batch b of epoch e holds depends only on (seed, e, b). With `world` processes each batch is the same, and
        process `rank` gets its contiguous part; the last batch may leave nothing for some. `batch_size` is the whole's.

        Raises:
            DataError: an argument is impossible, or an image turns out to be broken.
        """
        count = asked(self, batch_size, epoch, seed, start, rank, world, drop_last)
        order = permutation(len(self), seed=seed, purpose="order", epoch=epoch) if shuffle else np.arange(len(self))
        look = Look(self.mean, self.std, self.augment if augment else (), self.workers)
        return _Epoch(look, len(self), batch_size, epoch, seed, rank, world, self, order).batches(count)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [n, C, H, W] to normalised float32, in two roundings that do not depend on an image's place."""
        return Look(self.mean, self.std).normalise(pixels)


def asked(
    split: Sized, batch_size: int, epoch: int, seed: int, start: int, rank: int, world: int, drop_last: bool
) -> range:
    """The numbers of the batches that are asked for; DataError if they cannot be."""
    count = split.batch_count(batch_size, drop_last)
    if not 0 <= rank < world:
        raise DataError(f"Process {rank} of {world} was asked for: ranks go from 0 to the number of processes - 1.")
    if world > batch_size:
        raise DataError(f"A batch of {batch_size} cannot be divided among {world} processes: make it larger.")
    if min(epoch, start, seed) < 0:
        raise DataError(f"Epoch {epoch}, batch {start} and seed {seed} must not be negative.")
    if len(split) and not count:
        raise DataError(f"{len(split)} images make no full batch of {batch_size}: give a smaller batch size.")
    return range(start, count)


class Sized(Protocol):
    """What can be divided into batches."""

    def __len__(self) -> int: ...
    def batch_count(self, batch_size: int, drop_last: bool = False) -> int: ...


@dataclass(frozen=True)
class Look:
    """How pixels become what a network sees; `mean`, `std`, `augment` and `workers` as in `Split`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Sequence[Augmentation] = ()
    workers: int = 0

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Factor and summand that take 0..255 to normalised values."""
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (self.mean, self.std))
        return (1 / (255 * std)).float(), (-mean / std).float()

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [n, C, H, W] to normalised float32, in two roundings that do not depend on an image's place."""
        factor, summand = self._scale
        return pixels.to(torch.float32).mul_(factor).add_(summand)


@dataclass(frozen=True)
class Epoch(ABC):
    """One process's view of one epoch of `total` images; a subclass says which images a batch holds."""

    look: Look
    total: int
    batch_size: int
    epoch: int
    seed: int
    rank: int
    world: int

    @property
    @abstractmethod
    def images(self) -> Images:
        """Where pixels come from."""

    @abstractmethod
    def take(self, number: int) -> tuple[Indices | Sequence[Any], Tensor]:
        """This process's images of a batch, and their labels; asked for in the order of the batches, once each."""

    def batches(self, numbers: range) -> Iterator[Batch]:
        """The batches of these numbers."""
        waiting: deque[Tensor] = deque()  # labels of batches that workers are making

        def requests() -> Iterator[Request]:
            for number in numbers:
                taken, labels = self.take(number)
                waiting.append(labels)
                reading, pixels = (self._drawn(number, when) for when in ("reading", "pixels"))
                yield Request(taken, next(iter(reading), None), pixels)

        for number, pixels in zip(numbers, self.images.read(requests(), self.look.workers), strict=True):
            images = self.look.normalise(pixels)
            for row, drawn in self._drawn(number, "normalised"):
                images = row.function(images, drawn)
            yield images, waiting.popleft()

    def size(self, number: int) -> int:
        """Images in the whole batch, for all processes."""
        return min(self.batch_size, self.total - number * self.batch_size)

    def part(self, number: int) -> slice:
        """Where in the batch this process's images are."""
        return rank_slice(self.size(number), self.rank, self.world)

    def _drawn(self, number: int, when: str) -> tuple[Drawn, ...]:
        """The augmentations at one point of a batch's way, each with its numbers."""
        return tuple((row, self._numbers(row, number)) for row in self.look.augment if row.when == when)

    def _numbers(self, row: Augmentation, number: int) -> Tensor:
        """Drawn for the whole batch, so that they are the same however many processes share it."""
        drawn = uniform(
            (self.size(number), row.numbers),
            seed=self.seed,
            purpose=f"augment {row.name}",
            epoch=self.epoch,
            batch=number,
        )
        return torch.from_numpy(drawn[self.part(number)])


@dataclass(frozen=True)
class _Epoch(Epoch):
    """Images that can be read in any order."""

    split: Split
    order: Indices

    @property
    def images(self) -> Images:
        """All of the set's."""
        return self.split.images

    def take(self, number: int) -> tuple[Indices, Tensor]:
        """See `Epoch`."""
        first = number * self.batch_size
        indices = self.split.indices[self.order[first : first + self.batch_size][self.part(number)]]
        return indices, torch.from_numpy(self.split.images.labels[indices])
