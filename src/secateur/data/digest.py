"""What tells one data set from another, so that a run is not continued on other images: quick, however large the set.

In memory: every pixel and label. Files and shards: names, sizes and labels of all, and the bytes of all where they are
few, else of some, evenly spread. Hugging Face: the library's own fingerprints. Streams: their shards' names and sizes,
and some bytes of those on a disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from secateur.data._files import said
from secateur.data.images import EncodedImages, Images, MemoryImages
from secateur.data.opening import Data
from secateur.data.own import OwnSplit, digest_of_own
from secateur.data.split import Split
from secateur.data.streams import Row, Stream
from secateur.errors import DataError

_FEW = 1 << 25  # bytes that are read whole
_SAMPLES, _BLOCK = 64, 1 << 16


def digest_of(data: Data) -> dict[str, str]:
    """ "sha256" of what a data set holds, and in words what that "covers".

    Raises:
        DataError: a file of it cannot be read.
    """
    found = hashlib.sha256(json.dumps([data.name, data.classes, list(data.input_size)]).encode())
    covers: list[str] = []
    if isinstance(data.train, OwnSplit):
        parts = [part for part in (data.train, data.validation, data.test) if isinstance(part, OwnSplit) and len(part)]
        covers.append(digest_of_own(parts, found))
    elif isinstance(data.train, Split):
        covers += [_images(cast(Split, part).images, found) for part in (data.train, data.test)]
    else:
        for part in (data.train, data.validation, data.test):
            shards = cast(Stream | Row, part).shards
            covers.append(_shards([shards.source.shards[number] for number in shards.chosen], found))
    if not isinstance(data.train, Split) or not isinstance(data.train.images, MemoryImages):
        # not what rows are called: a set may have been moved
        rows = [{key: row[key] for key in sorted(row) if key != "name"} for row in data.checksums()]
        found.update(json.dumps(rows).encode())
    return {"sha256": found.hexdigest(), "covers": " and ".join(dict.fromkeys(covers))}


def _images(images: Images, found: Any) -> str:
    found.update(np.ascontiguousarray(images.labels.astype("<i8")).data)
    if isinstance(images, MemoryImages):
        found.update(json.dumps(list(images.pixels.shape)).encode())
        found.update(images.pixels.numpy().data)
        return "all pixels and labels"
    if not isinstance(images, EncodedImages) or images.bytes_of(0) is None:
        return "all labels and the library's fingerprints"
    few, total = range(len(images)), 0
    for number in few:
        data = images.bytes_of(number) or b""
        total += len(data)
        if total > _FEW:
            break
        found.update(data)
    else:
        return "names, sizes, labels and bytes of all images"
    for number in np.linspace(0, len(images) - 1, min(_SAMPLES, len(images))).astype(np.int64).tolist():
        found.update(images.bytes_of(number) or b"")
    return f"names, sizes and labels of all images, and the bytes of {_SAMPLES} and of the first"


def _shards(names: list[str], found: Any) -> str:
    """Some bytes of those on a disk; their names and sizes are among the checksums."""
    local = [Path(name) for name in names if Path(name).is_file()]
    for path in local:
        for block in _blocks(path):
            found.update(block)
    return "names and sizes of shards, and some of their bytes" if local else "names of shards"


def _blocks(path: Path) -> Iterator[bytes]:
    """Some bytes of a file, evenly spread, its first and last ones among them."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            for place in np.linspace(0, max(size - _BLOCK, 0), 16).astype(np.int64).tolist():
                file.seek(place)
                yield file.read(_BLOCK)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {said(error)}.") from error
