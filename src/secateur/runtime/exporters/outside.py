"""What every adapter does around foreign code: import it, keep it quiet, put what it raises into one sentence."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

from secateur._hints import install
from secateur.errors import ConfigError, RunError, SecateurError

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def needed(package: str, extra: str = "export") -> Any:
    """Import a package of one of our extras; ConfigError with the command that installs it where it is missing."""
    try:
        with quiet():
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name or package} is not installed: {install(extra)}") from error


def openvino_core(extra: str = "openvino") -> Any:
    """OpenVINO's one Core of this process; ConfigError with the command that installs our extra where it is missing.

    With each Core its CPU plugin gives the process another stack for signal handlers, and with its end the one before,
    even where that is gone already: after several Cores the next signal, a Ctrl-C in training, ended the process.
    """
    return _core(needed("openvino", extra))


@functools.cache
def _core(openvino: Any) -> Any:
    return openvino.Core()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print, log and warn from the user; what they raise is not touched."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Run quietly; any exception becomes one sentence."""
    try:
        with quiet():
            yield
    except SecateurError:
        raise
    except Exception as error:
        raise RunError(f"{what} ({brief(error)}): {remedy}.") from error


def brief(error: BaseException) -> str:
    """The first line of the cause that an exporter has to tell, and its kind.

    What wraps the cause says at which step it came about, in colours, and what to do about PyTorch.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{': ' + ' '.join(first.split()).rstrip('.')[:200] if first else ''}"
