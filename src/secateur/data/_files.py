"""Small things all readers need: where a set lies, checksums, optional packages, other people's exceptions."""

from __future__ import annotations

import hashlib
import importlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secateur import _files
from secateur._hints import install
from secateur.errors import ConfigError, DataError

ENVIRONMENT = "SECATEUR_DATA"  # names the folder in which sets are looked for when a recipe gives no path
DEFAULT_FOLDER = ".data"
_CHUNK = 1 << 20
_MUCH, _TIMES = 1 << 28, 100  # bytes that may always be unpacked; images do not shrink to less than a hundredth


def data_folder() -> Path:
    """The folder for data sets without a path: $SECATEUR_DATA, or .data where the command runs."""
    return Path(os.environ.get(ENVIRONMENT) or DEFAULT_FOLDER)


def said(error: BaseException) -> str:
    """An exception of somebody else's code on one line, without addresses of objects in it."""
    text = _files.said(error)[:200] if str(error).strip() else ""
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__}{': ' + text if text else ''}"


def extra(module: str, package: str) -> Any:
    """Import an optional package.

    Raises:
        ConfigError: it is not there, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{package} cannot be imported ({said(error)}): {install('data')}") from error


def check_regular(path: str | Path) -> None:
    """DataError for what is no ordinary file: one would wait for ever at a pipe, and a device has no end."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116 (a Path each would take seconds for a million files)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {said(error)}.") from error
    if kind != stat.S_IFREG:
        what = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}.get(kind, "a device")
        raise DataError(f"{str(path)!r} is {what}, not a file: put a file in its place, or remove it.")


def check_unpacked(path: Path, size: int) -> None:
    """DataError where a compressed file unpacks to so much that it was made to fill the memory."""
    packed = path.stat().st_size
    if size > max(_MUCH, _TIMES * packed):
        raise DataError(
            f"{str(path)!r} has {packed:,} bytes and would unpack to {size:,}, more than {_TIMES} times as many, as no "
            "images do: get it again, or save it uncompressed."
        )


def read_bytes(path: Path) -> bytes:
    """The content of an ordinary file; DataError where it cannot be read."""
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {said(error)}.") from error


def entries(folder: Path) -> list[Path]:
    """What a folder holds, by name, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"The folder {str(folder)!r} cannot be read: {said(error)}.") from error


def checksums(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each file."""
    rows = []
    for path in paths:
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            rows.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()})
        except OSError as error:
            raise DataError(f"{str(path)!r} cannot be read: {said(error)}.") from error
    return rows


def checksum_of_lines(name: str, lines: Iterable[str], size: int) -> list[dict[str, Any]]:
    """One row for many files: the SHA-256 of a list of them, as reading them all would take too long."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return [{"name": name, "bytes": size, "sha256": digest.hexdigest()}]
