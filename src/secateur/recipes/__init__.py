"""The recipes that come with the package: `recipe:digits-bwcp` names one wherever the path of a recipe is taken.

They are ordinary files, to be copied and changed. This finds them; `secateur.recipe` reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from secateur._hints import choose

PREFIX = "recipe:"
_HERE = Path(__file__).parent


def names() -> list[str]:
    """The recipes there are, without `recipe:`."""
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def located(path: str | os.PathLike[str]) -> Path:
    """The file that `path` names: one of the package's after `recipe:`, else the path itself.

    Raises:
        ConfigError: the package has no recipe of that name.
    """
    given = os.fspath(path)
    if not given.startswith(PREFIX):
        return Path(given)
    return _HERE / f"{choose(given.removeprefix(PREFIX), names(), 'recipe of the package')}.yaml"
