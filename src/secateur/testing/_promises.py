"""Promises, and how it is said that one is broken: an AssertionError of one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import torch

from secateur.errors import SecateurError

_LONGEST = 600  # characters of a sentence that somebody is to read


class Broken(AssertionError):
    """A promise that was not kept; the message is part of a sentence."""


@dataclass(frozen=True)
class Check:
    """One promise, checked by calling it.

    Raises AssertionError with one sentence, or `unittest.SkipTest` where a package or a device is missing.
    """

    name: str  # such as "finish_gives_a_narrower_network", or "cuts[projection]"
    promise: str  # the same in words
    method: str  # who is checked
    function: Callable[[], None]

    def __call__(self) -> None:
        """Check it."""
        who = f"The method {self.method!r} breaks its contract"
        try:
            self.function()
        except SkipTest:
            raise
        except Broken as broken:
            raise AssertionError(f"{who}: {broken}.") from broken.__cause__
        except Exception as error:
            raise AssertionError(f"{who} ({self.promise}): {said(error)}.") from error

    def __str__(self) -> str:
        """The name, as a test is called."""
        return self.name


def require(kept: object, sentence: str) -> None:
    """Raise Broken unless `kept`."""
    if not kept:
        raise Broken(sentence)


def refuses(what: str, action: Callable[[], object], words: str = "") -> None:
    """Require that `action` raises a SecateurError of one sentence that contains `words`."""
    try:
        action()
    except SecateurError as error:
        require_sentence(what, error)
        require(words in str(error), f"the message for {what} does not name {words!r}: {error}")
    except Exception as error:
        raise Broken(f"{what} ends in {said(error)}, where a SecateurError should say so in a sentence") from error
    else:
        raise Broken(f"{what} is not refused")


def require_sentence(what: str, error: SecateurError) -> None:
    """Require that an error's message is one line that ends as a sentence does."""
    text = str(error)
    whole = text.endswith((".", "?", ")")) and "\n" not in text and 10 <= len(text) <= _LONGEST
    require(whole, f"the message for {what} is not a sentence: {shown(text)}")


def require_number(what: str, value: Any) -> None:
    """Require a finite Python number."""
    require(isinstance(value, float) and math.isfinite(value), f"{what} is {shown(repr(value))} and not a finite float")


def require_finite(what: str, tensor: torch.Tensor) -> None:
    """Require a tensor without NaN and infinity."""
    if tensor.is_floating_point():
        require(bool(torch.isfinite(tensor).all()), f"{what} has values that are not finite")


def said(error: BaseException) -> str:
    """An exception in a sentence."""
    return f"{type(error).__name__}: {shown(str(error)).rstrip('.')}"


def shown(text: str) -> str:
    """A text on one line, cut short if long."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."
