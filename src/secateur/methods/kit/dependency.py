"""What goes when one channel goes: every weight that makes or reads it, and what the network then no longer costs.

CPMC scores by these three values; see there for the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import nn

from secateur._protocols import FloatArray, IntArray
from secateur.allocate.blocks import Bounds
from secateur.graph import Graph
from secateur.graph.channels import Group, Member, module_of

_PIECE = 1 << 16  # elements of one float64 working array: small enough to stay in the processor's cache


def weight_values(graph: Graph, norm: str = "l1") -> list[FloatArray]:
    """V_u [width] of every group: the norm of the conv and linear weights in D(u), each scalar once."""
    power, tensors, weights = (1 if norm == "l1" else 2), graph.tensors(), summed(graph) | _kernels(graph)
    sums: dict[tuple[str, int], FloatArray] = {}  # in a dense network many groups read one weight
    values = []
    for group in graph.groups:
        total = np.zeros(group.width)
        for members in _by_tensor(group, weights):
            for member in members:
                key = (member.name, member.dim)
                if key not in sums:
                    sums[key] = _sums(tensors[member.name], member.dim, power)
                total += sums[key][member.index].sum(axis=1)
            for count in range(2, len(members) + 1):  # what lies in two slices was counted twice
                for chosen in combinations(members, count):
                    total += (-1) ** (count + 1) * _common(tensors[members[0].name], chosen, power)
        total = np.maximum(total, 0.0)
        values.append(total if power == 1 else np.sqrt(total))
    return values


def savings(graph: Graph, widths: IntArray) -> tuple[FloatArray, FloatArray]:
    """C_u and P_u [groups]: what the network loses with one channel of each group, at these widths."""
    model = Bounds(graph.costs, {"macs": 0.0, "params": 0.0})
    saved = model.one(widths) - model.evaluate(widths - np.eye(len(widths), dtype=np.int64))
    return saved[:, 0], saved[:, 1]


def summed(graph: Graph) -> set[str]:
    """Weights that an operator sums over: those of convolutions and linear layers, but for depthwise ones."""
    return {place.name for place in graph.solution.places if place.role == "consumer"}


def _kernels(graph: Graph) -> set[str]:
    """Kernels of convolutions, depthwise ones too."""
    modules = dict(graph.model.named_modules())
    kinds = {name: modules.get(module_of(name)) for name, tensor in graph.tensors().items() if tensor.ndim >= 3}
    return {name for name, module in kinds.items() if isinstance(module, nn.modules.conv._ConvNd)}


def _by_tensor(group: Group, weights: set[str]) -> list[list[Member]]:
    """The members in `weights`, those of one tensor together."""
    found: dict[str, list[Member]] = {}
    for member in group.members:
        if member.name in weights:
            found.setdefault(member.name, []).append(member)
    return list(found.values())


def _sums(tensor: torch.Tensor, dim: int, power: int) -> FloatArray:
    """Sums of |w|^power over all other dimensions, in float64 and pieces."""
    others = [d for d in range(tensor.ndim) if d != dim]
    rows = max(1, _PIECE * tensor.shape[dim] // max(tensor.numel(), 1))
    parts = [part.cpu() for part in tensor.detach().split(rows, dim)]
    norms = [torch.linalg.vector_norm(part, power, dim=others, dtype=torch.float64) for part in parts]
    result: FloatArray = (torch.cat(norms) ** power).numpy()
    return result


def _common(tensor: torch.Tensor, members: Sequence[Member], power: int) -> FloatArray:
    """Sums [width] of |w|^power over what lies in the slices along every member's dimension."""
    count, width = len(members), len(members[0].index)
    moved = tensor.detach().cpu().movedim([m.dim for m in members], list(range(count)))
    shapes = [[width, *(-1 if other == at else 1 for other in range(count))] for at in range(count)]
    index = [torch.from_numpy(np.ascontiguousarray(m.index)).reshape(s) for m, s in zip(members, shapes, strict=True)]
    result: FloatArray = (moved[tuple(index)].abs().double() ** power).reshape(width, -1).sum(1).numpy()
    return result
