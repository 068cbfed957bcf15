"""One reader for each form in which data sets come. Each gives training and test images; nothing is split here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.data._files import data_folder
from secateur.data.images import Images, Shape
from secateur.data.options import ImageOptions
from secateur.data.streams import Source
from secateur.errors import ConfigError, DataError


@dataclass(frozen=True)
class Contents:
    """A data set as it was found. `checksums` is called when asked for: reading everything again takes a while."""

    train: Images
    test: Images
    classes: int
    class_names: tuple[str, ...] | None
    checksums: Callable[[], list[dict[str, Any]]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Streams:
    """A data set that is read as a stream; see `secateur.data.streams`."""

    train: Source
    test: Source
    classes: int
    class_names: tuple[str, ...] | None
    checksums: Callable[[], list[dict[str, Any]]]
    notes: tuple[str, ...] = ()


def locate(name: str, path: str | None, places: Sequence[str], get: str) -> Path:
    """The file or folder of a set: the path given, or the first of the usual places in the data folder.

    Raises:
        DataError: it is not there; the sentence ends with how to get it.
    """
    if path is not None:
        found = Path(path).expanduser()
        if not found.exists():
            raise DataError(f"There is no {path!r} to read {name} from: {get}.")
        return found
    folder = data_folder()
    for place in places:
        if (folder / place).exists():
            return folder / place
    if not places:
        raise DataError(f"The data set {name} needs data.path: {get}.")
    raise DataError(f"{name} is not in {str(folder)!r} (no {', no '.join(places)}): {get}, or give data.path.")


def count_classes(labels: NDArray[np.int64], where: str) -> int:
    """How many classes labels from 0 without a gap tell apart; however large a label, nothing of its size is made.

    Raises:
        DataError: a number is left out below the largest.
    """
    there = np.unique(labels[labels >= 0])  # negative ones are refused with the image they belong to
    gaps = np.flatnonzero(there != np.arange(len(there)))
    if len(gaps):
        raise DataError(
            f"No training image in {where} has the label {gaps[0]}, though labels reach {there[-1]}: "
            "number them from 0 without a gap, or give data.options.classes."
        )
    return len(there)


def shape_of(options: ImageOptions) -> tuple[Shape, int | None]:
    """What the options of an encoded set say about sizes, and how many images to check (None: all)."""
    resize = options.resize if options.resize is not None else round(options.size / 0.875)
    if resize < options.size:
        raise ConfigError(
            f"data.options.resize {resize} is less than size {options.size}: the middle is cut out of it."
        )
    return Shape(options.channels, options.size, resize), None if options.check == "all" else options.check
