"""Which channels of a group a narrow network inherits: rules by which filters are ranked, each for the whole network.

    l1 = sum |W_c|     l2 = (sum W_c²)^1/2     bn = |gamma_c|     gm = sum_c' |W_c - W_c'|     (large = hard to replace)

All are taken from the trained weights, over all inputs, so that they do not depend on an order of layers. A channel
that several layers make has the sum of its scores there, each over that layer's mean. `first`, `random` are controls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch

from secateur._protocols import FloatArray
from secateur.graph import Graph, Group
from secateur.graph.norms import Sources
from secateur.methods.adapruner.ratios import scales

Rule = Literal["l1", "l2", "gm", "bn", "first", "random"]


def ranked(graph: Graph, rule: Rule, seed: int, known: Sources) -> dict[str, FloatArray]:
    """Scores of every group [width], higher = inherited; `bn` ranks groups without norms by l1. known: of `graph`."""
    gammas = scales(graph, known) if rule == "bn" else {}
    found = {}
    for number, group in enumerate(graph.groups):
        if rule == "first":
            found[group.name] = -np.arange(group.width, dtype=np.float64)
        elif rule == "random":
            found[group.name] = np.random.default_rng([seed, number]).permutation(group.width).astype(np.float64)
        elif gammas.get(group.name):
            found[group.name] = _summed(gammas[group.name], group.width)
        else:
            found[group.name] = _summed([FILTERS.get(rule, l1)(w) for w in _filters(graph, group)], group.width)
    return found


def _summed(parts: list[FloatArray], width: int) -> FloatArray:
    """The sum of scores over the mean of each layer's."""
    return np.asarray(sum((part / max(float(part.mean()), 1e-300) for part in parts), np.zeros(width)))


def _filters(graph: Graph, group: Group) -> list[torch.Tensor]:
    """What makes the channels, one [width, weights] in double precision for each layer."""
    tensors, found = graph.tensors(), []
    for member in group.producers():
        tensor = tensors[member.name].detach()
        if tensor.ndim > 1:
            rows = tensor.double().cpu().movedim(member.dim, 0).flatten(1)
            found.append(rows[torch.from_numpy(member.index)].flatten(1))
    return found


def l1(filters: torch.Tensor) -> FloatArray:
    """Sums of absolute values of filters [width, weights]."""
    return np.asarray(filters.abs().sum(1).numpy())


def l2(filters: torch.Tensor) -> FloatArray:
    """Euclidean norms of filters [width, weights]."""
    return np.asarray(filters.norm(dim=1).numpy())


def gm(filters: torch.Tensor) -> FloatArray:
    """The sum of distances from each filter [width, weights] to all others."""
    products = filters @ filters.T
    norms = products.diagonal()
    return np.asarray((norms[:, None] + norms[None] - 2 * products).clamp_min(0.0).sqrt().sum(1).numpy())


FILTERS: Mapping[str, Callable[[torch.Tensor], FloatArray]] = {"l1": l1, "l2": l2, "gm": gm}
