"""Channels that go leave their share with one that stays: what reads it gets their weights, scaled, on top of its own.

With the least squares s of `statistics/likeness.py`, measured in front of every reader, A_i ≈ s A_k, and so

    W_k A_k + W_i A_i ≈ (W_k + s W_i) A_k                    (equal where maps are multiples, as of equal filters)

`repair/merging.py` merges filters that were made equal, without a scale, into the first of each cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.graph import Graph, Group
from secateur.graph.channels import module_of
from secateur.methods.sample_gates import readers
from secateur.repair.merging import mergeable
from secateur.statistics.likeness import Likeness


def heirs(labels: IntArray, gamma: FloatArray, kept: BoolArray) -> tuple[IntArray, IntArray]:
    """The channels that go, and for each the strongest (γ) of its cluster that stays; the first of equals.

    Every cluster has one that stays.
    """
    strength = np.where(kept, gamma, -np.inf)
    gone = np.flatnonzero(~kept)
    same = labels[gone][:, None] == labels[None]
    return gone, np.where(same, strength, -np.inf).argmax(1).astype(np.int64)


def places(graph: Graph, names: Iterable[str]) -> dict[str, dict[str, IntArray]]:
    """Where each group is in what layers read: {layer: {group: [width, k]}}.

    names: of groups that convolutions and linear layers alone read.
    """
    tables, _ = readers(graph)
    chosen, found, first = set(names), dict[str, dict[str, IntArray]](), 0
    for group in graph.groups:
        for name, table in tables.items() if group.name in chosen else ():
            own = np.flatnonzero((table >= first) & (table < first + group.width))
            if len(own):
                index = own[np.argsort(table[own], kind="stable")].reshape(group.width, -1)
                found.setdefault(name, {})[group.name] = index
        first += group.width
    return found


def inexact(graph: Graph, names: Iterable[str], seed: int) -> list[str]:
    """Groups in which equal channels cannot become one: random clusters are tried on random weights, in one cut.

    Only if that fails one group is tried after the other. A layer norm, say, sees how often something is there.
    """
    generator, chosen = np.random.default_rng(seed), set(names)
    tried = {
        group.name: generator.integers(0, -(-group.width // 2), group.width)
        for group in graph.groups
        if group.name in chosen
    }
    if not tried or mergeable(graph, tried, seed=seed):
        return []
    return [name for name in tried if not mergeable(graph, {name: tried[name]}, seed=seed)]


@torch.no_grad()
def absorb(
    tensors: Mapping[str, torch.Tensor], group: Group, gone: IntArray, stays: IntArray, likeness: Likeness
) -> None:
    """Add what reads channels `gone` to what reads channels `stays`, scaled as the maps are, in place.

    tensors: parameters by name. Behind a flattening, a channel's columns are added one by one; in a concatenation, at
    each of its places. What reads the ones that go becomes zero, so that they may.
    """
    for member in group.consumers():
        scale = torch.from_numpy(likeness.scales(module_of(member.name), group.name, gone, stays))
        weight = tensors[member.name].detach().movedim(member.dim, 0)
        wide = weight.double()
        share = scale.repeat_interleave(member.index.shape[1]).view(-1, *[1] * (weight.dim() - 1)).to(wide.device)
        own, heir = (torch.from_numpy(member.index[each].ravel()).to(wide.device) for each in (gone, stays))
        weight.copy_(wide.index_add(0, heir, share * wide[own]).index_fill(0, own, 0.0))
