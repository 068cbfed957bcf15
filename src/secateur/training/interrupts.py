"""Ctrl-C: the first asks for an orderly stop, the second stops at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from secateur._distributed import world

#: Seconds in which a launcher of several processes passes on a Ctrl-C that they have had already from the terminal.
_ECHO = 2.0


class Interrupts:
    """A context in which the first SIGINT only sets `requested`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self._say, self._first = say, 0.0
        self._echo = 0.0 if world() == 1 else _ECHO
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # only there may a handler be set
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._first > self._echo:
            raise KeyboardInterrupt
        if self.requested:
            return
        self.requested, self._first = True, time.monotonic()
        self._say("Stopping after this step; press Ctrl-C again to stop at once.")
