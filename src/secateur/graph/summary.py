"""What a person wants to know of a traced network at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from secateur._hints import few, readable
from secateur._summary import Summary
from secateur.graph.channels import Frozen, Group
from secateur.graph.cost import Cost
from secateur.graph.recorder import Unsupported


class Shown(Protocol):
    """What is shown of a traced network; `secateur.graph.Graph` is one."""

    model: nn.Module

    @property
    def groups(self) -> Sequence[Group]: ...
    @property
    def frozen(self) -> Sequence[Frozen]: ...
    @property
    def unsupported(self) -> Sequence[Unsupported]: ...
    @property
    def settled(self) -> Sequence[Any]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    def cost(self) -> Cost: ...


def summary(graph: Shown) -> Summary:
    """Groups with their widths and layers, what they cost together, and what cannot be pruned."""
    cost, channels = graph.cost(), sum(group.width for group in graph.groups)
    head = (
        f"{type(graph.model).__name__}: {len(graph.groups)} groups of coupled channels, {channels} channels, "
        f"{readable(cost.macs)} MACs, {readable(cost.params)} parameters",
    )
    rows = [(g.name, str(g.width), str(_layers(g)), "no" if g.inexact else "yes") for g in graph.groups]
    foot = []
    if graph.frozen:
        foot.append(f"Cannot be pruned: {few([f'{f.name} ({f.reason})' for f in graph.frozen])}.")
    if graph.unsupported:
        foot.append(f"Operators without a rule: {few(sorted({each.operator for each in graph.unsupported}))}.")
    foot += [str(conflict) for conflict in graph.settled]
    foot += graph.notes
    foot.append("graph.explain(name) tells all about one layer or group.")
    columns = ("group", "channels", "layers", "exact")
    return Summary(head, columns, tuple(rows), tuple(foot), ": graph.groups has them all")


def _layers(group: Group) -> int:
    return len({member.name.rpartition(".")[0] for member in group.members})
