"""Streams: images that come one after another out of shards, where no list of all of them is kept anywhere.

An epoch is a stated number of images. The shards are shuffled and dealt to `lanes`; each lane reads its shards one
after another, from the first again where they do not suffice, and shuffles through a buffer. A batch takes as many of
every lane, so what batch b holds depends on (seed, epoch, b), on lanes and buffer, and not on processes or workers: a
process reads the lanes that its part of a batch comes from, and no others. To begin with batch b, a lane reads what
comes before and drops it undecoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from secateur.data._files import said
from secateur.data.augment import Augmentation
from secateur.data.each import Each
from secateur.data.images import EncodedImages, Images, Shape
from secateur.data.order import permutation, words
from secateur.data.split import Batch, Epoch, Look, asked
from secateur.errors import DataError

_DRAWN = 1024  # random words at a time


class Place(NamedTuple):
    """Bytes in a file on a disk, and what they are called there; they are read when they are decoded."""

    path: Path
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """The bytes; DataError with the end of a sentence where that fails."""
        try:
            with self.path.open("rb") as file:  # opened anew: workers must not share a position
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise DataError(f"cannot be read: {said(error)}.") from error


class Sample(NamedTuple):
    """An image of a stream: its bytes or where they are, its label, and what to call it."""

    data: bytes | Place | Path
    label: int
    where: str


class Source(Protocol):
    """Shards, each of which can be read from its beginning; sent to workers, so it holds nothing open."""

    @property
    def shards(self) -> Sequence[str]:
        """What each is called."""

    def samples(self, shard: int) -> Iterator[Sample]:
        """Those of one shard, always in the same order; DataError if it cannot be read or holds something else."""


class StreamImages(EncodedImages):
    """Decodes what streams give; there are no numbers here."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(np.zeros(0, dtype=np.int64), shape, 0)

    def load(self, number: Any) -> Any:
        return number.data.read() if isinstance(number.data, Place) else number.data

    def where(self, number: Any) -> str:
        return str(number.where)


@dataclass(frozen=True)
class Shards:
    """Some shards of a source, checked as they are read."""

    source: Source
    chosen: tuple[int, ...]
    classes: int

    def samples(self, order: Sequence[int]) -> Iterator[Sample]:
        """Those of the shards at these places of `chosen`."""
        for place in order:
            shard = self.chosen[place]
            empty = True
            for sample in self.source.samples(shard):
                empty = False
                if not 0 <= sample.label < self.classes:
                    raise DataError(
                        f"The label of {sample.where} is {sample.label}, and there are the classes 0 to "
                        f"{self.classes - 1}: correct the label, or data.options.classes."
                    )
                yield sample
            if empty:
                raise DataError(
                    f"The shard {self.source.shards[shard]!r} holds no image: leave it out, or get it again."
                )


@dataclass(frozen=True, eq=False)
class _Streamed:
    """What both kinds of splits of a stream are; see `secateur.data.Split`, whose place they take."""

    shards: Shards
    count: int
    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: tuple[Augmentation, ...] = ()
    workers: int = 0

    def __len__(self) -> int:
        return self.count

    @property
    def draws_here(self) -> bool:
        """As `Split.draws_here`."""
        return self.workers == 0 and any(isinstance(row.function, Each) for row in self.augment)

    def batch_count(self, batch_size: int, drop_last: bool = False) -> int:
        """How many batches make an epoch."""
        if batch_size < 1:
            raise DataError(f"The batch size is {batch_size}: give at least 1.")
        return self.count // batch_size if drop_last else -(-self.count // batch_size)


@dataclass(frozen=True, eq=False)
class Stream(_Streamed):
    """Images to train on: `count` an epoch. buffer: encoded images to shuffle among, over all lanes together."""

    lanes: int = 1
    buffer: int = 1

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
        """As `Split.batches`: what batch b of epoch e holds depends only on (seed, e, b)."""
        numbers = asked(self, batch_size, epoch, seed, start, rank, world, drop_last)
        look = Look(self.mean, self.std, self.augment if augment else (), self.workers)
        return _Lanes(look, self.count, batch_size, epoch, seed, rank, world, self, shuffle).batches(numbers)


@dataclass(frozen=True, eq=False)
class Row(_Streamed):
    """Images to test by, in their order. exact: there are `count` of them; otherwise the first `count` are meant."""

    exact: bool = True

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
        """As `Split.batches`, without shuffling. Each process goes through the shards, and decodes its own part."""
        if shuffle:
            raise DataError("The test images of a stream come in their order: ask for them without shuffle.")
        numbers = asked(self, batch_size, epoch, seed, start, rank, world, drop_last)
        look = Look(self.mean, self.std, self.augment if augment else (), self.workers)
        return _InOrder(look, self.count, batch_size, epoch, seed, rank, world, self, start).batches(numbers)


