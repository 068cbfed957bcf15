"""Explain: in words, what is known of one layer, parameter or group."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.graph.channels import Bools, Frozen, Group, Member, Place, Solution, module_of
from secateur.graph.cost import Cost, CostModel
from secateur.graph.labels import Ids
from secateur.graph.recorder import Recording

_SHOWN = 6  # lists of names longer than this are shortened
_DESCRIBED = 2  # so many groups are described in full


class Traced(Protocol):
    """What is asked of a traced network; `secateur.graph.Graph` is one."""

    model: nn.Module
    recording: Recording
    solution: Solution
    costs: CostModel
    _never: list[tuple[Ids, str]]

    @property
    def groups(self) -> Sequence[Group]: ...
    @property
    def frozen(self) -> Sequence[Frozen]: ...
    def tensors(self) -> dict[str, torch.Tensor]: ...
    def cost(self) -> Cost: ...


def explain(graph: Traced, name: str) -> str:
    """Say what `name` (of a module, parameter, buffer or group) is: its groups, its cost, what stands in the way.

    Raises:
        ConfigError: there is nothing of that name; the nearest names are given.
    """
    return "\n".join(_Explanation(graph).lines(name))


def readable(number: float) -> str:
    """A count in four digits with a suffix."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= factor:
            return f"{number / factor:.4g}{suffix}"
    return f"{number:.4g}"


def shorten(names: Iterable[str]) -> list[str]:
    """A long list of names, told by pattern: names that differ only in numbers become one entry with a count."""
    every = list(dict.fromkeys(names))
    if len(every) <= _SHOWN:
        return every
    alike: dict[str, list[str]] = {}
    for name in every:
        alike.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [f"{_pattern(found)} ({len(found)})" if len(found) > 1 else found[0] for found in alike.values()]


def _pattern(names: Sequence[str]) -> str:
    """Names that differ only in numbers as one: blocks.{0..11}.norm1."""
    fields = list(zip(*([int(n) for n in re.findall(r"\d+", name)] for name in names), strict=True))
    spans = iter([f"{{{min(f)}..{max(f)}}}" if min(f) != max(f) else str(f[0]) for f in fields])
    return re.sub(r"\d+", lambda _: next(spans), names[0])


def shorten_reasons(reasons: Iterable[str]) -> list[str]:
    """Reasons that differ only in the place they speak of, as one entry with the first place and a count."""
    alike: dict[str, list[str]] = {}
    for reason in dict.fromkeys(reasons):
        alike.setdefault(re.sub(r" in [^()]*\)$", "", reason), []).append(reason)
    return [f"{found[0]}{_more(len(found) - 1, 'such place')}" for found in alike.values()]


