"""CIFAR-10 and CIFAR-100: the official binary version (records of label bytes and 3,072 pixel bytes), or an .npz."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.data._files import checksums, read_bytes
from secateur.data.images import MemoryImages
from secateur.data.options import Cifar100Options, Options
from secateur.data.readers import Contents, locate
from secateur.data.readers.npz import read_images
from secateur.errors import DataError

_SIZE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_OFFICIAL = (50_000, 10_000)

CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
FINE = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
COARSE = tuple(
    """aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
    vehicles_1 vehicles_2""".split()
)


@dataclass(frozen=True)
class _Version:
    """Which files hold a set, and where a record has its label."""

    name: str
    folder: str
    python: str
    train: tuple[str, ...]
    test: str
    label_bytes: int
    label_byte: int
    classes: tuple[str, ...]


_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEN = _Version("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py", _BATCHES, "test_batch.bin", 1, 0, CIFAR10)
_FINE = _Version("cifar100", "cifar-100-binary", "cifar-100-python", ("train.bin",), "test.bin", 2, 1, FINE)
_COARSE = replace(_FINE, label_byte=0, classes=COARSE)


def read_10(path: str | None, options: Options, get: str) -> Contents:
    return _read(_TEN, path, get)


def read_100(path: str | None, options: Cifar100Options, get: str) -> Contents:
    return _read(_FINE if options.labels == "fine" else _COARSE, path, get)


def _read(version: _Version, path: str | None, get: str) -> Contents:
    place = locate(version.name, path, (f"{version.name}.npz", version.folder, version.train[0]), get)
    notes: tuple[str, ...] = ()
    if place.is_file() and place.suffix.casefold() == ".npz":
        files = [place]
        train, test, notes = read_images(place, "auto")
        for part in (train, test):
            if part.size != _SIZE:
                shape = "x".join(map(str, part.size))
                raise DataError(f"The images in {str(place)!r} are {shape} and {version.name} has 3x32x32: {get}.")
    else:
        folder = _folder(version, place, get)
        files = [folder / file for file in (*version.train, version.test)]
        *parts, last = [_records(file, version, get) for file in files]
        train = MemoryImages(np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts]))
        test = MemoryImages(*last)
    counts = (len(train), len(test))
    if counts != _OFFICIAL:
        notes += (f"{counts[0]:,} training and {counts[1]:,} test images, where {version.name} has 50,000 and 10,000.",)
    return Contents(train, test, len(version.classes), version.classes, partial(checksums, files), notes)


def _folder(version: _Version, place: Path, get: str) -> Path:
    """The folder with the binary files: the one given, or the one of the official name in it."""
    first = version.train[0]
    if place.is_file():
        if place.name == first:
            return place.parent
        packed = place.name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))
        hint = "unpack it and give the folder" if packed else get
        raise DataError(f"{str(place)!r} is neither a folder nor an .npz file: {hint}.")
    for folder in (place, place / version.folder):
        if (folder / first).is_file():
            return folder
    for folder in (place, place / version.python):
        if (folder / Path(first).stem).is_file():
            raise DataError(f"{str(folder)!r} holds the Python version, a pickle, which can run code when read: {get}.")
    raise DataError(f"{str(place)!r} does not hold {first}, the binary version of {version.name}: {get}.")


def _records(file: Path, version: _Version, get: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not file.is_file():
        raise DataError(f"{file.name} is missing from {str(file.parent)!r}: {get}.")
    content = read_bytes(file)
    record = version.label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{str(file)!r} has {len(content):,} bytes, which is not a whole number of images of {record:,}: "
            f"it is empty or cut off; {get}."
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return rows[:, version.label_bytes :].reshape(-1, *_SIZE), rows[:, version.label_byte].astype(np.int64)
