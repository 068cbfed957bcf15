"""Files written whole or not at all, and JSON read without any freedom; every room that touches the disk uses these.

A writer that dies at any moment leaves the old file or the new one under its name, never half of either.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secateur.errors import RunError, SecateurError

_OBJECT = re.compile(r"\s*<[\w.]+ object at 0x[0-9a-fA-F]+>")
#: What a disk or its rights refuse, whatever is to be read or written.
_SYSTEM = frozenset(
    getattr(errno, name)
    for name in "EROFS EACCES EPERM ENAMETOOLONG ENOSPC EDQUOT ELOOP EMFILE ENFILE EIO ENOTDIR EISDIR EFBIG".split()
    if hasattr(errno, name)
)
_MOST_BYTES = 1 << 28  # no document of ours comes near; a foreign file must not fill the memory


def write_bytes(
    path: str | os.PathLike[str], data: bytes, *, what: str = "The file", error: type[SecateurError] = RunError
) -> None:
    """Write `data` under a temporary name beside `path`, make it durable, then rename it.

    Raises:
        error: it cannot be written; `what` begins the sentence, and what was there before still is.
    """
    target = Path(path)
    try:
        _replace(target, data)
    except (OSError, ValueError) as problem:
        raise error(f"{what} cannot be written to {str(path)!r}: {said(problem)}.") from problem
    _sync_folder(target.parent)


def write_text(
    path: str | os.PathLike[str], text: str, *, what: str = "The file", error: type[SecateurError] = RunError
) -> None:
    """Write `text` as UTF-8, as `write_bytes` does."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as problem:  # half a surrogate pair, from a file name or a damaged JSON
        raise error(f"{what} cannot be written to {str(path)!r}: {said(problem)}.") from problem
    write_bytes(path, data, what=what, error=error)


def write_json(
    path: str | os.PathLike[str], document: Any, *, what: str = "The file", error: type[SecateurError] = RunError
) -> None:
    """Write `document` as strict JSON (no NaN or Infinity), as `write_bytes` does."""
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False, indent=2)
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(
            f"{what} cannot be written to {str(path)!r}: its content is not JSON ({said(problem)})."
        ) from problem
    write_text(path, text + "\n", what=what, error=error)


def read_json(
    path: str | os.PathLike[str],
    *,
    what: str = "The file",
    error: type[SecateurError] = RunError,
    most: int = _MOST_BYTES,
) -> Any:
    """Read strict JSON: UTF-8, no key twice in an object, no NaN or Infinity, at most `most` bytes.

    Raises:
        error: it cannot be read or is anything else; `what` begins the sentence.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ValueError(f"it is larger than {most} bytes")
        text = data.decode("utf-8")
    except (OSError, ValueError) as problem:
        raise error(f"{what} {str(path)!r} cannot be read: {said(problem)}.") from problem
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{what} {str(path)!r} is not valid JSON: {said(problem)}.") from problem


def append_line(
    path: str | os.PathLike[str], row: Any, *, what: str = "The file", error: type[SecateurError] = RunError
) -> None:
    """Add one line of strict JSON to a file, whole and durable; a file that is not there is made, its folder is not.

    Raises:
        error: it cannot be written; `what` begins the sentence.
    """
    target = Path(path)
    try:
        with target.open("ab") as file:
            file.write(_line(row).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise error(f"{what} cannot be written to {str(path)!r}: {said(problem)}.") from problem


def whole_lines(
    path: str | os.PathLike[str], *, what: str = "The file", error: type[SecateurError] = RunError
) -> list[dict[str, Any]]:
    """The objects of a file that `append_line` wrote, up to a line that a crash tore; none where there is no file.

    Raises:
        error: it cannot be read; `what` begins the sentence.
    """
    target, found = Path(path), []
    try:
        text = target.read_bytes().decode(errors="replace") if target.exists() else ""
    except OSError as problem:
        raise error(f"{what} {str(path)!r} cannot be read: {said(problem)}.") from problem
    for line in text.splitlines(keepends=True):
        try:
            row = parse_json(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            break
        found.append(row)
    return found


def keep_lines(
    path: str | os.PathLike[str], rows: Iterable[Any], *, what: str = "The file", error: type[SecateurError] = RunError
) -> None:
    """Make these all that is in a file for `append_line`, unless they are; as `write_bytes` does."""
    text = "".join(_line(row) for row in rows)
    if not Path(path).is_file() or Path(path).read_bytes() != text.encode():
        write_text(path, text, what=what, error=error)


def make_folder(path: str | os.PathLike[str], *, error: type[SecateurError] = RunError) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        error: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as problem:
        raise error(f"The folder {str(path)!r} cannot be made: {said(problem)}.") from problem


def parse_json(text: str) -> Any:
    """Parse strict JSON; ValueError or RecursionError for anything else."""
    return json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant, parse_float=_finite_float)


def kind_of(path: str | os.PathLike[str]) -> int | None:
    """The type of a file (`stat.S_IFREG`, ...), of what a link points to; None if there is none or cannot be one."""
    try:
        return stat.S_IFMT(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return None


def by_system(problem: BaseException | None) -> bool:
    """Whether a disk or its rights are behind a failure, rather than what was to be written."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in _SYSTEM:
            return True
        problem = problem.__cause__
    return False


def shown(value: object) -> str:
    """Return `value` as it may stand in a message: escaped, and cut short if long."""
    # an integer of thousands of digits must not be turned into text at all (Python refuses)
    text = "a huge integer" if isinstance(value, int) and abs(value) >= 1 << 64 else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def said(problem: BaseException) -> str:
    """Return an exception's message on one line, without its full stop and addresses of objects."""
    return " ".join(_OBJECT.sub("", str(problem)).split()).rstrip(".")[:500] or type(problem).__name__


def _line(row: Any) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing a key that occurs twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shown(key)} occurs twice")
        result[key] = value
    return result


def _no_constant(text: str) -> float:
    """Refuse NaN and Infinity, which Python's reader would accept."""
    raise ValueError(f"{text} is not a number")


def _finite_float(text: str) -> float:
    """Read a float, refusing those that overflow to infinity."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{shown(text)} is too large")
    return value


def _replace(path: Path, data: bytes) -> None:
    # tempfile would create the file unreadable for others; the umask should decide
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp") if path.name else path
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            if temporary != path:
                temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable where the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
