"""WebDataset shards: plain tar files in which the members of one sample share a name and differ in their extension.

The standard library finds where each image lies; then they are read in any order, and no further package is needed.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from secateur.data._files import check_regular, checksum_of_lines, extra, said
from secateur.data.images import EncodedImages, Shape
from secateur.data.options import ShardOptions
from secateur.data.readers import Contents, count_classes, locate, shape_of
from secateur.data.readers.folder import EXTENSIONS
from secateur.errors import DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS, _LONGEST_LABEL = 100_000, 32


class Sample(NamedTuple):
    shard: int
    name: str
    offset: int
    size: int
    label: int


class ShardImages(EncodedImages):
    """Images inside tar files, found by their place in the file."""

    def __init__(self, shards: list[Path], samples: list[Sample], shape: Shape, check: int | None) -> None:
        super().__init__(np.array([sample.label for sample in samples], dtype=np.int64), shape, check)
        self.shards, self.samples = shards, samples

    def load(self, number: int) -> bytes:
        sample = self.samples[number]
        try:
            with self.shards[sample.shard].open("rb") as file:  # opened anew: workers must not share a position
                file.seek(sample.offset)
                return file.read(sample.size)
        except OSError as error:
            raise DataError(f"cannot be read: {said(error)}.") from error

    def where(self, number: int) -> str:
        sample = self.samples[number]
        return f"{sample.name!r} in {str(self.shards[sample.shard])!r}"


def read(path: str | None, options: ShardOptions, get: str) -> Contents:
    extra("PIL.Image", "pillow")
    if path is not None and re.match(r"[a-z0-9]+:", path) and not Path(path).exists():
        raise DataError(f"{path!r} is an address: set data.options.stream: true, or copy the shards into a folder.")
    folder = locate("webdataset", path, (), get)
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is a file: give the folder of the shards, and their pattern in data.options.")
    train = shards_in(folder, options.train, get)
    test = shards_in(folder, options.test, get) if options.test else usual_test_shards(folder, get)
    both = sorted(set(train) & set(test))
    if both:
        raise DataError(
            f"{str(both[0])!r} is in the training and in the test shards: give patterns that keep them apart."
        )
    shape, check = shape_of(options)
    unread: set[str] = set()
    sets = [ShardImages(shards, _index(shards, options.label, unread), shape, check) for shards in (train, test)]
    classes = options.classes or count_classes(sets[0].labels, f"the shards of {str(folder)!r}")
    notes = (f"Members with these extensions were not read: {', '.join(sorted(unread))}.",) if unread else ()
    return Contents(sets[0], sets[1], classes, None, partial(_checksums, sets), notes)


def usual_test_shards(folder: Path, get: str) -> list[Path]:
    """test*.tar, or else val*.tar."""
    found = sorted(folder.glob("test*.tar"))
    return found or shards_in(folder, "val*.tar", get, "test*.tar or val*.tar")


def shards_in(folder: Path, pattern: str, get: str, said_as: str | None = None) -> list[Path]:
    """The shards of a pattern, each of which is there."""
    found: list[Path] = []
    for one in expand(pattern):
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


def expand(pattern: str) -> list[str]:
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


def _index(shards: list[Path], label_extension: str, unread: set[str]) -> list[Sample]:
    """Every sample of the shards in their order: where its image lies, and its label."""
    samples: list[Sample] = []
    for number, path in enumerate(shards):
        before = len(samples)
        check_regular(path)
        try:
            with tarfile.open(path, "r:") as shard:
                samples += _samples(shard, number, path, label_extension, unread)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise DataError(f"The shard {str(path)!r} cannot be read ({said(error)}): get it again.") from error
        if len(samples) == before:
            raise DataError(f"The shard {str(path)!r} holds no image: leave it out of the pattern, or get it again.")
    return samples


def _samples(shard: tarfile.TarFile, number: int, path: Path, label_extension: str, unread: set[str]) -> list[Sample]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    end = 0
    for member in shard:
        end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        key, extension = key_of(member.name)
        if not member.isfile() or not extension:
            continue
        if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
            if key in images:
                raise DataError(f"The sample {key!r} in {str(path)!r} has two images: keep one of them.")
            images[key] = member
        elif extension == label_extension.casefold().lstrip("."):
            if key in labels:
                raise DataError(f"The sample {key!r} in {str(path)!r} has two labels: keep one of them.")
            labels[key] = label_of(shard, member, str(path))
        else:
            unread.add(extension)
    check_end(path, end)
    for key in images:
        if key not in labels:
            raise DataError(
                f"The sample {key!r} in {str(path)!r} has no member {key}.{label_extension}: "
                "name the extension of the labels in data.options.label."
            )
    return [Sample(number, m.name, m.offset_data, m.size, labels[key]) for key, m in images.items()]


def check_end(path: Path, end: int) -> None:
    """A block of zeros follows the last member; tarfile itself stops in silence where a shard is cut off or damaged."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"The shard {str(path)!r} is cut off or damaged at byte {end:,}: get it again.")


def key_of(name: str) -> tuple[str, str]:
    """WebDataset's rule: everything up to the first dot of the last part, and what follows it."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return str(PurePosixPath(folder) / stem) if folder else stem, extension.casefold()


def label_of(shard: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> int:
    """The class number in a member; DataError if there is none."""
    file = shard.extractfile(member) if member.size <= _LONGEST_LABEL else None
    text = file.read().decode("ascii", "replace").strip() if file else ""
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise DataError(f"{member.name!r} in {path!r} is not a class number: it must hold a number as text.")
    return int(text)


def _checksums(sets: list[ShardImages]) -> list[dict[str, Any]]:
    rows = []
    for images in sets:
        lines = [f"{images.shards[s.shard].name}\t{s.name}\t{s.size}\t{s.label}" for s in images.samples]
        names = [path.name for path in images.shards]
        what = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        rows += checksum_of_lines(f"{what}: names and sizes of {len(lines)} members", lines, _bytes(images))
    return rows


def _bytes(images: ShardImages) -> int:
    return sum(sample.size for sample in images.samples)
