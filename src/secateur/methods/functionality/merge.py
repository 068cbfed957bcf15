"""Channels that go leave their share with one that stays: what reads it gets their weights, scaled, on top of its own.

With the least squares s = <A_i, A_k> / <A_k, A_k>, measured in front of every reader over all samples and positions,
A_i ≈ s A_k, and so

    W_k A_k + W_i A_i ≈ (W_k + s W_i) A_k                    (equal where maps are multiples, as of equal filters)

`repair/merging.py` merges filters that were made equal, without a scale, into the first of each cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_sum
from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.graph import Graph, Group
from secateur.graph.channels import module_of
from secateur.graph.readers import readers
from secateur.repair.merging import mergeable
from secateur.statistics.gather import Collector
from secateur.statistics.patches import BLOCK, add_square, mirrored


class Likeness(Collector):
    """<A_i, A_j> of all channels i and j of a group, as one layer reads them, over samples and positions.

    Memory: 8 · width² bytes for each group in front of each of its readers (2 MB for 512 channels), whatever is shown,
    and one block of maps. Products are made and summed in double precision.
    """

    def __init__(self, places: Mapping[str, Mapping[str, IntArray]]) -> None:
        """places: {layer: {group: [width, k]}}, where each channel is in what the layer reads."""
        self._places = places
        self._upper: dict[tuple[str, str], torch.Tensor] = {}

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hooks in front of the layers."""
        device = next(model.parameters()).device
        for name, groups in self._places.items():
            for group, index in groups.items():
                shape = (1, len(index), len(index))
                self._upper[name, group] = torch.zeros(shape, dtype=torch.float64, device=device)
            layer = model.get_submodule(name)
            yield layer.register_forward_pre_hook(partial(self._read, name), with_kwargs=True)

    @torch.no_grad()
    def _read(self, name: str, layer: nn.Module, args: Any, keywords: Any) -> None:
        maps: torch.Tensor = (args[0] if args else keywords["input"]).detach()
        last = maps.movedim(-1 if isinstance(layer, nn.Linear) else 1, -1)
        spots = last.reshape(-1, last.shape[-1])
        for group, index in self._places[name].items():
            columns = torch.from_numpy(np.ascontiguousarray(index.T)).flatten().to(maps.device)  # k by k
            for part in spots.split(max(BLOCK // index.size, 1)):
                block = part[:, columns].double().view(-1, len(index)).T  # a map is all that one channel has there
                add_square(self._upper[name, group], block[None], 1.0)

    def total(self) -> None:
        """Add up over processes."""
        self._upper = {key: global_sum(self._upper[key]) for key in sorted(self._upper)}

    def scales(self, layer: str, group: str, gone: IntArray, stays: IntArray) -> FloatArray:
        """s of the maps of channels `gone` by those of channels `stays`, pair by pair; 0 where the latter are zero."""
        products = mirrored(self._upper[layer, group])[0].cpu().numpy()
        own = products[stays, stays]
        alive = own > 0
        result: FloatArray = np.where(alive, products[gone, stays] / np.where(alive, own, 1.0), 0.0)
        return result


def heirs(labels: IntArray, gamma: FloatArray, kept: BoolArray) -> tuple[IntArray, IntArray]:
    """The channels that go, and for each the strongest (γ) of its cluster that stays; the first of equals.

    Every cluster has one that stays.
    """
    strength = np.where(kept, gamma, -np.inf)
    gone = np.flatnonzero(~kept)
    same = labels[gone][:, None] == labels[None]
    return gone, np.where(same, strength, -np.inf).argmax(1).astype(np.int64)


def read_places(graph: Graph, names: Iterable[str]) -> dict[str, dict[str, IntArray]]:
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
