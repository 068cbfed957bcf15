"""Code of the user's own, by where it stands: a file, a module, or what either defines.

Methods, tasks and data are named so in recipes and on the command line. The code that is named is run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from secateur.errors import ConfigError, SecateurError


def imported(reference: str, what: str = "plug-in") -> Any:
    """What `path/to/file.py`, `file.py:Name`, `package.module` or `package.module:Name` names: a module or an object.

    Modules are looked for in the current directory too. what: the reference is of, for messages.

    Raises:
        ConfigError: there is no such thing, or its own code fails; one sentence.
    """
    place, name = _parts(reference, what)
    module = _file(Path(place), reference, what) if place.endswith(".py") else _module(place, reference, what)
    found: Any = module
    for part in filter(None, name.split(".")):
        found = getattr(found, part, None)
        if found is None:
            raise ConfigError(f"The {what} {reference!r} has no {part!r}: name a class or function that it defines.")
    return found


def _parts(reference: str, what: str) -> tuple[str, str]:
    place, colon, name = reference.rpartition(":")
    if not colon or (len(place) == 1 and place.isalpha()):  # the drive of a Windows path
        place, name = reference, ""
    if not place:
        raise ConfigError(f"The {what} {reference!r} is not understood: give path/to/file.py or package.module:Name.")
    return place, name


def _file(path: Path, reference: str, what: str) -> ModuleType:
    """The module of a file, once a process; its folder is not put on the path."""
    if not path.is_file():
        raise ConfigError(f"The {what} {reference!r} names the file {str(path)!r}, which is not there.")
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
        raise _failed(reference, what, error) from error
    return module


def _module(name: str, reference: str, what: str) -> ModuleType:
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))  # where a command of the shell, unlike python itself, does not look
    try:
        return importlib.import_module(name)
    except SecateurError:
        raise
    except Exception as error:
        raise _failed(reference, what, error) from error
    finally:
        sys.path[:] = before


def _failed(reference: str, what: str, error: Exception) -> ConfigError:
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ConfigError(f"The {what} {reference!r} cannot be imported ({said}): correct it, or check its name.")