class _Explanation:
    """What the lines are made from: where every group sits, by tensor and by layer."""

    def __init__(self, graph: Traced) -> None:
        self.graph = graph
        self.groups = {group.name: group for group in graph.groups}
        self.modules = dict(graph.model.named_modules(remove_duplicate=False))
        self.tensors = graph.tensors()
        self.alias = self._aliases()
        weighted = [call for call in graph.recording.calls if call.weight is not None]
        self.layers = {call.module for call in weighted}
        self.multiplied = {id(axis) for call in weighted for axis in call.weight or () if axis is not None}
        self.full = np.array([group.width for group in graph.groups], dtype=np.float64)
        self.whole = graph.cost()
        channels = sum(group.width for group in graph.groups)
        self.owner = np.full(
            channels + 1, -1, dtype=np.int64
        )  # channel -> group; the last entry stands for frozen (-1)
        for number, group in enumerate(graph.groups):
            self.owner[group.channels] = number
        self.places: dict[str, list[Place]] = {}
        for place in [*graph.solution.places, *self._idle_places()]:
            self.places.setdefault(place.name, []).append(place)

    def _idle_places(self) -> Iterator[Place]:
        """The dimensions of parameters that no forward pass used; they are in no group."""
        recording = self.graph.recording
        for name in recording.places.keys() - recording.first_use.keys():
            for dim, axis in enumerate(recording.places[name]):
                if axis is not None and axis.size:
                    yield Place(name, dim, axis, "producer", len(recording.calls), np.full(len(axis), -1))

    def _aliases(self) -> dict[str, str]:
        """Every name of a tensor -> the name under which the graph knows it."""
        model = self.graph.model
        first = {id(tensor): name for name, tensor in self.tensors.items()}
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        return {name: first[id(tensor)] for name, tensor in named if id(tensor) in first}

    def lines(self, name: str) -> list[str]:
        """The whole answer, line by line."""
        if name in self.modules and name:
            return self._module(name)
        if name in self.alias:
            return self._tensor(name)
        if name in self.groups:
            return self._group(self.groups[name])
        known = list(dict.fromkeys([*(n for n in self.modules if n), *self.groups, *self.alias]))
        close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(map(repr, close))}?"
            if close
            else f"names look like {', '.join(map(repr, known[:3]))}."
        )
        raise ConfigError(f"{type(self.graph.model).__name__} has no layer, parameter or group named {name!r}: {hint}")

    # ------------------------------------------------------------------------------------------------ one subject

    def _module(self, name: str) -> list[str]:
        module = self.modules[name]
        own = self._own_tensors(module, name)
        if not own:
            return self._container(name, module)
        lines = [f"{name}: {_describe(module)}"]
        lines += self._cost_of_layer(name, module)
        makes, reads = self._sides(own, module)
        follows = makes and self._is_depthwise(module)
        if follows:
            lines += ["  depthwise: its channels follow its input, so both sides are one width"]
        elif name not in self.layers and makes and not reads:
            lines += ["  follows its input: it makes no channels of its own"]
        lines += self._side("output", makes, own, "producer")
        if not follows and (reads or any(p.role == "consumer" for p in own)):
            lines += self._side("input", reads, own, "consumer")
        return [*lines, *self._groups(makes)]

    def _tensor(self, name: str) -> list[str]:
        known = self.alias[name]
        shape = "x".join(map(str, self.tensors[known].shape)) or "a single number"
        lines = [f"{name}: {shape}" + (f", the same tensor as {known}" if known != name else "")]
        found: dict[int, None] = {}
        for place in self.places.get(known, []):
            counts = self._counts(place)
            found.update(dict.fromkeys(counts))
            if len(place.axis) == 1 and not counts:
                continue
            side = "output side" if place.role == "producer" else "input side"
            lines.append(f"  dimension {place.dim} ({side}): {self._told(counts, place)}")
        return [*lines, *self._groups(found)]

    def _groups(self, numbers: Iterable[int]) -> list[str]:
        """The groups one after another, as long as they are few."""
        few = list(numbers)
        if len(few) > _DESCRIBED:
            return ["", f"It holds channels of {len(few)} groups; explain one of them by its name for more."]
        return [line for number in few for line in ["", *self._group(self.graph.groups[number])]]

    def _container(self, name: str, module: nn.Module) -> list[str]:
        """A block, or a layer without parameters."""
        lines = [f"{name}: {_describe(module)}"]
        inside = [n for n in self.modules if n.startswith(name + ".")]
        if any(True for _ in module.parameters()):
            lines += self._cost_of_layer(name, module)
        else:
            lines.append("  no parameters of its own; channels pass through it")
        passing = self._leaving(name)
        if passing:
            lines.append(f"  output: {', '.join(shorten(passing))}")
        made = [g.name for g in self.graph.groups if self._anchor(g.name) in inside]
        if made:
            lines.append(f"  groups made inside: {', '.join(shorten(made))}")
        kept = [f"{f.name} ({f.width} channels): {f.reason}" for f in self.graph.frozen if f.name in inside]
        lines += [f"  cannot be pruned: {line}" for line in kept]
        return lines

    def _group(self, group: Group) -> list[str]:
        lines = [f"group {group.name}: {group.width} channels, can be pruned"]
        lines += self._parts("made by", self._makers(group))
        if len({m.name for m in self._makers(group)}) > 1:
            lines.append("              (these lose the same channels together)")
        lines += self._parts("depthwise", self._depthwise(group))
        lines += self._parts("carried by", self._carriers(group))
        lines += self._parts("read by", [m for m in group.consumers() if not self._is_depthwise(self._owner(m.name))])
        one, all_ = self._saved(group, 1), self._saved(group, group.width)
        lines.append(f"  one channel costs {self._amount(one)}")
        lines.append(f"  all of them cost {self._amount(all_)}")
        if group.inexact:
            lines.append("  removal is inexact: it changes what other channels compute")
            lines += [f"    {reason}" for reason in shorten_reasons(group.inexact)]
        else:
            lines.append("  removal is exact: the cut network computes what the masked original computes")
        return lines

    # ------------------------------------------------------------------------------------------------- parts of it

    def _own_tensors(self, module: nn.Module, name: str) -> list[Place]:
        """Places of the tensors that belong to this module itself (or to its parametrisations)."""
        found: dict[str, None] = {}
        for local, _ in [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]:
            known = self.alias.get(f"{name}.{local}")
            if known is not None and ("." not in local or local.startswith("parametrizations.")):
                found[known] = None
        return [place for tensor in found for place in self.places.get(tensor, [])]

    def _counts(self, place: Place) -> dict[int, int]:
        """Indices of a place by the number of their group; -1: frozen."""
        numbers, counts = np.unique(self.owner[self.graph.solution.channels_of(place.axis)], return_counts=True)
        return {int(n): int(c) for n, c in zip(numbers, counts, strict=True) if n >= 0}

    def _sides(self, own: Sequence[Place], module: nn.Module) -> tuple[dict[int, int], dict[int, int]]:
        """Group numbers on the output and on the input side, each with its indices there."""
        sides: dict[str, dict[int, int]] = {"producer": {}, "consumer": {}}
        for place in own:
            role = "producer" if self._is_depthwise(module) else place.role
            for number, count in self._counts(place).items():
                sides[role][number] = max(count, sides[role].get(number, 0))
        return sides["producer"], sides["consumer"]

    def _side(self, side: str, numbers: Mapping[int, int], own: Sequence[Place], role: str) -> list[str]:
        texts = self._listed(numbers)
        lines = [f"  {side}: {texts[0]}", *(f"  {' ' * len(side)}  {text}" for text in texts[1:])] if texts else []
        here = [p for p in own if p.role == role and (len(p.axis) > 1 or not numbers)]
        wide = max((int((self._frozen(p)).sum()) for p in here), default=0)
        if wide and (not numbers or any(self._frozen(p).any() and self._counts(p) for p in here)):
            place = max(here, key=lambda p: int(self._frozen(p).sum()))
            plural = "s" if wide > 1 else ""
            lines.append(f"  {side}: {wide} channel{plural} cannot be pruned: {self._reason(place, role)}")
        return lines

    def _listed(self, numbers: Mapping[int, int]) -> list[str]:
        """Groups by name, those of equal width together."""
        alike: dict[str, list[str]] = {}
        for number, indices in numbers.items():
            group = self.graph.groups[number]
            each = "" if indices == group.width else f" of {_fraction(indices, group.width)} indices"
            alike.setdefault(f"{group.width} channels{each}", []).append(group.name)
        return [f"group {name}, {width}" for width, names in alike.items() for name in shorten(names)]

    def _told(self, counts: Mapping[int, int], place: Place) -> str:
        texts = self._listed(counts)
        frozen = int(self._frozen(place).sum())
        if frozen:
            texts.append(f"{frozen} cannot be pruned: {self._reason(place, place.role)}")
        return "; ".join(texts)

    def _frozen(self, place: Place) -> Bools:
        frozen: Bools = self.graph.solution.channels_of(place.axis) < 0
        return frozen

    def _reason(self, place: Place, role: str) -> str:
        """Why the frozen indices of a place are frozen: as the graph lists it, else by what fixed them."""
        layer = module_of(place.name)
        if role == "producer":
            listed = [f.reason for f in self.graph.frozen if f.name == layer]
            if listed:
                return "; ".join(shorten_reasons(listed))
        component = self.graph.solution.component
        wanted = np.unique(component[place.axis[self._frozen(place)]])
        if place.name not in self.graph.recording.first_use:
            return "its module never ran"
        for axis, reason in [*self.graph.recording.ledger.fixes, *self.graph._never]:
            if reason and bool(np.isin(component[axis], wanted).any()):
                if reason.startswith("meets a size that is not prunable") and layer in reason:
                    return "it is combined with a tensor without prunable channels (the network's input, for instance)"
                return reason
        for frozen in self.graph.frozen:
            if any(
                bool(np.isin(component[p.axis], wanted).any()) for p in self.places.get(f"{frozen.name}.weight", [])
            ):
                return f"it is the output of {frozen.name}, which cannot be pruned: {frozen.reason}"
        tied = [p for p in self.graph.solution.places if bool(np.isin(component[p.axis], wanted).any())]
        return "nothing else is tied to it" if len(tied) == 1 else "its size is part of the code"

    def _cost_of_layer(self, name: str, module: nn.Module) -> list[str]:
        params = sum({id(p): p.numel() for p in module.parameters()}.values())
        macs = self._macs(name, module)
        return [f"  costs {self._amount((macs, float(params)))}"]

    def _macs(self, name: str, module: nn.Module) -> float:
        """MACs of the calls made in a module, and of those that use its weights from elsewhere."""
        axes = {id(p.axis) for t in self._names_below(module, name) for p in self.places.get(t, [])}
        calls = self.graph.recording.calls
        total = 0.0
        known = next(n for n, m in self.modules.items() if m is module)  # calls bear the first name of a shared module
        for at, macs in zip(
            self.graph.costs.mac_calls.tolist(), self.graph.costs.macs_by_call(self.full).tolist(), strict=True
        ):
            call = calls[at]
            inside = call.module == known or call.module.startswith(known + ".")
            if inside or any(id(axis) in axes for axis in call.weight or () if axis is not None):
                total += macs
        return total

    def _names_below(self, module: nn.Module, name: str) -> list[str]:
        return [
            self.alias[f"{name}.{local}"] for local, _ in module.named_parameters() if f"{name}.{local}" in self.alias
        ]

    def _saved(self, group: Group, channels: int) -> tuple[float, float]:
        """MACs and parameters that go with so many channels of one group."""
        widths = self.full.copy()
        widths[group._number] -= channels
        left = self.graph.costs.evaluate(widths)
        return self.whole.macs - float(left["macs"]), self.whole.params - float(left["params"])

    def _amount(self, cost: tuple[float, float]) -> str:
        macs, params = cost
        return (
            f"{readable(macs)} MACs ({_percent(macs, self.whole.macs)} of the network), "
            f"{readable(params)} parameters ({_percent(params, self.whole.params)})"
        )

    def _owner(self, tensor: str) -> nn.Module | None:
        return self.modules.get(module_of(tensor))

    @staticmethod
    def _is_depthwise(module: nn.Module | None) -> bool:
        """A convolution whose groups have one input or one output channel: they stay or go as a whole."""
        if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == 1:
            return False
        return module.groups in (module.in_channels, module.out_channels)

    def _makers(self, group: Group) -> list[Member]:
        return [m for m in group.producers() if self._is_maker(m.name) and not self._is_depthwise(self._owner(m.name))]

    def _is_maker(self, tensor: str) -> bool:
        values = self.tensors[tensor]
        if isinstance(self._owner(tensor), nn.Embedding | nn.EmbeddingBag | nn.RNNBase):
            return values.dim() >= 2
        if values.numel() == max(values.shape, default=1):
            return False
        return module_of(tensor) in self.layers or any(
            id(p.axis) in self.multiplied for p in self.places.get(tensor, [])
        )

    def _depthwise(self, group: Group) -> list[Member]:
        return [m for m in group.members if self._is_depthwise(self._owner(m.name)) and self.tensors[m.name].dim() >= 2]

    def _carriers(self, group: Group) -> list[Member]:
        shown = {(m.name, m.dim) for m in [*self._makers(group), *self._depthwise(group)]}
        return [m for m in group.producers() if (m.name, m.dim) not in shown]

    def _parts(self, title: str, members: Sequence[Member]) -> list[str]:
        """Members by module: the layer, what of it, and how many indices a channel owns there."""
        entries: dict[str, list[str]] = {}
        for member in members:
            module = module_of(member.name)
            local = member.name.removeprefix(module + ".").split(".")[-1] if member.name != module else ""
            local = "weight" if local.startswith("original") else local
            each = f" x{member.index.shape[1]}" if member.index.shape[1] != 1 else ""
            entries.setdefault(module, []).append(local + each)
        alike: dict[tuple[str, ...], list[str]] = {}
        for module, parts in entries.items():
            alike.setdefault(tuple(parts), []).append(module)
        lines = []
        for locals_, names in alike.items():
            what = f" [{', '.join(part for part in locals_ if part)}]" if any(locals_) else ""
            lines += [f"{text}{what}" for text in shorten(names)]
        return [f"  {title if k == 0 else '':<11} {line}" for k, line in enumerate(lines)]

    def _anchor(self, group: str) -> str:
        return group.rpartition("#")[0] if "#" in group and group not in self.modules else group

    def _leaving(self, name: str) -> list[str]:
        """Groups that leave a module, from what was seen in the run."""
        found: dict[str, None] = {}
        for tap in self.graph.recording.taps:
            if tap.module == name:
                for number in np.unique(self.owner[self.graph.solution.channels_of(tap.axis)]).tolist():
                    if number >= 0:
                        found[f"group {self.graph.groups[number].name}"] = None
        return list(found)


def _describe(module: nn.Module) -> str:
    text = repr(module)
    return type(module).__name__ if "\n" in text or len(text) > 120 else text


def _fraction(indices: int, width: int) -> str:
    return str(indices // width) if indices % width == 0 else f"{indices / width:.3g}"


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.3g}%" if share >= 0.01 or share == 0 else "<0.01%"


def _more(count: int, what: str) -> str:
    return f", and {count} more {what}{'s' if count > 1 else ''}" if count else ""
