"""Ctrl-C: the first asks for an orderly stop, the second stops at once.

Of several processes each hears SIGTERM in the same way: launchers send it when another process has ended, and
schedulers before they take a machine away. One that died of it at once could not say what had happened.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from secateur._distributed import world

#: Seconds in which a launcher of several processes passes on a Ctrl-C that they have had already from the terminal.
_ECHO = 2.0


class Interrupts:
    """A context in which the first SIGINT, or of several processes SIGTERM, only sets `requested`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self._say, self._first = say, 0.0
        self._echo = 0.0 if world() == 1 else _ECHO
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # only there may a handler be set
            self._before = {number: signal.signal(number, self._handle) for number in _heard()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._first > self._echo:
            raise KeyboardInterrupt
        if self.requested:
            return
        self.requested, self._first = True, time.monotonic()
        if number == signal.SIGINT:
            self._say("Stopping after this step; press Ctrl-C again to stop at once.")


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Inside, and outside training, SIGTERM is a Ctrl-C to each of several processes."""
    if world() == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _heard() -> tuple[int, ...]:
    return (signal.SIGINT,) if world() == 1 else (signal.SIGINT, signal.SIGTERM)
