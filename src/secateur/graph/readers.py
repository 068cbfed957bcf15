"""Which layers read the channels of a graph, and where; which groups several layers make together by a sum.

Facts about a traced network that methods ask for: gates stand where channels are read, streams may stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from secateur._protocols import IntArray
from secateur.graph.channels import Member, module_of
from secateur.graph.trace import Graph

_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_Forward = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Convolutions = (*_Forward, *_Transposed)


def readers(graph: Graph) -> tuple[dict[str, IntArray], list[str]]:
    """Every layer that reads channels, with the channel at each position of its input (-1: of none).

    Channels are numbered through all groups. Second, the groups that something else reads as well: they get no gates.
    """
    modules = dict(graph.model.named_modules())
    called = {call.module for call in graph.recording.calls}
    found: dict[str, IntArray] = {}
    others = []
    first = 0
    for group in graph.groups:
        places = [(module_of(member.name), _positions(modules, called, member)) for member in group.consumers()]
        if not places or any(index is None for _, index in places):
            others.append(group.name)
        for name, index in places:
            if index is not None and group.name not in others:
                table = found.setdefault(name, np.full(_inputs(modules[name]), -1, dtype=np.int64))
                table[index] = np.arange(first, first + group.width)[:, None]
        first += group.width
    return found, others


def observed(graph: Graph) -> tuple[dict[str, IntArray], list[str]]:
    """Layers and the channel at each position of their input, as `readers`, with depthwise convolutions among them."""
    tables, others = readers(graph)
    modules = dict(graph.model.named_modules())
    called = {call.module for call in graph.recording.calls}
    first = 0
    for group in graph.groups:
        for member in group.producers():
            name = module_of(member.name)
            layer: Any = modules.get(name)
            depthwise = isinstance(layer, _Forward) and 1 < layer.groups == layer.in_channels
            if depthwise and member.name == f"{name}.weight" and name in called and group.name not in others:
                table = tables.setdefault(name, np.full(layer.in_channels, -1, dtype=np.int64))
                outputs = layer.out_channels // layer.groups  # of each input channel
                table[member.index // outputs] = np.arange(first, first + group.width)[:, None]
        first += group.width
    return tables, others


def summed(graph: Graph) -> list[bool]:
    """For every group whether several layers make its channels together, by a sum: a residual stream."""
    modules = dict(graph.model.named_modules())
    result = []
    for group in graph.groups:
        names = [m.name for m in group.producers() if m.dim == 0 and m.name.endswith(".weight")]
        layers = [modules.get(module_of(name)) for name in names]
        result.append(
            sum(isinstance(x, (nn.Linear, *_Convolutions)) and getattr(x, "groups", 1) == 1 for x in layers) > 1
        )
    return result


def _positions(modules: Mapping[str, nn.Module], called: set[str], member: Member) -> IntArray | None:
    """Where channels are in the input of the layer that has this member, [width, k]; None if that is no such layer."""
    name = module_of(member.name)
    layer = modules.get(name)
    if name not in called or not isinstance(layer, (nn.Linear, *_Convolutions)):
        return None
    if member.dim != (0 if isinstance(layer, _Transposed) else 1):
        return None
    if isinstance(layer, (nn.Linear, *_Transposed)) or layer.groups == 1:
        return member.index
    step = layer.in_channels // layer.groups  # the weight has slices for the inputs of one group, and all read alike
    return np.concatenate([member.index + step * k for k in range(layer.groups)], axis=1)


def _inputs(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)
