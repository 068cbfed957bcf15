"""Pruned entries that stay zero in training, whatever momentum and weight decay do: for methods that prune in it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

#: Parameters with masks of their shape, or that broadcast to it; 0 where an entry is pruned.
Masked = Iterable[tuple[torch.Tensor, torch.Tensor]]


def stop_gradients(masked: Masked) -> None:
    """Pruned entries get no gradient, so that momentum does not gather; called after each backward pass."""
    for parameter, mask in masked:
        if parameter.grad is not None:
            parameter.grad.mul_(mask.to(parameter.device))


@torch.no_grad()
def hold(masked: Masked) -> None:
    """Pruned entries are zero; called after each step of the optimiser."""
    for parameter, mask in masked:
        parameter.mul_(mask.to(parameter.device))
