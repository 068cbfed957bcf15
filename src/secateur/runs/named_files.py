"""Which files of code and weights a recipe names, and what they hold, so that a run says where they changed meanwhile.

Data have digests of their own (`secateur.data.digest_of`), and other data are refused: code may have been corrected.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from secateur.recipe import Recipe

_WEIGHTS = "model.safetensors"  # of the folder of an earlier run


def named_files(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the files of a recipe whose parts have been imported, by how it names them."""
    digests = {name: _digest(path) for name, path in _found(recipe.to_dict())}
    return {name: found for name, found in digests.items() if found is not None}


def _digest(path: Path) -> str | None:
    """None for a file that is gone since it was read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _found(value: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    if isinstance(value, Mapping):
        for inner, each in value.items():
            yield from _found(each, str(inner))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _found(each, key)
    elif isinstance(value, str):
        place, _, name = value.rpartition(":")
        code = place if name.isidentifier() else value
        module = getattr(sys.modules.get(code), "__file__", None) if place else None
        if code.endswith(".py") or key == "weights":
            yield value, Path(code if code.endswith(".py") else value)
        elif module is not None:
            yield value, Path(module)
        elif key == "reference" and Path(value).is_dir():
            yield value, Path(value) / _WEIGHTS
