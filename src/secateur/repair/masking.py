"""What a plan takes away, as zeros in a model that keeps its shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from secateur._protocols import IntArray

#: Kept indices along every dimension (None: all) by name of a tensor, as `Graph.slices` gives them.
Slices = Mapping[str, tuple[IntArray | None, ...]]


def alive(slices: Slices, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Masks in the shapes of the parameters that a cut narrows: True where kept indices meet.

    What weight norm divides by its own norm keeps the slices whose magnitude goes: they are zero without a 0/0.
    """
    found = {}
    for name, kept in slices.items():
        if name not in parameters or all(rows is None for rows in kept):
            continue
        tensor = parameters[name]
        mask = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
        for dim, rows in enumerate(kept):
            if rows is not None and dim not in _scaled(name, parameters):
                mask &= along(rows, dim, tensor)
        found[name] = mask
    return found


def _scaled(name: str, parameters: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Dimensions along which weight norm gives a tensor of directions a magnitude that is a parameter of its own."""
    magnitude = None
    for directions, scales in (("weight_v", "weight_g"), (".original1", ".original0")):
        if name.endswith(directions):
            magnitude = parameters.get(name.removesuffix(directions) + scales)
    if magnitude is None or magnitude.ndim != parameters[name].ndim:
        return ()
    return tuple(dim for dim, size in enumerate(magnitude.shape) if size == parameters[name].shape[dim] > 1)


def apply_masks(
    model: nn.Module, masks: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Give parameters new values where there are some, and zeros where their masks say."""
    with torch.no_grad():
        for name, value in (values or {}).items():
            parameter = model.get_parameter(name)
            parameter.copy_(value.view_as(parameter))
        for name, mask in masks.items():
            parameter = model.get_parameter(name)
            parameter.mul_(mask.to(parameter.device))


def along(rows: IntArray, dim: int, tensor: torch.Tensor) -> torch.Tensor:
    """A mask of one dimension, to be broadcast."""
    mask = torch.zeros(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    mask[torch.from_numpy(rows).to(tensor.device)] = True
    return mask.view([-1 if k == dim else 1 for k in range(tensor.ndim)])