@dataclass(frozen=True)
class _Lanes(Epoch):
    """One epoch of a `Stream`."""

    stream: Stream
    shuffle: bool
    _open: dict[int, tuple[Iterator[Sample], int]] = field(default_factory=dict)  # and how much was taken of each

    @property
    def images(self) -> Images:
        """See `Epoch`."""
        return StreamImages(self.stream.shape)

    def take(self, number: int) -> tuple[Sequence[Sample], Tensor]:
        """See `Epoch`."""
        part, samples, place = self.part(number), list[Sample](), 0
        first = number * self.batch_size
        for lane in range(self.stream.lanes):
            begin, end = self._given(first, lane), self._given(first + self.size(number), lane)
            low, high = max(part.start, place), min(part.stop, place + end - begin)
            if low < high:  # a lane of which this process never needs anything is never opened
                samples += self._read(lane, begin + low - place, begin + high - place)
            place += end - begin
        return samples, torch.tensor([sample.label for sample in samples], dtype=torch.int64)

    def _given(self, images: int, lane: int) -> int:
        """How many of the first images of an epoch are of a lane, as if they were dealt one by one."""
        return (images + self.stream.lanes - 1 - lane) // self.stream.lanes

    def _read(self, lane: int, begin: int, end: int) -> list[Sample]:
        """Some of what a lane gives; what lies before is dropped."""
        if lane not in self._open:
            every = itertools.islice(self._round_and_round(lane), self._given(self.total, lane))
            self._open[lane] = (self._shuffled(every, lane) if self.shuffle else every, 0)
        samples, at = self._open[lane]
        self._open[lane] = (samples, end)
        return list(itertools.islice(samples, begin - at, end - at))

    def _round_and_round(self, lane: int) -> Iterator[Sample]:
        count = len(self.stream.shards.chosen)
        order = np.arange(count)
        if self.shuffle:
            order = permutation(count, seed=self.seed, purpose="order of shards", epoch=self.epoch)
        mine = order[lane :: self.stream.lanes].tolist()
        while True:
            yield from self.stream.shards.samples(mine)

    def _shuffled(self, samples: Iterator[Sample], lane: int) -> Iterator[Sample]:
        """Each time one of those in the buffer, by chance, and the next comes in its place."""
        chance = self._chance(lane)
        held = list(itertools.islice(samples, max(self.stream.buffer // self.stream.lanes, 1)))
        for sample in samples:
            place = next(chance) % len(held)
            given, held[place] = held[place], sample
            yield given
        while held:
            place = next(chance) % len(held)
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()

    def _chance(self, lane: int) -> Iterator[int]:
        for block in itertools.count():
            purpose = f"shuffle buffer of lane {lane}"
            yield from words(_DRAWN, seed=self.seed, purpose=purpose, epoch=self.epoch, batch=block).tolist()


@dataclass(frozen=True)
class _InOrder(Epoch):
    """One pass over a `Row`."""

    row: Row
    start: int
    _open: list[Iterator[Sample]] = field(default_factory=list)

    @property
    def images(self) -> Images:
        """See `Epoch`."""
        return StreamImages(self.row.shape)

    def take(self, number: int) -> tuple[Sequence[Sample], Tensor]:
        """See `Epoch`; with the last batch the count is checked."""
        if not self._open:
            everything = self.row.shards.samples(range(len(self.row.shards.chosen)))
            self._open.append(itertools.islice(everything, self.start * self.batch_size, None))
        size = self.size(number)
        whole = list(itertools.islice(self._open[0], size))
        before = number * self.batch_size
        there = before + len(whole)
        if len(whole) < size:
            raise DataError(f"{self._said} {there:,} images, and {self.total:,} were stated: {self._remedy(there)}.")
        if self.row.exact and there == self.total and next(self._open[0], None) is not None:
            raise DataError(
                f"{self._said} more than the {self.total:,} images that were stated: correct data.options.test_images."
            )
        samples = whole[self.part(number)]
        return samples, torch.tensor([sample.label for sample in samples], dtype=torch.int64)

    @property
    def _said(self) -> str:
        return "The test shards hold" if self.row.exact else "The shards held out for validation hold"

    def _remedy(self, there: int) -> str:
        if self.row.exact:
            return "correct data.options.test_images"
        return "lower data.validation, or data.options.images if there are fewer in all"


def look_into(images: StreamImages, shards: Shards, most: int) -> None:
    """Decode the first images of a stream, so that what is wrong with all of them shows at once."""
    for sample in itertools.islice(shards.samples(range(len(shards.chosen))), most):
        images.decode(sample, None)
