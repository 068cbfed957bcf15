"""Methods of other people: found as entry points of installed packages, in a file, or by an import path.

Only finds and imports; the registry in `secateur.methods` says what may be made of it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from secateur.errors import ConfigError, SecateurError

#: Packages name their methods under this group, such as `mine = "my_package.pruning:Mine"`.
GROUP = "secateur.methods"


@cache
def installed() -> dict[str, EntryPoint]:
    """Entry points of the group by name; of two with one name the first counts."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, entry)
    return found


def imported(reference: str) -> Any:
    """What `path/to/file.py`, `file.py:Name`, `package.module` or `package.module:Name` names: a module or an object.

    Raises:
        ConfigError: there is no such thing, or its own code fails; one sentence.
    """
    place, name = _parts(reference)
    module = _file(Path(place), reference) if place.endswith(".py") else _module(place, reference)
    found: Any = module
    for part in filter(None, name.split(".")):
        found = getattr(found, part, None)
        if found is None:
            raise ConfigError(f"The plug-in {reference!r} has no {part!r}: name a class or function that it defines.")
    return found


def loaded(entry: EntryPoint) -> Any:
    """What an entry point names; ConfigError in one sentence if it cannot be had."""
    try:
        return entry.load()
    except SecateurError:
        raise
    except Exception as error:
        raise ConfigError(
            f"The method {entry.name!r} of the package {package(entry)} cannot be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): mend or uninstall that package."
        ) from error


def package(entry: EntryPoint) -> str:
    """Who brings an entry point."""
    return entry.dist.name if entry.dist is not None else entry.module


def _parts(reference: str) -> tuple[str, str]:
    place, colon, name = reference.rpartition(":")
    if not colon or (len(place) == 1 and place.isalpha()):  # the drive of a Windows path
        place, name = reference, ""
    if not place:
        raise ConfigError(f"The plug-in {reference!r} is not understood: give path/to/file.py or package.module:Name.")
    return place, name


def _file(path: Path, reference: str) -> ModuleType:
    """The module of a file, once a process; its folder is not put on the path."""
    if not path.is_file():
        raise ConfigError(f"The plug-in {reference!r} names the file {str(path)!r}, which is not there.")
    name = f"secateur_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SecateurError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise _failed(reference, error) from error
    return module


def _module(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except SecateurError:
        raise
    except Exception as error:
        raise _failed(reference, error) from error


def _failed(reference: str, error: Exception) -> ConfigError:
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ConfigError(f"The plug-in {reference!r} cannot be imported ({said}): mend it, or check its name.")
