"""What follows for channels from which stripes stay: facts about the traced network, held once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from secateur._protocols import BoolArray, IntArray
from secateur.allocate import Constraints
from secateur.allocate.patterns import matched, parse_patterns
from secateur.graph import Graph
from secateur.graph.channels import Member, module_of


def chosen(graph: Graph, constraints: Constraints, *, pointwise: bool) -> list[str]:
    """Convolutions that get a skeleton: plain, not depthwise, of several kernel positions, used, and not ignored."""
    patterns = parse_patterns(graph, constraints.ignore, "ignore")
    owners: dict[int, int] = {}
    for module in graph.model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = []
    for name, layer in graph.model.named_modules():
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or not name:
            continue
        weight = layer._parameters.get("weight")
        if weight is None or owners[id(weight)] > 1 or f"{name}.weight" not in graph.recording.first_use:
            continue
        depthwise = layer.groups == layer.in_channels > 1
        if depthwise or (layer.kernel_size == (1, 1) and not pointwise):
            continue
        place = [Member(f"{name}.weight", 0, "producer", np.empty((0, 0), np.int64))]
        if not any(matched(pattern, place) for pattern in patterns):
            found.append(name)
    return found


class Stripes:
    """Which channels go, and which vectors are zero, when these stripes stay.

    kept, in all of its questions: bool [filters, kernel height, kernel width] by convolution.
    """

    def __init__(self, graph: Graph, layers: Sequence[str], constraints: Constraints) -> None:
        self.graph = graph
        modules = dict(graph.model.named_modules())
        self.shapes = {name: tuple(modules[name].weight.shape[:1] + modules[name].weight.shape[2:]) for name in layers}
        self._made: dict[str, list[tuple[str, IntArray]]] = {}  # group -> filters that make each channel
        self._others: dict[str, bool] = {}  # group -> whether something else makes or keeps it
        self._vectors: dict[str, list[tuple[str, IntArray]]] = {}
        self._readers: dict[str, list[str]] = {}
        floors, self._steps = constraints.grid(graph)
        self._floors = floors.tolist()
        for group in graph.groups:
            self._look(group.name, group.members, graph)

    def _look(self, group: str, members: Sequence[Member], graph: Graph) -> None:
        tensors = graph.tensors()
        made, others, readers = [], False, []
        vectors = []
        for member in members:
            owner, shape = module_of(member.name), tensors[member.name].shape
            if member.role == "consumer":
                readers.append(owner if owner in self.shapes and member.dim == 1 else "")
            elif len(shape) == 1:
                vectors.append((member.name, member.index))
            elif member.dim == 0 and owner in self.shapes and member.name == f"{owner}.weight":
                made.append((owner, member.index))
            else:  # a layer without a skeleton, or one that filters channel by channel
                others = True
        self._made[group], self._others[group] = made, others or not made
        self._readers[group], self._vectors[group] = readers, vectors

    def _alive(self, group: str, kept: Mapping[str, BoolArray]) -> BoolArray:
        """Channels of a group that some stripe still makes."""
        width = next(g.width for g in self.graph.groups if g.name == group)
        if self._others[group]:
            return np.ones(width, dtype=np.bool_)
        alive = np.zeros(width, dtype=np.bool_)
        for name, index in self._made[group]:
            alive |= np.asarray(kept[name].any((1, 2)))[index].any(1)
        return alive

    def _is_unread(self, group: str, kept: Mapping[str, BoolArray]) -> bool:
        """Whether every layer that reads the group has lost all of its stripes."""
        readers = self._readers[group]
        return bool(readers) and all(name and not kept[name].any() for name in readers)

    def masks(self, kept: Mapping[str, BoolArray]) -> dict[str, BoolArray]:
        """Channels that stay: made and read; of those that are not, as many as constraints ask for, the first ones."""
        found = {}
        for number, group in enumerate(self.graph.groups):
            alive = self._alive(group.name, kept) & (not self._is_unread(group.name, kept))
            least, step = self._floors[number], int(self._steps[number])
            wanted = max(int(alive.sum()), least)
            width = min(least + -(-(wanted - least) // step) * step, group.width)
            mask = alive.copy()
            mask[np.flatnonzero(~alive)[: width - int(alive.sum())]] = True
            found[group.name] = mask
        return found

    def unread(self, kept: Mapping[str, BoolArray]) -> set[str]:
        """Convolutions all of whose channels nobody reads."""
        found = set()
        for group in self.graph.groups:
            if self._is_unread(group.name, kept):
                found |= {
                    name for name, index in self._made[group.name] if len(np.unique(index)) == self.shapes[name][0]
                }
        return found

    def vectors(self, kept: Mapping[str, BoolArray]) -> dict[str, BoolArray]:
        """Affines and biases by name, with False where every filter that makes the channel is empty."""
        found: dict[str, BoolArray] = {}
        tensors = self.graph.tensors()
        for group in self.graph.groups:
            alive = self._alive(group.name, kept)
            for name, index in self._vectors[group.name]:
                if isinstance(tensors[name], nn.Parameter):
                    stays = found.setdefault(name, np.ones(len(tensors[name]), dtype=np.bool_))
                    stays[index] = alive[:, None]
        return {name: stays for name, stays in found.items() if not stays.all()}
