"""The filter skeleton: one learnable number a stripe, multiplied onto convolutions while a network trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Skeleton(nn.Module):
    """The skeleton of one convolution: I [filters, kernel height, kernel width], all ones at first.

    stays: which stripes have never fallen to the threshold; what has, stays out.
    """

    stays: torch.Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        """Make `layer` compute with W * I from now on; its weight stays the parameter it is."""
        super().__init__()
        shape = (layer.out_channels, *layer.kernel_size)
        self.values = nn.Parameter(torch.ones(shape, dtype=layer.weight.dtype, device=layer.weight.device))
        self.register_buffer("stays", torch.ones(shape, dtype=torch.bool, device=layer.weight.device))
        self._only: torch.Tensor | None = None  # stripes looked at in evaluation, None: all that are there
        layer.__dict__["_conv_forward"] = _Multiplied(layer, self)

    def current(self) -> torch.Tensor:
        """I, with the stripes that are looked at alone."""
        return self.values if self._only is None else self.values * self._only

    def look_at(self, only: torch.Tensor | None) -> None:
        """From now on compute with these stripes alone; None: with all."""
        self._only = only

    @torch.no_grad()
    def threshold(self, delta: float) -> None:
        """Q = stays and |I| > delta; I <- I Q."""
        self.stays &= self.values.abs() > delta
        self.values.mul_(self.stays)

    @torch.no_grad()
    def drop(self, stays: torch.Tensor) -> int:
        """Take out all stripes but these, for good; returns how many that were there."""
        before = int(self.stays.sum())
        self.stays &= stays.to(self.stays.device)
        self.values.mul_(self.stays)
        return before - int(self.stays.sum())

    def mask_gradient(self) -> None:
        """grad I <- grad I Q: dL/dI = sum_c W D is not zero where I is."""
        if self.values.grad is not None:
            self.values.grad *= self.stays


class _Multiplied:
    """What a convolution with a skeleton computes instead; copies of the layer share it until it is taken out."""

    def __init__(self, layer: nn.Conv2d, skeleton: Skeleton) -> None:
        self._own = type(layer)._conv_forward
        self._layer, self._skeleton = [layer], skeleton

    def __deepcopy__(self, memo: dict[int, Any]) -> _Multiplied:
        return self

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # Weff = W * I[:, None]
        out: torch.Tensor = self._own(self._layer[0], x, weight * self._skeleton.current()[:, None], bias)
        return out


def taken_out(model: nn.Module, skeletons: Mapping[str, Skeleton]) -> None:
    """Fold W <- W I into a copy of the model, and make its convolutions ordinary again."""
    for name, skeleton in skeletons.items():
        layer = model.get_submodule(name)
        del layer.__dict__["_conv_forward"]
        with torch.no_grad():
            layer.get_parameter("weight").mul_(skeleton.current()[:, None])
