"""Where gates can stand: facts about the traced network, found by one run that notes who reads what."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._protocols import BoolArray, IntArray
from secateur.allocate import Constraints
from secateur.allocate.patterns import matched, parse_patterns
from secateur.forms import dense_macs
from secateur.forms.expected import rows
from secateur.graph import Graph, Group
from secateur.graph.calls import Mode
from secateur.graph.channels import Member, module_of
from secateur.graph.modules import as_call, clone_module, map_tensors, module_stack, to_meta
from secateur.graph.norms import sources
from secateur.graph.rules import tensors_in

_SUMS = frozenset({"aten::add", "aten::add_"})
_RELU = frozenset({"aten::relu", "aten::relu_"})
#: What lies between a layer and the map it belongs to: a shortcut may pool first.
_PASSED = frozenset({"aten::avg_pool2d", "aten::max_pool2d_with_indices", "aten::constant_pad_nd", "aten::slice"})
#: A gate may cost this share of its layer at most, or it cannot pay.
_DEAR = 0.25


@dataclass(frozen=True)
class Site:
    """A convolution with a gate.

    norm: the batch norm that alone reads it, behind which the gate stands. relu: whether a ReLU follows there.
    columns: whether channels that it reads are gated, so that some are zero. inputs, outputs, hidden: widths of the
    gate. unit: multiply-accumulates of one pair of channels in one image.
    """

    name: str
    norm: str | None
    relu: bool
    inputs: int
    outputs: int
    hidden: int
    unit: int
    columns: bool = False

    @property
    def end(self) -> str:
        """The layer behind which the gate stands."""
        return self.norm or self.name

    def gate_macs(self, inputs: int, outputs: int) -> int:
        """Of the gate, for one image, where so many channels are left."""
        return self.hidden * (inputs + outputs)


def found(graph: Graph, constraints: Constraints, squeeze: int) -> list[Site]:
    """Every plain convolution inside the network that is not ignored, save shortcuts and those too small for a gate.

    squeeze: hidden units of a gate are outputs over this; where there are few outputs, all of them.
    """
    flow, modules = _flow(graph), dict(graph.model.named_modules())
    behind = {source: norm for norm, source in sources(graph).of.items() if source and _usable(modules[norm])}
    patterns = parse_patterns(graph, constraints.ignore, "ignore")
    images, macs = rows(graph.example_inputs), dense_macs(graph, None)
    sites = []
    for name in _plain_convolutions(graph, images):
        layer: Any = modules[name]
        place = [Member(f"{name}.weight", 0, "producer", np.empty((0, 0), np.int64))]
        if not flow.inside(name) or any(matched(pattern, place) for pattern in patterns):
            continue
        norm = behind.get(name)
        first = flow.readers(norm or name)
        if flow.is_shortcut(name, first) or (norm is None and len(first) == 1 and "norm" in first[0]):
            continue
        hidden = max(1, layer.out_channels // (squeeze if layer.out_channels >= 80 else 1))
        pairs = layer.in_channels * layer.out_channels
        unit = macs[name] // (images * pairs)
        if hidden * (layer.in_channels + layer.out_channels) <= _DEAR * unit * pairs:
            relu = bool(first) and first[0] in _RELU
            sites.append(Site(name, norm, relu, layer.in_channels, layer.out_channels, hidden, unit))
    return _with_columns(graph, sites)


def _plain_convolutions(graph: Graph, images: int) -> Iterator[str]:
    """Those of one group, with a weight of their own, that run once and on one row an image; in order."""
    owners = Counter(id(p) for module in graph.model.modules() for p in module._parameters.values() if p is not None)
    calls = [graph.recording.calls[int(number)] for number in graph.costs.mac_calls]
    runs, modules = Counter(call.module for call in calls), dict(graph.model.named_modules())
    for call in calls:
        layer = modules.get(call.module)
        if type(layer) is not nn.Conv2d or layer.groups != 1 or layer.padding_mode != "zeros" or not call.module:
            continue
        if owners[id(layer._parameters.get("weight"))] == 1 == runs[call.module] and call.shapes[0][0] == images:
            yield call.module


def _usable(norm: nn.Module) -> bool:
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.running_mean is not None


def _with_columns(graph: Graph, sites: list[Site]) -> list[Site]:
    """With what is known of the channels that each reads: those of a group are gated if all that make it are."""
    names = {site.name for site in sites}
    reads = {
        module_of(member.name)
        for group in graph.groups
        if made_by(group, graph) and made_by(group, graph) <= names
        for member in group.consumers()
    }
    return [replace(site, columns=site.name in reads) for site in sites]


def made_by(group: Group, graph: Graph) -> set[str]:
    """The layers that make a group's channels by sums over others, or filter them: all but norms and biases."""
    tensors = graph.tensors()
    return {module_of(m.name) for m in group.producers() if tensors[m.name].dim() > 1}


