"""How far work of minutes has come: code that goes through parts of it tells, and whoever drives it may listen.

Below everything else. Where nobody listens, nothing is counted.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Part = TypeVar("Part")
Say = Callable[[str], None]

_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


class _Listener:
    """Hears how far work is, not too often."""

    def __init__(self, say: Say, every: float) -> None:
        self._say, self._every, self._last = say, every, time.monotonic()

    def hear(self, what: str, done: int, total: int, began: float) -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        if total <= done:  # nobody knew how many there are
            self._say(f"{what}: {done} done")
            return
        self._say(f"{what}: {done} of {total}, about {_duration((now - began) / done * (total - done))} left")


@contextmanager
def listening(say: Say, *, every: float = 15.0) -> Iterator[None]:
    """Inside, `say` is told in a sentence how far work is and how long it will take.

    every: seconds that pass between two sentences, at least.
    """
    token = _listener.set(_Listener(say, every))
    try:
        yield
    finally:
        _listener.reset(token)


def follow(what: str, parts: Iterable[Part], total: int = 0) -> Iterator[Part]:
    """Go through the parts of some work, telling whoever listens how many are done.

    what: they are, in the plural. total: how many there are; 0: what `parts` says of itself, if it does.
    """
    listener = _listener.get()
    if listener is None:
        yield from parts
        return
    total, began = total or operator.length_hint(parts), time.monotonic()
    for done, part in enumerate(parts, 1):
        yield part
        listener.hear(what, done, total, began)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
