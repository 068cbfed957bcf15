"""Hooks that a program has put on all modules there are: told apart from the model while that is traced.

They may run networks of their own, a profiler's or a teacher's. What they compute is no cost of the model.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules import module as torch_module

Told = Callable[[int], None]
_EVERYWHERE: tuple[Any, ...] = (torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks)
_HERE = threading.local()  # who is told, of this thread's trace


class _Wrapped:
    """The hooks are one for all threads: wrapped while anybody traces, and then as they were."""

    def __init__(self) -> None:
        self._lock, self._tracing = threading.Lock(), 0
        self._before: list[tuple[Any, Any, Any, Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._tracing == 0:
                for hooks in _EVERYWHERE:
                    for key, hook in list(hooks.items()):
                        hooks[key] = wrapped = _telling(hook)
                        self._before.append((hooks, key, hook, wrapped))
            self._tracing += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._tracing -= 1
            if self._tracing == 0:
                for hooks, key, hook, wrapped in self._before:
                    if hooks.get(key) is wrapped:  # it may have been removed meanwhile
                        hooks[key] = hook
                self._before = []


_WRAPPED = _Wrapped()


def _telling(hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def called(*args: Any, **keywords: Any) -> Any:
        told: Told | None = getattr(_HERE, "told", None)
        if told is None:
            return hook(*args, **keywords)
        told(1)
        try:
            return hook(*args, **keywords)
        finally:
            told(-1)

    return called


@contextmanager
def telling_hooks(told: Told) -> Iterator[None]:
    """Inside, `told` hears 1 when a hook of all modules begins in this thread, and -1 when it ends."""
    before = getattr(_HERE, "told", None)
    with _WRAPPED:
        _HERE.told = told
        try:
            yield
        finally:
            _HERE.told = before
