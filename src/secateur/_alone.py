"""One thread at a time with a network: gradients, hooks and modes of its modules are the same for all threads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from threading import Lock, RLock
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from torch import nn

from secateur.graph.modules import unwrap

F = TypeVar("F", bound=Callable[..., Any])
_GUARD = Lock()
_HELD: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def alone(function: F) -> F:
    """Calls of `function` with the same network wait for each other; those with other networks run side by side."""

    @functools.wraps(function)
    def called(model: Any, *args: Any, **keywords: Any) -> Any:
        with _lock(model):
            return function(model, *args, **keywords)

    return cast(F, called)


def _lock(model: Any) -> Any:
    if not isinstance(model, nn.Module):
        return nullcontext()  # the function refuses it
    with _GUARD:
        return _HELD.setdefault(unwrap(model), RLock())
