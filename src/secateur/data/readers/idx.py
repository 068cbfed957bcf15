"""Fashion-MNIST in its IDX files, plain or gzipped: a magic number, the sizes, then the bytes."""

from __future__ import annotations

import gzip
import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.data._files import check_unpacked, checksums, said
from secateur.data.images import MemoryImages
from secateur.data.options import Options
from secateur.data.readers import Contents, locate
from secateur.errors import DataError

NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_PLACES = (
    "fashion-mnist",
    "fashion_mnist",
    "FashionMNIST/raw",
    "train-images-idx3-ubyte.gz",
    "train-images-idx3-ubyte",
)
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DEFLATED = 1032  # times as many bytes, at most, come out of gzip
_UBYTE = 8  # the code of the only element type that images and labels come in


def read(path: str | None, options: Options, get: str) -> Contents:
    place = locate("fashion_mnist", path, _PLACES, get)
    if place.is_file():
        if not place.name.startswith(_FILES[0]):
            raise DataError(f"{str(place)!r} is a file, and fashion_mnist is four of them: give their folder.")
        place = place.parent
    raw = place / "FashionMNIST" / "raw"
    folder = raw if raw.is_dir() else place
    files = [_file(folder, name, get) for name in _FILES]
    arrays = [_array(file, dimensions, get) for file, dimensions in zip(files, (3, 1, 3, 1), strict=True)]
    sets = []
    for pixels, labels, file in ((arrays[0], arrays[1], files[0]), (arrays[2], arrays[3], files[2])):
        if len(pixels) != len(labels):
            raise DataError(f"{str(file)!r} has {len(pixels)} images for {len(labels)} labels: {get}.")
        if pixels.shape[1:] != (28, 28):
            shape = "x".join(map(str, pixels.shape[1:]))
            raise DataError(f"The images in {str(file)!r} are {shape} and fashion_mnist has 28x28: {get}.")
        sets.append(MemoryImages(pixels[:, None], labels.astype(np.int64)))
    return Contents(sets[0], sets[1], len(NAMES), NAMES, partial(checksums, files))


def _file(folder: Path, name: str, get: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if file.is_file():
            return file
    raise DataError(f"{name} (or {name}.gz) is missing from {str(folder)!r}: {get}.")


def _array(file: Path, dimensions: int, get: str) -> NDArray[np.uint8]:
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, _UBYTE, dimensions)) or len(header) < 4 + 4 * dimensions:
                raise DataError(f"{str(file)!r} is not an IDX file of {dimensions} dimensions of bytes: {get}.")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            _check_size(file, size, len(header), get)
            content = np.empty(size, dtype=np.uint8)
            there = _fill(stream, content.data)
            more = stream.read(1)
    except DataError:
        raise
    except Exception as error:  # gzip and zlib each have their own for a damaged file
        raise DataError(f"{str(file)!r} cannot be read ({said(error)}): {get}.") from error
    if there < size or more:
        held = "more" if more else f"only {there:,}"
        raise DataError(f"{str(file)!r} promises {size:,} bytes and holds {held}: it is damaged; {get}.")
    return content.reshape(shape)


def _check_size(file: Path, size: int, header: int, get: str) -> None:
    """A damaged header may promise more than there is memory for."""
    packed = file.stat().st_size
    most = _DEFLATED * packed if file.suffix == ".gz" else packed - header
    if size > most:
        raise DataError(f"{str(file)!r} promises {size:,} bytes and holds only {most:,}: it is damaged; {get}.")
    check_unpacked(file, size)


def _fill(stream: Any, target: memoryview) -> int:
    """Read until it is full or there is no more; how much that was."""
    place = 0
    while place < len(target) and (count := stream.readinto(target[place : place + (1 << 22)])):
        place += count
    return place
