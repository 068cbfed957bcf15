"""Which normalisation layers carry a group's channels, and which layer feeds each: where gates can stand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur._protocols import IntArray
from secateur.graph import Graph, Group
from secateur.graph.calls import Mode, schema_of
from secateur.graph.modules import as_call, clone_module, map_tensors, module_stack, to_meta
from secateur.graph.rules import tensors_in
from secateur.graph.shapes import run_on_meta

_Sources = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a group passes through a norm: channel c is at positions `index[c]` ([width, k])."""

    norm: str
    group: str
    index: IntArray
    owner: bool  # it is among the norms that make the group's channels, before anything has read them


@dataclass(frozen=True)
class Sources:
    """What feeds each norm that runs once: the layer whose output it alone reads, or None."""

    of: dict[str, str | None]


def sources(graph: Graph) -> Sources:
    """Run the model once without storage and see who reads what.

    Norms that run several times, or are never reached, are not listed.
    """
    modules = dict(graph.model.named_modules())
    meta = graph.recording.on_meta
    recorder = _Readers({name for name, m in modules.items() if isinstance(m, _Sources)}, meta=meta)
    storage = to_meta if meta else torch.clone
    twin = clone_module(graph.model, lambda tensor: storage(tensor.detach())).eval()
    args, keywords = as_call(map_tensors(graph.example_inputs, storage))
    with torch.no_grad(), module_stack(twin, recorder.stack, recorder.leave), recorder:
        twin(*args, **keywords)
    norms = {name for name, m in modules.items() if isinstance(m, _BatchNorm)}
    once = [name for name in recorder.order if name in norms and recorder.runs[name] == 1]
    return Sources({name: recorder.source(name) for name in once})


class _Readers(Mode):
    """Notes the tensors that layers return and how often each is read."""

    def __init__(self, layers: set[str], *, meta: bool) -> None:
        super().__init__()
        self.meta = meta
        self.stack: list[str] = [""]
        self.runs: Counter[str] = Counter()
        self.order: list[str] = []
        self._layers = layers
        self._made: dict[int, str] = {}
        self._reads: Counter[int] = Counter()
        self._first: dict[str, int] = {}  # module -> the first tensor it reads
        self._alive: list[Any] = []  # or identities would be used again

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        for tensor in tensors_in((args, kwargs or {})):
            self._reads[id(tensor)] += 1
            if not isinstance(tensor, nn.Parameter):
                self._first.setdefault(self.stack[-1], id(tensor))
        # by shortcuts on the meta device, whose kernels load PyTorch's compiler: seconds
        kwargs = kwargs or {}
        out = run_on_meta(schema_of(func).own, func, args, kwargs) if self.meta else func(*args, **kwargs)
        self._alive.append(out)
        return out

    def leave(self, name: str, output: Any) -> None:
        """Follow a module that returns."""
        self.runs[name] += 1
        self.order.append(name)
        self._alive.append(output)
        if name in self._layers and isinstance(output, torch.Tensor):
            self._made[id(output)] = name

    def source(self, norm: str) -> str | None:
        """The layer that feeds `norm` and nothing else."""
        tensor = self._first.get(norm, 0)
        name = self._made.get(tensor)
        return name if name is not None and self._reads[tensor] == 1 and self.runs[name] == 1 else None


def places(graph: Graph, known: Sources) -> list[Place]:
    """All places of all groups, in order of execution; groups that pass through no norm have none.

    The owners of a group are the norms it passes through before any layer reads it, save those behind a depthwise
    convolution, whose input already carried the group. A later norm inherits.
    """
    found = [place for group in graph.groups for place in _of_group(graph, group, known)]
    order = {name: k for k, name in enumerate(known.of)}
    return sorted(found, key=lambda place: order[place.norm])


def _of_group(graph: Graph, group: Group, known: Sources) -> list[Place]:
    first = graph.recording.first_use
    read = min((first[m.name] for m in group.consumers() if m.name in first), default=np.inf)
    modules = dict(graph.model.named_modules())
    at = {f"{name}.weight": name for name in known.of if modules[name].weight is not None}
    members = [m for m in group.producers() if m.name in at and m.dim == 0]
    result = []
    for member in sorted(members, key=lambda m: first[m.name]):
        source = modules.get(known.of[at[member.name]] or "")
        depthwise = isinstance(source, nn.Conv1d | nn.Conv2d | nn.Conv3d) and source.groups == source.in_channels > 1
        owner = first[member.name] < read and not depthwise
        result.append(Place(at[member.name], group.name, member.index, owner))
    if result and not any(place.owner for place in result):  # read before it is normalised: the first norm decides
        result[0] = Place(result[0].norm, result[0].group, result[0].index, True)
    return result
