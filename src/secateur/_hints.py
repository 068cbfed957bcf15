"""Words for error messages: the nearest known name, and numbers people can read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from secateur.errors import ConfigError


def nearest(name: str, known: Iterable[str], *, count: int = 1) -> list[str]:
    """Return up to `count` of the `known` names that look most like `name`, best first; possibly none."""
    by_folded = {word.casefold(): word for word in known}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=count, cutoff=0.5)
    return [by_folded[word] for word in found]


def choose(value: str, known: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `known`; ConfigError with the nearest of them otherwise."""
    names = list(known)
    if isinstance(value, str) and value in names:
        return value
    close = nearest(value, names) if isinstance(value, str) else []
    hint = f"did you mean {close[0]!r}? Choose" if close else "choose"
    raise ConfigError(f"Unknown {what} {value!r}: {hint} one of {', '.join(names)}.")


def checked_seed(seed: object) -> int:
    """Return `seed` if PyTorch and numpy take it; ConfigError otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 1 << 63:
        raise ConfigError(f"seed={seed!r} is no seed: give a whole number from 0 to {(1 << 63) - 1}.")
    return int(seed)


def check_graph(graph: Any, who: str) -> None:
    """ConfigError for what was not traced, as a network itself; who: the function that was called."""
    if not hasattr(graph, "groups"):
        raise ConfigError(
            f"{who} takes a traced network, not a {type(graph).__name__}: give secateur.trace(model, inputs)."
        )


def readable(number: float) -> str:
    """Return a count with four significant digits and a suffix: 4089184256 becomes '4.089G'."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= factor:
            return f"{number / factor:.4g}{suffix}"
    return f"{number:.4g}"


def install(*extras: str) -> str:
    """Return the commands that bring the packages of an extra, to an installed Secateur and to one in a clone."""
    named = ",".join(extras)
    wanted = f"[{named}]" if named else ""
    return f'pip install "secateur{wanted}" (in a clone: pip install -e ".{wanted}")'


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names by commas, and how many more there are: 'a, b, c and 4 more'."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
