"""Which columns of which weights read a network's channels, and which groups of channels are read side by side.

A channel is weighed where it is read. Layers that read several groups at once (behind a concatenation) tie them into
one family, whose channels are one input vector; every other group is a family by itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._protocols import BoolArray, IntArray
from secateur.graph import Graph
from secateur.graph.channels import module_of
from secateur.graph.norms import sources
from secateur.graph.readers import readers

_Layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Reading:
    """What one layer reads of a family; of a grouped convolution, what one of its groups does.

    block: number of that group. rows: its outputs. parts: channels of the family [width] with their columns
    [width, k], for each group of channels. fixed: columns that are always there. norm: the batch norm that alone reads
    what the layer makes, or None.
    """

    layer: str
    block: int
    rows: slice
    parts: tuple[tuple[IntArray, IntArray], ...]
    fixed: IntArray
    norm: str | None

    def matrix(self, model: nn.Module) -> torch.Tensor:
        """The weights [outputs, columns] in float64."""
        weight: Any = model.get_submodule(self.layer).weight
        found: torch.Tensor = weight.detach()[self.rows].flatten(1).double()
        return found

    def columns(self, kept: BoolArray) -> BoolArray:
        """Which columns stay if these channels do."""
        result = np.zeros(len(self.fixed) + sum(columns.size for _, columns in self.parts), dtype=np.bool_)
        result[self.fixed] = True
        for channels, columns in self.parts:
            result[columns] = kept[channels][:, None]
        return result


@dataclass(frozen=True, eq=False)
class Family:
    """Groups that are read side by side; channels are numbered through them in this order."""

    groups: tuple[str, ...]
    widths: tuple[int, ...]
    readings: tuple[Reading, ...]

    @property
    def width(self) -> int:
        """Channels of all groups."""
        return sum(self.widths)

    def split(self, values: Any) -> dict[str, Any]:
        """Values of all channels by group."""
        ends = np.cumsum(self.widths)[:-1]
        return dict(zip(self.groups, np.split(np.asarray(values), ends), strict=True))


def unread(graph: Graph) -> list[str]:
    """Groups that something else reads than (not transposed) convolutions and linear layers: nobody weighs them."""
    modules = dict(graph.model.named_modules())
    others = set(readers(graph)[1])
    for group in graph.groups:
        if not all(isinstance(modules.get(module_of(m.name)), _Layers) for m in group.consumers()):
            others.add(group.name)
    return [group.name for group in graph.groups if group.name in others]


def families(graph: Graph, whole: Collection[str] = ()) -> list[Family]:
    """All families, in order of execution, without the groups of these names: their columns are always there."""
    widths = {group.name: group.width for group in graph.groups if group.name not in whole}
    reads: dict[str, list[tuple[str, IntArray]]] = {}
    for group in graph.groups:
        for member in group.consumers() if group.name in widths else ():
            reads.setdefault(module_of(member.name), []).append((group.name, member.index))
    family = {name: name for name in widths}  # each group's, by the name of its first
    for several in reads.values():
        tied = {family[name] for name, _ in several}
        least = min(tied, key=list(widths).index)
        family = {name: least if of in tied else of for name, of in family.items()}
    norms = {layer: norm for norm, layer in sources(graph).of.items() if layer is not None}
    order = sorted(reads, key=lambda name: graph.recording.first_use.get(f"{name}.weight", 0))
    result = []
    for first in dict.fromkeys(family.values()):
        names = [name for name in widths if family[name] == first]
        start = dict(zip(names, np.cumsum([0, *(widths[name] for name in names)]).tolist(), strict=False))
        found = [
            reading
            for layer in order
            if family[reads[layer][0][0]] == first
            for reading in _readings(graph.model.get_submodule(layer), layer, reads[layer], start, norms.get(layer))
        ]
        if found:
            result.append(Family(tuple(names), tuple(widths[name] for name in names), tuple(found)))
    return result


def _readings(
    module: Any, layer: str, reads: list[tuple[str, IntArray]], start: dict[str, int], norm: str | None
) -> list[Reading]:
    """One for every group of the layer: they read different inputs with the same columns."""
    each = module.weight[0, 0].numel()
    parts, free = [], np.ones(module.weight[0].numel(), dtype=np.bool_)
    for name, index in reads:
        columns = (index[:, :, None] * each + np.arange(each)).reshape(len(index), -1)
        parts.append((np.arange(start[name], start[name] + len(index)), columns))
        free[columns] = False
    blocks = getattr(module, "groups", 1)
    outputs = len(module.weight) // blocks
    return [
        Reading(layer, k, slice(k * outputs, (k + 1) * outputs), tuple(parts), np.flatnonzero(free), norm)
        for k in range(blocks)
    ]
