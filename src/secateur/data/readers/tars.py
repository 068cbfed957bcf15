"""WebDataset shards as a stream: tar files read from their beginning, on a disk or at an address.

On a disk only headers are read here, and images where they are decoded. At an address every byte comes this way: http
and https by the standard library, s3, gs and others by fsspec. No address can name a command.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from secateur.data._files import checksum_of_lines, extra, said
from secateur.data.options import ShardOptions
from secateur.data.readers import Streams, locate
from secateur.data.readers.folder import EXTENSIONS
from secateur.data.readers.shards import check_end, expand, key_of, label_of, shards_in, usual_test_shards
from secateur.data.streams import Place, Sample
from secateur.errors import ConfigError, DataError

#: Schemes that are handed to fsspec.
CLOUDS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hdfs", "hf", "oss", "oci", "ftp", "sftp")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_TRIES, _SECONDS = 3, 60.0


def is_address(text: str) -> bool:
    """Whether it begins with a scheme, as no path does that is there."""
    return _ADDRESS.match(text) is not None and not Path(text).exists()


@dataclass(frozen=True)
class Tars:
    """Shards by path or address, and the extension of their labels."""

    shards: Sequence[str]
    label: str

    def samples(self, shard: int) -> Iterator[Sample]:
        """See `Source`. A connection that breaks is made again, twice, and goes on behind what was given."""
        name = self.shards[shard]
        if not is_address(name):
            yield from self._local(Path(name))
            return
        given = 0
        for left in reversed(range(_TRIES)):
            try:
                for number, sample in enumerate(self._distant(name)):
                    if number >= given:
                        given += 1
                        yield sample
                return
            except (OSError, tarfile.TarError, http.client.HTTPException, EOFError) as error:  # noqa: PERF203
                final = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if final or not left:
                    raise DataError(
                        f"The shard {name!r} cannot be read ({said(error)}): check its address and the network."
                    ) from error
                time.sleep(0.5)

    def _local(self, path: Path) -> Iterator[Sample]:
        try:
            with tarfile.open(path, "r:") as archive:
                yield from _Grouped(archive, str(path), self.label, path).samples()
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise DataError(f"The shard {str(path)!r} cannot be read ({said(error)}): get it again.") from error

    def _distant(self, name: str) -> Iterator[Sample]:
        with contextlib.closing(opened(name)) as connection:
            tail = _Tail(connection)
            with tarfile.open(fileobj=tail, mode="r|") as archive:  # type: ignore[call-overload]
                yield from _Grouped(archive, name, self.label, None).samples()
            if tail.last != bytes(tarfile.BLOCKSIZE):  # which ends a whole archive; tarfile itself stops in silence
                raise tarfile.ReadError("it is cut off")


def stream(path: str | None, options: ShardOptions, get: str) -> Streams:
    """The shards that `path` and the options name; those on a disk must be there."""
    extra("PIL.Image", "pillow")
    if options.classes is None:
        raise ConfigError("data.options.classes is missing: a stream does not say how many classes there are; give it.")
    train = _named(path, options.train, get)
    if options.test is None and (path is None or is_address(path)):
        raise ConfigError("data.options.test is missing: a stream at an address needs it, such as test-{000..049}.tar.")
    if options.test is not None:
        test = _named(path, options.test, get)
    else:
        test = [str(shard) for shard in usual_test_shards(Path(path or "").expanduser(), get)]
    both = sorted(set(train) & set(test))
    if both:
        raise DataError(f"{both[0]!r} is in the training and in the test shards: give patterns that keep them apart.")
    sources = Tars(train, options.label), Tars(test, options.label)
    return Streams(*sources, options.classes, None, partial(_checksums, sources))


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
        return expand(whole)
    folder = locate("webdataset", path, (), get)
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is a file: give the folder of the shards, and their pattern in data.options.")
    return [str(shard) for shard in shards_in(folder, pattern, get)]


def _checksums(sources: Sequence[Tars]) -> list[dict[str, Any]]:
    """Names, and of shards on a disk sizes: reading them would take an epoch."""
    rows = []
    for source in sources:
        sizes = [Path(name).stat().st_size if not is_address(name) else 0 for name in source.shards]
        lines = [f"{name.rpartition('/')[2]}\t{size}" for name, size in zip(source.shards, sizes, strict=True)]
        what = f"{source.shards[0]} and on: names and sizes of {len(lines)} shards"
        rows += checksum_of_lines(what, lines, sum(sizes))
    return rows


class _Grouped:
    """Members that lie side by side and share a name are a sample."""

    def __init__(self, archive: tarfile.TarFile, name: str, label: str, path: Path | None) -> None:
        self.archive, self.name, self.label, self.path = archive, name, label, path
        self._key: str | None = None
        self._image: tuple[str, bytes | Place] | None = None
        self._label: int | None = None

    def samples(self) -> Iterator[Sample]:
        end = 0
        for member in self.archive:
            self.archive.members = []  # type: ignore[attr-defined]  # or a list of all members would grow
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            key, extension = key_of(member.name)
            if not member.isfile() or not extension:
                continue
            if key != self._key:
                yield from self._complete()
                self._key = key
            if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
                if self._image is not None:
                    raise DataError(f"The sample {key!r} in {self.name!r} has two images: keep one of them.")
                self._image = (member.name, self._data(member))
            elif extension == self.label.casefold().lstrip("."):
                if self._label is not None:
                    raise DataError(f"The sample {key!r} in {self.name!r} has two labels: keep one of them.")
                self._label = label_of(self.archive, member, self.name)
        if self.path is not None:
            check_end(self.path, end)
        yield from self._complete()

    def _data(self, member: tarfile.TarInfo) -> bytes | Place:
        if self.path is not None:
            return Place(self.path, member.offset_data, member.size)
        file = self.archive.extractfile(member)
        return b"" if file is None else file.read()

    def _complete(self) -> Iterator[Sample]:
        if self._image is not None:
            name, data = self._image
            if self._label is None:
                raise DataError(
                    f"The sample {self._key!r} in {self.name!r} has no member {self._key}.{self.label} beside it: name "
                    "the extension of the labels in data.options.label, or write samples one after another."
                )
            yield Sample(data, self._label, f"{name!r} in {self.name!r}")
        self._image = self._label = None


class _Tail:
    """A file that remembers the last block that was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.last = file, b""

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        self.last = (self.last + found)[-tarfile.BLOCKSIZE :]
        return found


def opened(address: str) -> IO[bytes]:
    """What lies at an address, to be read from its beginning."""
    scheme = address.partition(":")[0].casefold()
    if scheme in ("http", "https"):
        found: IO[bytes] = urllib.request.urlopen(address, timeout=_SECONDS)
        return found
    fsspec: Any = extra("fsspec", "fsspec")
    try:
        file: IO[bytes] = fsspec.open(address, "rb").open()
    except ImportError as error:
        raise ConfigError(f"{address!r} needs another package: {said(error)}.") from error
    except (ValueError, RuntimeError) as error:  # of the packages underneath, about the address
        raise OSError(said(error)) from error
    return file
