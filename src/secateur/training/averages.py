"""A moving average of the weights and buffers (EMA), which is often a better network than the last step's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from secateur._protocols import IntArray
from secateur.graph.cut import take


class Average:
    """a ← d·a + (1 − d)·w after every step, with d = min(decay, (1 + t) / (10 + t)), so that the start is forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow optimiser step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                averages.append(self.tensors[name])
                values.append(value)
            else:  # counters have no average
                self.tensors[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def follow(self, kept: Mapping[str, tuple[IntArray | None, ...]]) -> None:
        """Get narrower with the module: `kept` are the indices left along each dimension of a tensor (None: all)."""
        for name, rows in kept.items():
            self.tensors[name] = take(self.tensors[name], rows)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the module holds the average."""
        own = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        assign(self.module, self.tensors)
        try:
            yield
        finally:
            assign(self.module, own)


@torch.no_grad()
def assign(module: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the parameters and buffers of the same names."""
    for name, tensor in module.state_dict().items():
        tensor.copy_(values[name])
