"""Ctrl-C at any moment of the `secateur` command is one line and exit code 130, also while PyTorch is imported.

Imported first of all, as most of the first seconds go by in imports; of no effect in programs that import the package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130  # what shells make of a Ctrl-C


def is_command(arguments: list[str], original: list[str]) -> bool:
    """Whether this process is the command: the script of that name, or `python -m secateur`.

    arguments, original: `sys.argv` and `sys.orig_argv`.
    """
    script = os.path.basename(arguments[0]) if arguments else ""  # noqa: PTH119 (pathlib takes time to import)
    if script in ("secateur", "secateur.exe", "secateur-script.py"):
        return True
    place = original.index("-m") + 1 if "-m" in original else len(original)
    return original[place : place + 1] == ["secateur"]


#: What a command that is at work says of being interrupted: what is kept, and how to continue.
_advice: Callable[[], str] | None = None


@contextlib.contextmanager
def advising(advice: Callable[[], str]) -> Iterator[None]:
    """Within, a Ctrl-C that cannot become an exception, as in a callback of an exporter, is told in these words."""
    global _advice
    before, _advice = _advice, advice
    try:
        yield
    finally:
        _advice = before


def begin() -> None:
    """From now on Ctrl-C ends the process at once with one line; nothing has been written yet."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell's background ignores it
        signal.signal(signal.SIGINT, _leave)
    sys.excepthook = _quietly(sys.excepthook)
    sys.unraisablehook = _quietly(sys.unraisablehook)


def listen() -> None:
    """From now on Ctrl-C is an exception again, which commands make something of."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end() -> None:
    """Nothing is left to be interrupted: a further Ctrl-C must not hit what tidies up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(number: int, frame: FrameType | None) -> None:
    said = "interrupted" if _advice is None else _advice()
    os.write(2, f"error: {said}\n".encode())
    os._exit(INTERRUPTED)


def _quietly(hook: Any) -> Any:
    """A hook that says of a KeyboardInterrupt that nobody caught what there is to say, and leaves."""

    def told(*found: Any) -> None:
        kind = found[0] if isinstance(found[0], type) else getattr(found[0], "exc_type", None)
        if isinstance(kind, type) and issubclass(kind, KeyboardInterrupt):
            _leave(signal.SIGINT, None)
        hook(*found)

    return told


if is_command(sys.argv, sys.orig_argv):
    begin()
