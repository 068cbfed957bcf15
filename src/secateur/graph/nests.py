"""Tensors inside whatever a forward takes or returns: containers, dataclasses and plain objects, at every depth.

Containers and objects are rebuilt as what they are. What nobody can look into (a generator, an object of a C
extension) is refused where tensors may hide in it, for a width that leaves the network unseen would be cut.
"""

from __future__ import annotations

import contextvars
import copy
import enum
import functools
import gc
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import ModelError
from secateur.graph.code import enclosed

#: Kinds that hold no tensor, or none of the network's data: modules are looked after by name.
_LEAVES = (
    bool, int, float, complex, str, bytes, type(None), range, slice, enum.Enum, nn.Module, np.generic,
    types.ModuleType, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator, torch.Size,
)  # fmt: skip
_PLAIN = frozenset({list, tuple, dict})
#: Kinds that carry something along and are called, or asked, for it.
_METHODS = (types.BuiltinFunctionType, types.MethodWrapperType, types.MethodType)
_CARRIERS = (
    types.FunctionType, functools.partial, weakref.ref, contextvars.ContextVar, BaseException, torch.futures.Future,
    *_METHODS,
)  # fmt: skip
#: Bare memory, in which no shape says what is a channel.
_MEMORY = (torch.UntypedStorage, torch.TypedStorage)
_OWN = "_secateur_"  # what a trace writes on tensors
_HEAP = 1 << 9  # of a class made by a class statement
_UNSEEN = 4  # how far to look for a tensor behind an object that tells nothing of itself


def output_tensors(value: Any, *, refuse: bool = False) -> list[torch.Tensor]:
    """The tensors of a model's output (or input), at every depth and in a fixed order.

    refuse: raise ModelError where a tensor may hide in something that cannot be looked into.
    """
    if isinstance(value, torch.Tensor):
        for name in value.__dict__:
            if not name.startswith(_OWN):
                break
        else:
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
        if not any(not name.startswith(_OWN) for name in value.__dict__):
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
    if isinstance(value, torch.Tensor):
        return
    if isinstance(value, list | tuple | set | frozenset | deque):
        yield from value
        yield from _past_own(value)
    elif isinstance(value, Mapping):
        yield from (key for key in value if not isinstance(key, _LEAVES))
        yield from value.values()
    elif isinstance(value, np.ndarray):
        yield from value.ravel() if value.dtype == object else ()
    elif isinstance(value, _CARRIERS):
        yield from _carried(value)
    elif refuse and (isinstance(value, _MEMORY) or (not _is_open(value) and _hides_tensor(value))):
        raise ModelError(
            f"The model's input or output holds a {type(value).__name__}, which cannot be looked into and in "
            "which tensors may hide; hand over tensors in tuples, dicts, dataclasses or plain objects."
        )


def _past_own(value: Any) -> Iterator[Any]:
    """What a container of a class of the program's own holds and does not give when it is gone through."""
    kind = next(k for k in (list, tuple, set, frozenset, deque) if isinstance(value, k))
    if type(value).__iter__ is not kind.__iter__:
        given = {id(item) for item in value}
        yield from (item for item in kind.__iter__(value) if id(item) not in given)


def _carried(value: Any) -> Iterator[Any]:
    """What is no attribute of one that carries it: arguments, the owner of a method, the cells of a closure."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, _METHODS):
        yield from (value.__self__, getattr(value, "__func__", None))
    elif isinstance(value, types.FunctionType):
        yield from (*enclosed(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, contextvars.ContextVar):
        yield value.get(None)
    elif isinstance(value, BaseException):
        yield from value.args
    elif value.done():
        yield value.value()


def _is_open(value: Any) -> bool:
    """Whether an object tells its attributes."""
    return hasattr(value, "__dict__") or any("__slots__" in kind.__dict__ for kind in type(value).__mro__)


def _hides_tensor(value: Any) -> bool:
    """Whether an object that tells nothing of itself (an iterator, say) holds on to a tensor."""
    if type(value).__name__ == "PyCapsule" or isinstance(
        value, types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType
    ):
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
            if isinstance(slot, types.MemberDescriptorType) and kind.__module__ != "builtins" and name != "__dict__":
                try:
                    found[name] = slot.__get__(value)
                except AttributeError:  # an empty slot
                    continue
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds by name: what its own class has in common for all, its slots, then its dictionary."""
    if isinstance(value, type):
        return _common(value)
    own = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith(_OWN)}
    return _common(type(value)) | _slots(value) | own


def _common(kind: type) -> dict[str, Any]:
    """Tensors and containers among the variables of a class; those of Python's and PyTorch's own hold none."""
    own = [k for k in kind.__mro__ if k.__module__.partition(".")[0] not in ("builtins", "torch", "collections")]
    return {
        name: held
        for k in own
        for name, held in vars(k).items()
        if isinstance(held, torch.Tensor | list | tuple | dict) and not name.startswith("__")
    }


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
    if isinstance(value, (*_CARRIERS, type)):
        raise ModelError(
            f"The model takes a {type(value).__name__} that carries tensors; hand these over in tuples or dicts."
        )
    try:
        if isinstance(value, tuple | set | frozenset):
            return _of_items(value, [_mapped(item, function, done) for item in value])
        fresh = _emptied(value)
        done[id(value)] = fresh
        for name, item in (_slots(value) | getattr(value, "__dict__", {})).items():
            object.__setattr__(fresh, name, _mapped(item, function, done))  # past __setattr__, into frozen ones
        return _filled(fresh, value, lambda item: _mapped(item, function, done))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"The model takes a {type(value).__name__}, of which no copy with other tensors can be made "
            f"({type(error).__name__}: {error}); hand its tensors over in tuples, dicts or dataclasses."
        ) from error


def _of_items(value: Any, items: list[Any]) -> Any:
    """A tuple or set of the class of `value` that holds these."""
    if isinstance(value, tuple) and not hasattr(value, "_fields") and not hasattr(value, "n_fields"):
        fresh = tuple.__new__(type(value), items)
        getattr(fresh, "__dict__", {}).update(getattr(value, "__dict__", {}))
        return fresh
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _emptied(value: Any) -> Any:
    """Another object of that class, of which no constructor was called; containers of C keep what they hold."""
    if isinstance(value, types.MappingProxyType):
        return {}
    if isinstance(value, defaultdict | OrderedDict | deque | np.ndarray):
        return copy.copy(value)
    base: Any = next(k for k in type(value).__mro__ if not k.__flags__ & _HEAP)
    return base.__new__(type(value))


def _filled(fresh: Any, value: Any, mapped: Callable[[Any], Any]) -> Any:
    """`fresh` with what `value` holds beside attributes, mapped, past any method of its class."""
    if isinstance(value, types.MappingProxyType):
        return types.MappingProxyType({key: mapped(item) for key, item in value.items()})
    if isinstance(value, dict):
        setter = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
        for key, item in dict.items(value):
            setter(fresh, key, mapped(item))
    elif isinstance(value, list):
        list.__init__(fresh, [mapped(item) for item in list.__iter__(value)])
    elif isinstance(value, deque):
        for k, item in enumerate(value):
            fresh[k] = mapped(item)
    elif isinstance(value, np.ndarray):
        for place in np.ndindex(value.shape):
            fresh[place] = mapped(value[place])
    return fresh
