"""The model's side of a trace: copies without storage, inputs and outputs of any shape, which module is executing."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from secateur.errors import ModelError


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    inner: Any = model
    while True:
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif type(inner).__name__ == "OptimizedModule" and hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        else:
            unwrapped: nn.Module = inner
            return unwrapped


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; a tensor with several names appears under the first."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    found.update(model.named_buffers())
    return found


def clone_module(model: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A deep copy of `model` whose tensors are `convert(tensor)` instead of copies; ties between names survive."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        for tensor in [
            *own,
            *(t for v in module.__dict__.values() if type(v) not in _PLAIN for t in _loose_tensors(v)),
        ]:
            if tensor is None or id(tensor) in memo:
                continue
            fresh = convert(tensor)
            if isinstance(tensor, nn.Parameter) and not isinstance(fresh, nn.Parameter):
                fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = fresh
    try:
        twin: nn.Module = _clone(model, memo)
        return twin
    except Exception as error:
        raise ModelError(
            f"The model cannot be copied ({type(error).__name__}: {error}); give its class a __deepcopy__ "
            "or remove the attribute that cannot be copied."
        ) from error


_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device, OrderedDict})


def _clone(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`, with a short way for ordinary modules and containers (it is most of the time of a cut)."""
    kind: Any = type(value)
    if kind in _PLAIN and kind is not OrderedDict:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is list or kind is dict or kind is OrderedDict:
        fresh: Any = kind()
        memo[id(value)] = fresh
        if kind is list:
            fresh.extend(_clone(item, memo) for item in value)
        else:
            fresh.update((key, _clone(item, memo)) for key, item in value.items())
        return fresh
    if isinstance(value, nn.Module) and _is_ordinary(kind):
        fresh = kind.__new__(kind)
        memo[id(value)] = fresh
        fresh.__dict__.update((key, _clone(item, memo)) for key, item in value.__dict__.items())
        return fresh
    return copy.deepcopy(value, memo)


@lru_cache(maxsize=4096)
def _is_ordinary(kind: Any) -> bool:
    """Whether a module class is copied by copying its attributes."""
    hooks = ("__getstate__", "__reduce__", "__reduce_ex__", "__setstate__", "__new__")
    plain: list[type] = [object, nn.Module, nn.RNNBase, nn.MultiheadAttention, nn.Transformer]
    owners = {next(c for c in kind.__mro__ if name in c.__dict__) for name in hooks if hasattr(kind, name)}
    standard = all(c in plain or c.__module__.startswith("torch.nn.modules.") for c in owners)
    return standard and not hasattr(kind, "__deepcopy__") and not hasattr(kind, "__slots__")


def _loose_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors a module holds as plain attributes, in a list or a dict at most."""
    items = value if isinstance(value, list | tuple) else value.values() if type(value) is dict else [value]
    for item in items:
        if isinstance(item, torch.Tensor):
            yield item


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with `function` applied to every tensor in its tuples, lists, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, function) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(v, function) for v in value)
    if isinstance(value, Mapping):
        return {k: map_tensors(v, function) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value)}
    return value


def output_tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a model output: tuples, lists, dicts, dataclasses and plain objects, in a fixed order."""
    found: list[torch.Tensor] = []
    map_tensors(value, found.append)
    if not found and hasattr(value, "__dict__"):
        for item in vars(value).values():
            map_tensors(item, found.append)
    return found


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tensor, a tuple or list of arguments, or a dict of keywords."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@contextmanager
def module_stack(
    model: nn.Module, stack: list[str], on_exit: Callable[[str, Any], None] | None = None
) -> Iterator[None]:
    """Keep `stack` at the path of the module that is executing."""
    paths: dict[int, str] = {}
    for name, module in model.named_modules():
        paths.setdefault(id(module), name)

    def enter(module: nn.Module, _inputs: Any) -> None:
        stack.append(paths.get(id(module), stack[-1]))

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        name = stack.pop()
        if on_exit is not None and id(module) in paths:
            on_exit(name, output)

    with ExitStack() as handles:
        handles.callback(register_module_forward_pre_hook(enter).remove)
        handles.callback(register_module_forward_hook(leave, always_call=True).remove)
        yield


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Switch off fused fast paths that hide their parts (multi-head attention), and gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
