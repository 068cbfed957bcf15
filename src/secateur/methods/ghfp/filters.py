"""The filters of every group, all that makes a channel: their norm together, and multipliers on all of it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.graph import Graph
from secateur.graph.channels import module_of


def floor_count(width: int, share: float) -> int:
    """floor(N P), where N P may be a whole number but for rounding: 10 filters at 0.1 are 1, not 0."""
    return int(np.floor(width * share + 1e-9))


@dataclass(frozen=True)
class Event:
    """What becomes of the filters of one group: a multiplier for each, and which are pruned (S) and hard (H)."""

    multipliers: FloatArray
    pruned: BoolArray
    hard: BoolArray


def order(norms: FloatArray, hard: BoolArray) -> IntArray:
    """In which order filters are pruned: those that are hard, then by their norm, ties by their number."""
    found: IntArray = np.lexsort((norms, ~hard))
    return found


def event(norms: FloatArray, hard: BoolArray, *, prune: int, harden: int, factor: float) -> Event:
    """Prune the `prune` filters of least norm, `harden` of them for good; those that are hard stay so.

    W_i <- W_i (M_i + alpha (1 - M_i) Hm_i): 1 for filters that stay, alpha for soft ones, 0 for hard ones.
    """
    first = order(norms, hard)
    pruned, hardened = hard.copy(), hard.copy()
    pruned[first[:prune]] = True
    hardened[first[:harden]] = True
    stays, soft = ~pruned, ~hardened  # M and Hm
    return Event(stays + factor * pruned * soft, pruned, hardened)


class Filters:
    """All parameters and float buffers that make channels, and where each channel is in them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.groups = {group.name: group.producers() for group in graph.groups}
        parameters = {name for name, _ in graph.model.named_parameters(remove_duplicate=False)}
        dims = {name: tensor.ndim for name, tensor in graph.tensors().items()}
        own = {name: [m for m in members if m.name in parameters] for name, members in self.groups.items()}
        self._weights = {name: [m for m in ms if dims[m.name] > 1] or ms for name, ms in own.items()}
        kernels = {module_of(m.name) for members in self._weights.values() for m in members if dims[m.name] > 1}
        self._norms = {m.name for members in own.values() for m in members if module_of(m.name) not in kernels}

    def norms(self) -> dict[str, FloatArray]:
        """||W_u|| [width] of every group: the root of the sum of squares over all weights that make a channel."""
        tensors, done = self.graph.tensors(), dict[tuple[str, int], FloatArray]()
        found = {}
        for group in self.graph.groups:
            squares = np.zeros(group.width)
            for member in self._weights[group.name]:
                key = member.name, member.dim
                if key not in done:
                    rows = tensors[member.name].detach().cpu().double().movedim(member.dim, 0)
                    done[key] = rows.square().reshape(len(rows), -1).sum(1).numpy()
                squares += done[key][member.index].sum(1)
            found[group.name] = np.sqrt(squares)
        return found

    def factors(
        self, multipliers: Mapping[str, FloatArray], *, norms: bool = True
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Every tensor that makes channels, with what it is to be multiplied by.

        multipliers: [width] of every group. norms: whether scales and shifts of norms are among them.
        """
        tensors, found = self.graph.tensors(), list[tuple[torch.Tensor, torch.Tensor]]()
        vectors: dict[tuple[str, int], FloatArray] = {}
        for group, members in self.groups.items():
            for member in members:
                tensor = tensors[member.name]
                left = member.name in self._norms and not norms
                if tensor.is_floating_point() and not left and (multipliers[group] != 1).any():
                    vector = vectors.setdefault((member.name, member.dim), np.ones(tensor.shape[member.dim]))
                    vector[member.index] = multipliers[group][:, None]
        for (name, dim), vector in vectors.items():
            tensor = tensors[name]
            shape = [-1 if axis == dim else 1 for axis in range(tensor.ndim)]
            found.append((tensor, torch.from_numpy(vector).to(tensor).view(shape)))
        return found
