"""What stands directly behind a layer: its batch norm, and an activation. Outputs are compared behind both.

phi = activation(norm(layer(x)))      for a layer whose output the norm, and then the activation, alone reads
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from secateur.graph import Graph
from secateur.graph.calls import Mode
from secateur.graph.modules import as_call, clone_module, map_tensors, module_stack, to_meta
from secateur.graph.rules import tensors_in

#: Activations that are looked through, by the name of their operator without a trailing underscore.
_ACTIVATIONS = ("relu", "hardtanh", "leaky_relu", "silu", "gelu", "hardswish", "elu", "sigmoid", "tanh")


@dataclass(frozen=True)
class Behind:
    """What follows one layer: the name of its norm, None if there is none, and the activation."""

    norm: str | None
    activation: Callable[[torch.Tensor], torch.Tensor]


def behind(graph: Graph, norms: dict[str, str]) -> dict[str, Behind]:
    """What follows every layer. norms: the norm that alone reads a layer's output, by layer."""
    watch = _Watch()
    storage = to_meta if graph.recording.on_meta else torch.clone
    twin = clone_module(graph.model, lambda tensor: storage(tensor.detach())).eval()
    args, keywords = as_call(map_tensors(graph.example_inputs, storage))
    with torch.no_grad(), module_stack(twin, watch.stack, watch.leave), watch:
        twin(*args, **keywords)
    modules = dict(graph.model.named_modules())
    return {
        name: Behind(norms.get(name), watch.activation(norms.get(name) or name))
        for name, module in modules.items()
        if getattr(module, "weight", None) is not None
    }


def compared(model: nn.Module, follows: Behind, output: torch.Tensor) -> torch.Tensor:
    """phi of a layer's output; a norm in training normalises by this batch and leaves its running statistics alone."""
    if follows.norm is not None:
        norm: Any = model.get_submodule(follows.norm)
        own = norm.training or norm.running_mean is None
        mean, var = (None, None) if own else (norm.running_mean, norm.running_var)
        output = F.batch_norm(output, mean, var, norm.weight, norm.bias, training=own, eps=norm.eps)
    return follows.activation(output)


class _Watch(Mode):
    """Notes which operator alone reads what a module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = [""]
        self._reads: dict[int, list[tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {}
        self._made: dict[str, int] = {}
        self._runs: Counter[str] = Counter()
        self._alive: list[Any] = []  # or identities would be used again

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        for tensor in tensors_in((args, list((kwargs or {}).values()))):
            self._reads.setdefault(id(tensor), []).append((func, args[1:], kwargs or {}))
            self._alive.append(tensor)
        out = func(*args, **(kwargs or {}))
        self._alive.append(out)
        return out

    def leave(self, name: str, output: Any) -> None:
        """Follow a module that returns."""
        self._runs[name] += 1
        if isinstance(output, torch.Tensor):
            self._made.setdefault(name, id(output))
            self._alive.append(output)

    def activation(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The activation that reads what the module returns first, or nothing."""
        reads = self._reads.get(self._made.get(name, 0), [])
        if self._runs[name] != 1 or not reads:
            return _nothing
        func, args, keywords = reads[0]
        plain = func.name().split("::")[-1].split(".")[0]
        in_place = plain.endswith("_")
        if plain.rstrip("_") not in _ACTIVATIONS or (len(reads) > 1 and not in_place):
            return _nothing
        return lambda x: func(x.clone() if in_place else x, *args, **keywords)


def _nothing(x: torch.Tensor) -> torch.Tensor:
    return x
