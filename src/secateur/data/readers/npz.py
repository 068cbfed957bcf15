"""Arrays in a numpy .npz file: x_train, y_train, x_test, y_test (or train_images and so on, as MedMNIST has them)."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from secateur.data._files import check_regular, check_unpacked, checksums, said
from secateur.data.images import MemoryImages
from secateur.data.options import NpzOptions
from secateur.data.readers import Contents, count_classes, locate
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
    classes = options.classes or count_classes(train.labels, repr(str(file)))
    return Contents(train, test, classes, None, partial(checksums, [file]), notes)


def read_images(file: Path, layout: Layout) -> tuple[MemoryImages, MemoryImages, tuple[str, ...]]:
    """The training and test images of a file, and what there is to say about it."""
    arrays, others = _arrays(file)
    sets = []
    for part in ("train", "test"):
        pixels = images_of(arrays[f"x_{part}"], f"x_{part} in {str(file)!r}", layout)
        sets.append(MemoryImages(pixels, _labels(arrays[f"y_{part}"], len(pixels), part, file)))
    notes = (f"{file.name} also holds {', '.join(others)}, which were not read.",) if others else ()
    return sets[0], sets[1], notes


def _arrays(file: Path) -> tuple[Mapping[str, NDArray[Any]], list[str]]:
    """The four arrays, and the names of others; without pickle, whatever the file asks for."""
    if file.is_dir():
        raise DataError(f"{str(file)!r} is a folder: give the .npz file in data.path.")
    check_regular(file)
    try:
        _check_zip(file)
        with np.load(file, allow_pickle=False) as stored:
            chosen = _chosen(file, stored.files)
            _check_sizes(file, list(chosen.values()))
            read = {name for names in _NAMES.values() for name in names}
            found = {key: stored[name] for key, name in chosen.items()}
            return found, [name for name in stored.files if name not in read]
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
        raise DataError(f"{str(file)!r} cannot be read as .npz ({said(error)}): get or make it again.") from error


def _check_zip(file: Path) -> None:
    """numpy takes whatever is no zip file for a pickle."""
    if zipfile.is_zipfile(file):
        return
    with file.open("rb") as stream:
        array = stream.read(6) == b"\x93NUMPY"
    if array:
        raise DataError(f"{str(file)!r} is a single array: save x_train, y_train, x_test, y_test with numpy.savez.")
    raise DataError(f"{str(file)!r} cannot be read as .npz (it is no zip file, or is cut off): get or make it again.")


def _chosen(file: Path, there: Sequence[str]) -> dict[str, str]:
    """Which array of the file is which."""
    found = {}
    for key, names in _NAMES.items():
        name = next((name for name in names if name in there), None)
        if name is None:
            held = ", ".join(there[:8]) or "nothing"
            raise DataError(f"{str(file)!r} has no array {key!r}: it holds {held}; save it with that name.")
        found[key] = name
    return found


def _check_sizes(file: Path, names: Sequence[str]) -> None:
    """What the arrays take in memory, from their headers alone, before any of it is taken."""
    total = 0
    with zipfile.ZipFile(file) as archive:
        for name in names:
            info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
            with archive.open(info) as member:
                shape, dtype = _header(member)
            if dtype.hasobject:
                raise DataError(
                    f"{name} in {str(file)!r} holds Python objects, a pickle, which may run code when it is read: save "
                    "plain arrays, images as uint8 and labels as whole numbers."
                )
            size = math.prod(shape) * dtype.itemsize
            if size > info.file_size:
                raise DataError(
                    f"{name} in {str(file)!r} promises {size:,} bytes and has {info.file_size:,}: it is damaged; get "
                    "or make it again."
                )
            total += size
    check_unpacked(file, total)


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, at the beginning of its member."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def images_of(array: NDArray[Any], what: str, layout: Layout) -> NDArray[np.uint8]:
    """[N, H, W], [N, C, H, W] or [N, H, W, C] to [N, C, H, W]; DataError for what are no images of 8 bits."""
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
