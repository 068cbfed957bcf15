"""Fashion-MNIST in its IDX files, plain or gzipped: a magic number, the sizes, then the bytes."""

from __future__ import annotations

import gzip
import math
import struct
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.data._files import checksums, said
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
            content = _at_most(stream, size + 1)
    except DataError:
        raise
    except Exception as error:  # gzip and zlib each have their own for a damaged file
        raise DataError(f"{str(file)!r} cannot be read ({said(error)}): {get}.") from error
    if len(content) != size:
        there = f"only {len(content):,}" if len(content) < size else "more"
        raise DataError(f"{str(file)!r} promises {size:,} bytes and holds {there}: it is damaged; {get}.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _at_most(stream: object, size: int) -> bytes:
    """Read in pieces: a damaged header may promise more than there is memory for."""
    parts, left = [], size
    while left > 0 and (part := stream.read(min(left, 1 << 22))):  # type: ignore[attr-defined]
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
