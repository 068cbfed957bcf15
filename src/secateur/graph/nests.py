"""Tensors inside whatever a forward takes or returns: containers, dataclasses and plain objects, at every depth.

Containers and objects are rebuilt as what they are. What nobody can look into (a generator, an object of a C
extension) is refused where tensors may hide in it, for a width that leaves the network unseen would be cut.
"""

from __future__ import annotations

import copy
import enum
import functools
import gc
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import ModelError
from secateur.graph.code import enclosed

#: Kinds that hold no tensor, or none of the network's data: modules are looked after by name.
_LEAVES = (
    bool, int, float, complex, str, bytes, type(None), type, range, slice, enum.Enum, nn.Module, np.generic,
    types.ModuleType, types.BuiltinFunctionType, torch.dtype, torch.device, torch.layout, torch.memory_format,
    torch.Generator, torch.Size,
)  # fmt: skip
_PLAIN = frozenset({list, tuple, dict})
_UNSEEN = 4  # how far to look for a tensor behind an object that tells nothing of itself


def output_tensors(value: Any, *, refuse: bool = False) -> list[torch.Tensor]:
    """The tensors of a model's output (or input), at every depth and in a fixed order.

    refuse: raise ModelError where a tensor may hide in something that cannot be looked into.
    """
    if isinstance(value, torch.Tensor):
        return [value]
    return list(_walk(value, set(), refuse))


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with `function` applied to every tensor in it; containers, dataclasses and objects stay what they are.

    Objects that hold no tensor are passed on, not copied.
    """
    return _mapped(value, function, {})


def _walk(value: Any, seen: set[int], refuse: bool = False) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, _LEAVES) or id(value) in seen:
        return
    seen.add(id(value))
    told: set[int] = set()
    for part in _items(value, refuse):
        for tensor in _walk(part, seen, refuse):
            told.add(id(tensor))
            yield tensor
    if type(value) in _PLAIN:
        seen.discard(id(value))  # the same list twice is twice its tensors; the same object counts once
        return
    for part in _attributes(value).values():  # a container's attributes often name its items again
        yield from (tensor for tensor in _walk(part, seen, refuse) if id(tensor) not in told)


def _items(value: Any, refuse: bool) -> Iterator[Any]:
    """What a container holds; nothing of an object, whose attributes are told apart."""
    if isinstance(value, list | tuple | set | frozenset | deque):
        yield from value
    elif isinstance(value, Mapping):
        yield from (key for key in value if not isinstance(key, _LEAVES))
        yield from value.values()
    elif isinstance(value, np.ndarray):
        yield from value.ravel() if value.dtype == object else ()
    elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        yield from _bound(value)
    elif refuse and not _is_open(value) and _hides_tensor(value):
        raise ModelError(
            f"The model's input or output holds a {type(value).__name__}, which cannot be looked into and in "
            "which tensors may hide; hand over tensors in tuples, dicts, dataclasses or plain objects."
        )


def _bound(function: Any) -> Iterator[Any]:
    """What a function carries along: arguments of a partial, the owner of a method, the cells of a closure."""
    if isinstance(function, functools.partial):
        yield from (function.func, *function.args, *function.keywords.values())
    elif isinstance(function, types.MethodType):
        yield from (function.__self__, function.__func__)
    else:
        yield from enclosed(function)


def _is_open(value: Any) -> bool:
    """Whether an object tells its attributes."""
    return hasattr(value, "__dict__") or any("__slots__" in kind.__dict__ for kind in type(value).__mro__)


def _hides_tensor(value: Any) -> bool:
    """Whether an object that tells nothing of itself (an iterator, say) holds on to a tensor."""
    if isinstance(value, types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType):
        return True
    seen, front = {id(value)}, [value]
    for _ in range(_UNSEEN):
        front = [
            item for holder in front for item in gc.get_referents(holder)
            if id(item) not in seen and not isinstance(item, _LEAVES) and not seen.add(id(item))  # type: ignore[func-returns-value]
        ]  # fmt: skip
        if any(isinstance(item, torch.Tensor) for item in front):
            return True
    return False


def _slots(value: Any) -> dict[str, Any]:
    """Filled slots of an object, those of its bases included, by the name under which they are set."""
    found = {}
    for kind in type(value).__mro__:
        for name, slot in kind.__dict__.items():
            if isinstance(slot, types.MemberDescriptorType) and kind.__module__ != "builtins":
                try:
                    found[name] = slot.__get__(value)
                except AttributeError:  # an empty slot
                    continue
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds by name: its slots, then its dictionary; of a function nothing."""
    if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        return {}
    return _slots(value) | getattr(value, "__dict__", {})


def _mapped(value: Any, function: Callable[[torch.Tensor], Any], done: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, _LEAVES):
        return value
    if type(value) is tuple:
        return tuple([_mapped(item, function, done) for item in value])
    if id(value) in done:
        return done[id(value)]
    fresh: Any
    if type(value) is list:
        fresh = done[id(value)] = []
        fresh.extend(_mapped(item, function, done) for item in value)
    elif type(value) is dict:
        fresh = done[id(value)] = {}
        fresh.update((key, _mapped(item, function, done)) for key, item in value.items())
    elif next(_walk(value, set()), None) is None:
        fresh = value
    else:
        fresh = _rebuilt(value, function, done)
    return fresh


def _rebuilt(value: Any, function: Callable[[torch.Tensor], Any], done: dict[int, Any]) -> Any:
    """A container of its own class, or an object, with its tensors mapped; no constructor of an object is called."""
    if isinstance(value, tuple):
        items = [_mapped(item, function, done) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, set | frozenset):
        return type(value)(_mapped(item, function, done) for item in value)
    if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        raise ModelError(
            f"The model takes a {type(value).__name__} that carries tensors; hand these over in tuples or dicts."
        )
    container = isinstance(value, list | deque | Mapping | np.ndarray)
    fresh: Any = copy.copy(value) if container else object.__new__(type(value))
    done[id(value)] = fresh
    for name, item in _attributes(value).items():  # past any __setattr__ of the class, and into frozen ones
        if item is not value:
            object.__setattr__(fresh, name, _mapped(item, function, done))
    if isinstance(value, Mapping):
        for key, item in value.items():
            fresh[key] = _mapped(item, function, done)
    elif isinstance(value, list | deque):
        for k, item in enumerate(value):
            fresh[k] = _mapped(item, function, done)
    elif isinstance(value, np.ndarray):
        fresh.flat[:] = [_mapped(item, function, done) for item in value.ravel()]
    return fresh
