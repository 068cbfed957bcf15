"""Optimisers after a cut: what they keep for each parameter (momentum, second moments) loses the same slices.

A cut in place finds every optimiser that holds the network's parameters; `follow` lets one go on with a cut copy.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from secateur.errors import ConfigError
from secateur.graph.cut import Cut, Slices, take
from secateur.graph.labels import Ids
from secateur.graph.modules import named_tensors, output_tensors


class _Result(Protocol):
    """A `secateur.Result`."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def cut(self) -> Cut: ...
    @property
    def graph(self) -> Any: ...


def follow(optimiser: Optimizer, result: _Result) -> None:
    """Let an optimiser of the network before a cut go on with the network after it, its state narrowed likewise.

    After a cut in place there is nothing left to do. State that is not of a parameter's shape starts anew.

    optimiser: of any kind, made for the parameters of the model that was pruned. result: of `prune` or `apply`.

    Raises:
        ConfigError: it is no optimiser, or one of another network; or this is no result.
    """
    if not hasattr(optimiser, "param_groups"):
        raise ConfigError(f"A {type(optimiser).__name__} is no optimiser: give one of torch.optim's kind.")
    if not all(hasattr(result, part) for part in ("model", "cut", "graph")):
        raise ConfigError(f"A {type(result).__name__} is no result: give what secateur.prune or apply returned.")
    if result.model is result.graph.model:
        return
    names = {id(tensor): name for name, tensor in named_tensors(result.graph.model).items()}
    narrow = named_tensors(result.model)
    known = {*names, *map(id, narrow.values())}  # of the narrow network where it was followed before
    if not any(id(parameter) in known for group in optimiser.param_groups for parameter in group["params"]):
        raise ConfigError(
            "The optimiser holds no parameter of the network that was pruned, so it would go on with another: give the "
            "one that trains it."
        )
    for group in optimiser.param_groups:
        for k, parameter in enumerate(group["params"]):
            name = names.get(id(parameter))
            if name is None or name not in narrow:
                continue
            state = optimiser.state.pop(parameter, None)
            if state is not None:
                narrow_state(state, tuple(parameter.shape), result.cut.slices.get(name))
                optimiser.state[narrow[name]] = state
            group["params"][k] = narrow[name]
    _start_anew(optimiser)


def follow_in_place(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], slices: Slices) -> None:
    """Narrow what every living optimiser keeps for these tensors, which had `shapes` and have lost slices."""
    if not _held_elsewhere(tensors[name] for name in slices):
        return
    cut = {id(tensor): (shapes[name], slices[name]) for name, tensor in tensors.items() if name in slices}
    for optimiser in [item for item in gc.get_objects() if issubclass(type(item), Optimizer)]:
        held = [p for group in optimiser.param_groups for p in group["params"] if id(p) in cut]
        for parameter in held:
            if parameter in optimiser.state:
                narrow_state(optimiser.state[parameter], *cut[id(parameter)])
        if held:
            _start_anew(optimiser)


def _held_elsewhere(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether anybody but their module and the mapping they come from holds one of these tensors.

    An optimiser does. To look through all objects that live takes longer than a cut, and mostly nobody does.
    """
    module, mapping = {"": object()}, {}
    mapping.update(module)
    usual = max(sys.getrefcount(held) for held in (mapping[name] for name in mapping))
    return any(sys.getrefcount(tensor) > usual for tensor in tensors)


def narrow_state(state: dict[str, Any], shape: tuple[int, ...], rows: tuple[Ids | None, ...] | None) -> None:
    """Narrow what an optimiser keeps for one parameter: tensors of its shape, or of size 1 along some dimensions.

    Where it keeps tensors of another form, they are forgotten, all of this parameter's.
    """
    if rows is None:
        return
    for key, value in list(state.items()):
        if not isinstance(value, torch.Tensor):
            if all(tensor.numel() == 1 for tensor in output_tensors(value)):
                continue
            state.clear()  # preconditioners in a list, say
            return
        if value.numel() == 1:
            continue
        if value.dim() != len(shape) or any(n not in (1, size) for n, size in zip(value.shape, shape, strict=True)):
            state.clear()
            return
        own = tuple(row if n == size else None for row, n, size in zip(rows, value.shape, shape, strict=True))
        state[key] = take(value, own)


def _start_anew(optimiser: Optimizer) -> None:
    """L-BFGS keeps directions over all parameters in one vector, which no cut can follow."""
    if isinstance(optimiser, LBFGS):
        optimiser.state.clear()
        optimiser._numel_cache = None