class Closing:
    """Groups of which channels go when one gate never opens: {group: (number of the site, its rows [width, k])}."""

    def __init__(self, graph: Graph, sites: Sequence[Site], constraints: Constraints) -> None:
        number = {site.name: k for k, site in enumerate(sites)}
        floors, self._steps = constraints.grid(graph)
        self._floors, self._graph = floors.tolist(), graph
        self.of: dict[str, tuple[int, IntArray]] = {}
        for group in graph.groups:
            names = made_by(group, graph)
            if len(names) != 1 or not names <= number.keys() or group.inexact:
                continue
            name = names.pop()
            index = next(m.index for m in group.producers() if m.name == f"{name}.weight")
            self.of[group.name] = (number[name], index)

    def masks(self, opened: Sequence[BoolArray]) -> dict[str, BoolArray]:
        """Channels that stay: all but those that are never opened; of these as many as constraints ask for, in order.

        opened: of every site, which outputs some image has opened [outputs].
        """
        kept = {}
        for number, group in enumerate(self._graph.groups):
            mask = np.ones(group.width, dtype=np.bool_)
            if group.name in self.of:
                site, index = self.of[group.name]
                mask = np.asarray(opened[site][index].any(1))
                least, step = self._floors[number], int(self._steps[number])
                wanted = max(int(mask.sum()), least)
                width = min(least + -(-(wanted - least) // step) * step, group.width)
                mask[np.flatnonzero(~mask)[: width - int(mask.sum())]] = True
            kept[group.name] = mask
        return kept


def _flow(graph: Graph) -> _Flow:
    """Run the model once without storage."""
    modules = dict(graph.model.named_modules())
    flow = _Flow({name for name, module in modules.items() if type(module) is nn.Conv2d})
    storage = to_meta if graph.recording.on_meta else torch.clone
    twin = clone_module(graph.model, lambda tensor: storage(tensor.detach())).eval()
    args, keywords = as_call(map_tensors(graph.example_inputs, storage))
    with torch.no_grad(), module_stack(twin, flow.stack, flow.leave), flow:
        twin(*args, **keywords)
    return flow


class _Flow(Mode):
    """Who reads what: the operators that read each tensor, the tensor each convolution reads."""

    def __init__(self, convolutions: set[str]) -> None:
        super().__init__()
        self.stack: list[str] = [""]
        self._convolutions = convolutions
        self._reads: dict[int, list[str]] = defaultdict(list)
        self._inputs: dict[str, int] = {}
        self._made: dict[str, int] = {}
        self._passed: dict[int, int] = {}  # what a pooled map was made of
        self._inside: set[int] = set()  # what convolutions have made, and what was made of that
        self._alive: list[Any] = []  # or identities would be used again

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        name, where = func._schema.name, self.stack[-1]
        given = [t for t in tensors_in((args, kwargs or {})) if not isinstance(t, nn.Parameter)]
        if name == "aten::convolution" and where in self._convolutions:
            self._inputs[where] = id(given[0])
        for tensor in given:
            self._reads[id(tensor)].append(name)
        out = func(*args, **(kwargs or {}))
        self._alive += [given, out]
        made = [id(tensor) for tensor in tensors_in((out,))]
        if given and name in _PASSED:
            self._passed |= {number: id(given[0]) for number in made if number != id(given[0])}
        if name == "aten::convolution" or any(id(tensor) in self._inside for tensor in given):
            self._inside.update(made)
        return out

    def leave(self, name: str, output: Any) -> None:
        """Follow a module that returns."""
        self._alive.append(output)
        if isinstance(output, torch.Tensor):
            self._made[name] = id(output)

    def inside(self, name: str) -> bool:
        """Whether a convolution reads what others have made, and not the image."""
        return self._inputs.get(name, 0) in self._inside

    def readers(self, name: str) -> list[str]:
        """The operators that read what a module gives."""
        return self._reads[self._made.get(name, 0)]

    def is_shortcut(self, name: str, readers: Sequence[str]) -> bool:
        """Whether a convolution goes straight into a sum, and reads what another one reads as well."""
        if not readers or readers[0] not in _SUMS:
            return False
        return any(other != name and self._root(other) == self._root(name) for other in self._inputs)

    def _root(self, name: str) -> int:
        number = self._inputs[name]
        while number in self._passed:
            number = self._passed[number]
        return number


def kept_of(slices: Mapping[str, tuple[IntArray | None, ...]], site: Site) -> tuple[IntArray, IntArray]:
    """Outputs and inputs of a site's layer that a plan keeps."""
    rows_kept, columns_kept = slices.get(f"{site.name}.weight", (None, None))[:2]
    return (
        np.arange(site.outputs) if rows_kept is None else rows_kept,
        np.arange(site.inputs) if columns_kept is None else columns_kept,
    )
