"""Arrays in a numpy .npz file: x_train, y_train, x_test, y_test (or train_images and so on, as MedMNIST has them)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secateur.data._files import checksums, said
from secateur.data.images import MemoryImages
from secateur.data.options import NpzOptions
from secateur.data.readers import Contents, locate
from secateur.errors import DataError

_NAMES = {
    "x_train": ("x_train", "train_images"),
    "y_train": ("y_train", "train_labels"),
    "x_test": ("x_test", "test_images"),
    "y_test": ("y_test", "test_labels"),
}
_COLOURS = (1, 3)
Layout = Literal["auto", "nchw", "nhwc"]


def read(path: str | None, options: NpzOptions, get: str) -> Contents:
    file = locate("npz", path, (), get)
    train, test, notes = read_images(file, options.layout)
    classes = options.classes or int(train.labels.max(initial=0)) + 1
    if options.classes is None:
        absent = np.setdiff1d(np.arange(classes), train.labels)
        if len(absent):
            raise DataError(
                f"No training image in {str(file)!r} has the label {absent[0]}, though labels reach {classes - 1}: "
                "number them from 0 without a gap, or give data.options.classes."
            )
    return Contents(train, test, classes, None, partial(checksums, [file]), notes)


def read_images(file: Path, layout: Layout) -> tuple[MemoryImages, MemoryImages, tuple[str, ...]]:
    """The training and test images of a file, and what there is to say about it."""
    arrays, others = _arrays(file)
    sets = []
    for part in ("train", "test"):
        pixels = _pixels(arrays[f"x_{part}"], f"x_{part} in {str(file)!r}", layout)
        sets.append(MemoryImages(pixels, _labels(arrays[f"y_{part}"], len(pixels), part, file)))
    notes = (f"{file.name} also holds {', '.join(others)}, which were not read.",) if others else ()
    return sets[0], sets[1], notes


def _arrays(file: Path) -> tuple[Mapping[str, NDArray[Any]], list[str]]:
    """The four arrays, and the names of others; without pickle, whatever the file asks for."""
    if file.is_dir():
        raise DataError(f"{str(file)!r} is a folder: give the .npz file in data.path.")
    try:
        stored: Any = np.load(file, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise DataError(f"{str(file)!r} is a single array: save x_train, y_train, x_test, y_test with numpy.savez.")
        with stored:
            found = {}
            for key, names in _NAMES.items():
                name = next((name for name in names if name in stored.files), None)
                if name is None:
                    held = ", ".join(stored.files[:8]) or "nothing"
                    raise DataError(f"{str(file)!r} has no array {key!r}: it holds {held}; save it with that name.")
                found[key] = stored[name]
            read = {name for names in _NAMES.values() for name in names}
            return found, [name for name in stored.files if name not in read]
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
        raise DataError(f"{str(file)!r} cannot be read as .npz ({said(error)}): get or make it again.") from error


def _pixels(array: NDArray[Any], what: str, layout: Layout) -> NDArray[np.uint8]:
    """[N, H, W], [N, C, H, W] or [N, H, W, C] to [N, C, H, W]."""
    shape = "x".join(map(str, array.shape))
    if array.dtype != np.uint8:
        raise DataError(f"{what} is {array.dtype}: save the images as uint8, 0 to 255.")
    if array.ndim not in (3, 4):
        raise DataError(f"{what} has the shape {shape}: save it as images x height x width x colours.")
    if array.ndim == 3:
        array = array[:, None]
    elif _is_last(array.shape, what, layout):
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in _COLOURS:
        raise DataError(f"{what} has the shape {shape}: images have 1 or 3 colours, not {array.shape[1]}.")
    if 0 in array.shape[2:]:
        raise DataError(f"{what} has the shape {shape}: its images have no pixels; make the file again.")
    return array


def _is_last(shape: tuple[int, ...], what: str, layout: Layout) -> bool:
    """Whether the colours are the last axis."""
    if layout != "auto":
        return layout == "nhwc"
    first, last = shape[1] in _COLOURS, shape[3] in _COLOURS
    if first == last:
        doubt = "could have its colours first or last" if first else "has no axis of 1 or 3 colours"
        raise DataError(
            f"{what} has the shape {'x'.join(map(str, shape))} and {doubt}: "
            "save 1 or 3 colours, and give data.options.layout if there is doubt."
        )
    return last


def _labels(array: NDArray[Any], count: int, part: str, file: Path) -> NDArray[np.int64]:
    what = f"y_{part} in {str(file)!r}"
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{what} has the shape {'x'.join(map(str, array.shape))}: save one number for each image.")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{what} is {array.dtype}: save the labels as whole numbers from 0.")
    if len(array) != count:
        raise DataError(f"{what} has {len(array)} labels for {count} images: save one for each.")
    if array.dtype == np.uint64 and (array > np.uint64(np.iinfo(np.int64).max)).any():
        raise DataError(f"{what} has labels beyond 2^63: number the classes from 0.")
    return array.astype(np.int64)
