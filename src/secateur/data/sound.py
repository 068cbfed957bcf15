"""`data.on_broken: skip`: which images can be read, found before anything is trained; the others are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from secateur.data.images import EncodedImages, Images
from secateur.data.order import Indices
from secateur.data.readers import Contents
from secateur.errors import ConfigError, DataError

_SHOWN = 3  # of what is left out


class Kept(EncodedImages):
    """Some of a set's images."""

    def __init__(self, images: EncodedImages, numbers: Indices) -> None:
        super().__init__(images.labels[numbers], images.shape, 0)  # all have been decoded already
        self._images, self._numbers = images, numbers

    def load(self, number: Any) -> Any:
        """See `EncodedImages`."""
        return self._images.load(int(self._numbers[number]))

    def where(self, number: Any) -> str:
        """See `Images`."""
        return self._images.where(int(self._numbers[number]))


def readable(count: int, read: Callable[[int], object], workers: int) -> tuple[Indices, list[str]]:
    """The numbers below `count` that can be read, and a sentence for each other.

    read: DataError for what cannot be read. workers: threads that read, where there are several.
    """

    def fault(number: int) -> str:
        try:
            read(number)
        except DataError as error:
            return str(error)
        return ""

    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            faults = list(pool.map(fault, range(count)))
    else:
        faults = [fault(number) for number in range(count)]
    return np.array([n for n, said in enumerate(faults) if not said], np.int64), [said for said in faults if said]


def left_out(what: str, count: int, faults: Sequence[str]) -> tuple[str, ...]:
    """The sentence that counts what is left out of `count`; none where nothing is."""
    if not faults:
        return ()
    shown = " ".join(faults[:_SHOWN]) + (" ..." if len(faults) > _SHOWN else "")
    are = "is" if len(faults) == 1 else "are"
    return (f"{len(faults):,} of {count:,} {what} cannot be read and {are} left out: {shown}",)


def without_broken(name: str, contents: Contents, workers: int) -> Contents:
    """A set without the images that cannot be decoded; its notes count them.

    Raises:
        ConfigError: its images lie in memory, where none is broken. DataError: a class has no whole image left.
    """
    train, test = contents.train, contents.test
    if not isinstance(train, EncodedImages) or not isinstance(test, EncodedImages):
        raise ConfigError(f"data.on_broken has no effect on {name}, which is in memory: leave it out.")
    notes, kept = list(contents.notes), list[Images]()
    for what, images in (("training images", train), ("test images", test)):
        numbers, faults = readable(len(images), lambda number, images=images: images.decode(number, None), workers)  # type: ignore[misc]
        notes += left_out(what, len(images), faults)
        lost = sorted(set(images.labels.tolist()) - set(images.labels[numbers].tolist()))
        if lost and what == "training images":
            called = contents.class_names[lost[0]] if contents.class_names else lost[0]
            raise DataError(f"No training image of the class {called!r} can be read: {faults[0]}")
        kept.append(Kept(images, numbers) if faults else images)
    return replace(contents, train=kept[0], test=kept[1], notes=tuple(notes))
