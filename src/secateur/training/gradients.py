"""Gradients of several processes become one, as if a single process had seen the whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import distributed

from secateur._distributed import world


def add_up(parameters: Sequence[torch.nn.Parameter], numbers: torch.Tensor) -> torch.Tensor:
    """Sum gradients, in place, and `numbers` over all processes; returns the sum of `numbers`.

    A parameter that took no part in one process counts as zero there; one that took part in none keeps no gradient.
    """
    if world() == 1:
        return numbers
    for group in _alike(parameters):
        # who has a gradient travels with the gradients, so that all processes agree
        own = [p.grad is not None for p in group]
        there = group[0].new_tensor([float(has) for has in own])
        flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in group]
        whole = torch.cat([there, *flat])
        distributed.all_reduce(whole)
        there, rest = whole[: len(group)], whole[len(group) :]
        pieces = rest.split([p.numel() for p in group])
        used = own if all(own) else (there > 0).tolist()  # reading waits for a GPU
        for parameter, has, piece in zip(group, used, pieces, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(piece.view_as(parameter)) if has else None
    numbers = numbers.clone()
    distributed.all_reduce(numbers)
    return numbers


def any_of(wish: bool, device: torch.device) -> bool:
    """Whether any process wants it."""
    if world() == 1:
        return wish
    votes = torch.tensor([float(wish)]).to(device)
    distributed.all_reduce(votes)
    return bool(votes > 0)


@torch.no_grad()
def take_firsts(tensors: Iterable[torch.Tensor]) -> None:
    """Give all processes the first one's values, in place."""
    for tensor in tensors:
        # collectives want dense memory, and know no booleans
        kind = torch.uint8 if tensor.dtype == torch.bool else tensor.dtype
        sent = tensor.to(kind, memory_format=torch.contiguous_format, copy=True)
        distributed.broadcast(sent, 0)
        tensor.copy_(sent)


def _alike(parameters: Iterable[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    groups: dict[torch.dtype, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.dtype, []).append(parameter)
    return list(groups.values())
