"""Tar files as WebDataset writes them, sample by sample: on a disk, or at an address.

On a disk only headers are read here, and images where they are decoded. At an address every byte comes this way: http
and https by the standard library, s3, gs and others by fsspec. No address can name a command, as those of the library
`webdataset` can, which leaves a shard that is cut off without a word, too.
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
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from secateur.data._files import check_regular, extra, said
from secateur.data.readers.folder import EXTENSIONS
from secateur.data.streams import Place, Sample
from secateur.errors import ConfigError, DataError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_TRIES, _SECONDS = 3, 60.0
_LONGEST_LABEL = 32


def is_address(text: str) -> bool:
    """Whether it begins with a scheme, as no path does that is there."""
    return _ADDRESS.match(text) is not None and not Path(text).exists()


@dataclass(frozen=True)
class Tars:
    """Shards by path or address, and the extension of their labels. unread: gets the extensions of other members."""

    shards: Sequence[str]
    label: str
    unread: set[str] = field(default_factory=set, compare=False)

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
        check_regular(path)
        try:
            with tarfile.open(path, "r:") as archive:
                yield from _Grouped(archive, str(path), self, path).samples()
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise DataError(f"The shard {str(path)!r} cannot be read ({said(error)}): get it again.") from error

    def _distant(self, name: str) -> Iterator[Sample]:
        with contextlib.closing(opened(name)) as connection:
            tail = _Tail(connection)
            with tarfile.open(fileobj=tail, mode="r|") as archive:  # type: ignore[call-overload]
                yield from _Grouped(archive, name, self, None).samples()
            if tail.last != bytes(tarfile.BLOCKSIZE):  # which ends a whole archive; tarfile itself stops in silence
                raise tarfile.ReadError("it is cut off")


class _Grouped:
    """Members that lie side by side and share a name are a sample."""

    def __init__(self, archive: tarfile.TarFile, name: str, tars: Tars, path: Path | None) -> None:
        self.archive, self.name, self.path = archive, name, path
        self.label, self.unread = tars.label.casefold().lstrip("."), tars.unread
        self._key: str | None = None
        self._image: tuple[str, bytes | Place] | None = None
        self._label: int | None = None

    def samples(self) -> Iterator[Sample]:
        end = 0
        for member in self.archive:
            self.archive.members = []  # type: ignore[attr-defined]  # or a list of all members would grow
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            key, extension = _key_of(member.name)
            if not member.isfile() or not extension:
                continue
            if key != self._key:
                yield from self._complete()
                self._key = key
            if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
                if self._image is not None:
                    raise DataError(f"The sample {key!r} in {self.name!r} has two images: keep one of them.")
                self._image = (member.name, self._data(member))
            elif extension == self.label:
                if self._label is not None:
                    raise DataError(f"The sample {key!r} in {self.name!r} has two labels: keep one of them.")
                self._label = _label_of(self.archive, member, self.name)
            else:
                self.unread.add(extension)
        if self.path is not None:
            _check_end(self.path, end)
        yield from self._complete()

    def _data(self, member: tarfile.TarInfo) -> bytes | Place:
        if self.path is not None:
            return Place(self.path, member.offset_data, member.size, member.name)
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


def _check_end(path: Path, end: int) -> None:
    """A block of zeros follows the last member; tarfile itself stops in silence where a shard is cut off or damaged."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"The shard {str(path)!r} is cut off or damaged at byte {end:,}: get it again.")


def _key_of(name: str) -> tuple[str, str]:
    """WebDataset's rule: everything up to the first dot of the last part, and what follows it."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return str(PurePosixPath(folder) / stem) if folder else stem, extension.casefold()


def _label_of(shard: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> int:
    """The class number in a member; DataError if there is none."""
    file = shard.extractfile(member) if member.size <= _LONGEST_LABEL else None
    text = file.read().decode("ascii", "replace").strip() if file else ""
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise DataError(f"{member.name!r} in {path!r} is not a class number: it must hold a number as text.")
    return int(text)


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
