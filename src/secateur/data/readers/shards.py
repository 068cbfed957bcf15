"""WebDataset shards: which files and addresses a set is, and their images in any order or as a stream.

In any order: headers are read once and say where each image lies. No further package is needed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from secateur.data._files import check_regular, checksum_of_lines, extra
from secateur.data.images import EncodedImages, Shape
from secateur.data.options import ShardOptions
from secateur.data.readers import Contents, Streams, count_classes, locate, shape_of
from secateur.data.readers.tars import Tars, is_address
from secateur.data.streams import Place
from secateur.errors import ConfigError, DataError

#: Schemes that are handed to fsspec.
CLOUDS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hdfs", "hf", "oss", "oci", "ftp", "sftp")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000


class ShardImages(EncodedImages):
    """Images inside tar files on a disk, in the order of the files."""

    def __init__(self, tars: Tars, shape: Shape, check: int | None) -> None:
        self.shards = tars.shards
        self.places: list[Place] = []
        labels: list[int] = []
        for number, shard in enumerate(tars.shards):
            for sample in tars.samples(number):
                assert isinstance(sample.data, Place)
                self.places.append(sample.data)
                labels.append(sample.label)
            if not self.places or str(self.places[-1].path) != shard:
                raise DataError(f"The shard {shard!r} holds no image: leave it out of the pattern, or get it again.")
        super().__init__(np.array(labels, dtype=np.int64), shape, check)

    def load(self, number: int) -> bytes:
        return self.places[number].read()

    def where(self, number: int) -> str:
        return f"{self.places[number].name!r} in {str(self.places[number].path)!r}"


def read(path: str | None, options: ShardOptions, get: str) -> Contents:
    extra("PIL.Image", "pillow")
    address = next((a for a in (path, options.train, options.test) if a is not None and is_address(a)), None)
    if address is not None:
        raise DataError(f"{address!r} is an address: set data.options.stream: true, or copy the shards into a folder.")
    train, test = _both(path, options, get)
    shape, check = shape_of(options)
    sets = [ShardImages(tars, shape, check) for tars in (train, test)]
    classes = options.classes or count_classes(sets[0].labels, f"the shards of {str(path)!r}")
    unread = ", ".join(sorted(train.unread | test.unread))
    notes = (f"Members with these extensions were not read: {unread}.",) if unread else ()
    return Contents(sets[0], sets[1], classes, None, partial(_members, sets), notes)


def stream(path: str | None, options: ShardOptions, get: str) -> Streams:
    """The shards that `path` and the options name; those on a disk must be there."""
    extra("PIL.Image", "pillow")
    if options.classes is None:
        raise ConfigError("data.options.classes is missing: a stream does not say how many classes there are; give it.")
    if options.test is None and (path is None or is_address(path)):
        raise ConfigError("data.options.test is missing: a stream at an address needs it, such as test-{000..049}.tar.")
    sources = _both(path, options, get)
    return Streams(*sources, options.classes, None, partial(_names, sources))


def _both(path: str | None, options: ShardOptions, get: str) -> tuple[Tars, Tars]:
    """The training and the test shards, none of which is both."""
    train = _named(path, options.train, get)
    if options.test is not None:
        test = _named(path, options.test, get)
    else:
        test = [str(shard) for shard in _usual_test_shards(Path(path or "").expanduser(), get)]
    both = sorted(set(train) & set(test))
    if both:
        raise DataError(f"{both[0]!r} is in the training and in the test shards: give patterns that keep them apart.")
    return Tars(train, options.label), Tars(test, options.label)


def _named(path: str | None, pattern: str, get: str) -> list[str]:
    """A pattern that is an address stands for itself; others are relative to the folder or address of the set."""
    if is_address(pattern) or (path is not None and is_address(path)):
        whole = pattern if is_address(pattern) or path is None else f"{path.rstrip('/')}/{pattern}"
        scheme = whole.partition(":")[0].casefold()
        if scheme not in ("http", "https", *CLOUDS):
            raise ConfigError(
                f"{whole!r} begins with {scheme}:, which is not read: give a folder, http, https, {', '.join(CLOUDS)}."
            )
        if "*" in whole:
            raise DataError(f"{whole!r} cannot be listed: name the shards by ranges, such as train-{{000..146}}.tar.")
        return _expand(whole)
    folder = locate("webdataset", path, (), get)
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is a file: give the folder of the shards, and their pattern in data.options.")
    return [str(shard) for shard in _shards_in(folder, pattern, get)]


def _usual_test_shards(folder: Path, get: str) -> list[Path]:
    """test*.tar, or else val*.tar."""
    found = sorted(folder.glob("test*.tar"))
    return found or _shards_in(folder, "val*.tar", get, "test*.tar or val*.tar")


def _shards_in(folder: Path, pattern: str, get: str, said_as: str | None = None) -> list[Path]:
    """The shards of a pattern, each of which is there."""
    found: list[Path] = []
    for one in _expand(pattern):
        if Path(one).is_absolute() or ".." in Path(one).parts:
            raise DataError(
                f"The pattern {pattern!r} leaves the folder {str(folder)!r}: give it relative to data.path."
            )
        there = sorted(folder.glob(one))
        if not there:
            raise DataError(f"{str(folder)!r} has no shard {said_as or one}: {get}.")
        found += there
    packed = next((path for path in found if path.suffix in (".gz", ".tgz", ".xz", ".bz2", ".zst")), None)
    if packed is not None:
        raise DataError(f"{str(packed)!r} is compressed: unpack it to a plain .tar.")
    for path in found:
        check_regular(path)
    return found


def _expand(pattern: str) -> list[str]:
    """train-{000..002}.tar names three shards."""
    pieces: list[list[str]] = []
    position, count = 0, 1
    for found in _RANGE.finditer(pattern):
        first, last = int(found[1]), int(found[2])
        count *= last - first + 1
        if last < first or count > _MOST_SHARDS:
            raise DataError(f"The range {found[0]!r} in {pattern!r} runs backwards or is too long: write {{000..146}}.")
        numbers = [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
        pieces += [[pattern[position : found.start()]], numbers]
        position = found.end()
    return ["".join(parts) for parts in itertools.product(*pieces, [pattern[position:]])]


def _members(sets: Sequence[ShardImages]) -> list[dict[str, Any]]:
    """Names, sizes and labels of all images."""
    rows = []
    for images in sets:
        pairs = zip(images.places, images.labels.tolist(), strict=True)
        lines = [f"{place.path.name}\t{place.name}\t{place.size}\t{label}" for place, label in pairs]
        names = [Path(shard).name for shard in images.shards]
        what = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        size = sum(place.size for place in images.places)
        rows += checksum_of_lines(f"{what}: names and sizes of {len(lines)} members", lines, size)
    return rows


def _names(sources: Sequence[Tars]) -> list[dict[str, Any]]:
    """Names, and of shards on a disk sizes: reading them would take an epoch."""
    rows = []
    for source in sources:
        sizes = [Path(name).stat().st_size if not is_address(name) else 0 for name in source.shards]
        lines = [f"{name.rpartition('/')[2]}\t{size}" for name, size in zip(source.shards, sizes, strict=True)]
        what = f"{source.shards[0]} and on: names and sizes of {len(lines)} shards"
        rows += checksum_of_lines(what, lines, sum(sizes))
    return rows
