"""Methods of other people, found as entry points of installed packages.

Only finds and imports; the registry in `secateur.methods` says what may be made of it.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
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


def loaded(entry: EntryPoint) -> Any:
    """What an entry point names; ConfigError in one sentence if it cannot be had."""
    try:
        return entry.load()
    except SecateurError:
        raise
    except Exception as error:
        raise ConfigError(
            f"The method {entry.name!r} of the package {package(entry)} cannot be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): repair or uninstall that package."
        ) from error


def package(entry: EntryPoint) -> str:
    """Who brings an entry point."""
    return entry.dist.name if entry.dist is not None else entry.module
