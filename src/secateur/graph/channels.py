"""Solve: from the ledger's ties to channels, and from channels to groups, with one connected-components call.

Channels that occupy the same places with the same multiplicities form a group: one width of the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from secateur.graph.capture import Recording
from secateur.graph.labels import Axis, Ids, Ledger, Product

Role = Literal["producer", "consumer"]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Member:
    """One place a group touches: `index` [width, k] holds the indices each channel owns along `dim` of tensor `name`."""

    name: str
    dim: int
    role: Role
    index: Ids


@dataclass(frozen=True, eq=False)
class Group:
    """An ordered set of channels that sit side by side in the same places: one width of the network."""

    name: str
    width: int
    channels: Ids = field(repr=False)  # channel numbers, in order
    inexact: tuple[str, ...]
    _solution: Solution = field(repr=False)
    _number: int = field(repr=False)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Every place of the group, in order of first use."""
        return tuple(self._solution.members(self._number))

    def producers(self) -> tuple[Member, ...]:
        """Members on the output side: weights' rows, biases, norm affines, running statistics."""
        return tuple(m for m in self.members if m.role == "producer")

    def consumers(self) -> tuple[Member, ...]:
        """Members on the input side of a weight."""
        return tuple(m for m in self.members if m.role == "consumer")


@dataclass(frozen=True, eq=False)
class Frozen:
    """A width that cannot be pruned, and why."""

    name: str
    width: int
    reason: str

    @property
    def members(self) -> tuple[Member, ...]:
        """The layer's weight, without indices: enough to match a pattern."""
        return (Member(f"{self.name}.weight" if self.name else "weight", 0, "producer", np.empty((0, 0), np.int64)),)


@dataclass
class Place:
    """One dimension of one parameter or buffer, with the channel of each index (-1: frozen)."""

    name: str
    dim: int
    axis: Ids
    role: Role
    first_use: int
    channel: Ids = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(eq=False)
class Solution:
    """Channels of one recording: `component` of every slot, which are frozen, and the groups."""

    component: Ids  # slot -> component
    channel: Ids  # component -> channel number, -1 where frozen
    places: list[Place]
    axes: list[Ids]  # distinct axes that costs are made of
    multiplicity: sp.csr_matrix  # channel x axis
    groups: tuple[Group, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    _spans: list[list[tuple[int, int, int]]] = field(default_factory=list)  # per group: (place, start, stop)
    _order: list[Ids] = field(default_factory=list)  # per place: indices sorted by group, then channel

    def members(self, number: int) -> Iterable[Member]:
        """The members of group `number`."""
        width = len(self.groups[number].channels)
        for place, start, stop in self._spans[number]:
            p = self.places[place]
            yield Member(p.name, p.dim, p.role, self._order[place][start:stop].reshape(width, -1))

    def channels_of(self, axis: Ids) -> Ids:
        """The channel number of every index of an axis, -1 where frozen."""
        result: Ids = self.channel[self.component[axis]]
        return result


def solve(
    recording: Recording,
    never: Iterable[tuple[Ids, str]] = (),
    together: Iterable[tuple[Ids, Ids]] = (),
    attention: str = "heads",
) -> Solution:
    """Channels and groups of a recording.

    Args:
        recording: what a run taught. never: further slots that must stay, with the reason.
        together: further slots that live and die together, position by position.
        attention: what is pruned in attention, whole "heads" or the features of every head ("head_dim").
    """
    ledger = recording.ledger
    fixes = [*ledger.fixes, *never]
    for name, label in recording.places.items():
        if name not in recording.first_use:
            fixes += [(axis, "its module never ran") for axis in label if axis is not None]
    ties = [*ledger.ties, *together]
    component = components(ledger.size, ties)
    if ledger.products:
        more_ties, more_fixes = _resolve_products(ledger, component, fixes, attention)
        ties += more_ties
        fixes += more_fixes
        component = components(ledger.size, ties)
    reasons = _reasons(component, fixes)
    places = _places(recording)
    axes = _axes(recording, places)
    channel, alone = _number_channels(component, reasons, places)
    multiplicity = _multiplicity(channel[component], axes, int(channel.max(initial=-1)) + 1)
    solution = Solution(component, channel, places, axes, multiplicity)
    _make_groups(solution, ledger)
    _list_frozen(solution, recording, reasons, alone)
    return solution


def components(size: int, ties: list[tuple[Ids, Ids]]) -> Ids:
    """The connected component of every slot."""
    if not ties:
        return np.arange(size, dtype=np.int64)
    rows = np.concatenate([a for a, _ in ties])
    cols = np.concatenate([b for _, b in ties])
    edges = sp.coo_matrix((np.ones(len(rows), np.int8), (rows, cols)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return component.astype(np.int64)


def _reasons(component: Ids, fixes: list[tuple[Ids, str]]) -> dict[int, str]:
    """Frozen component -> the first reason worth telling (or an empty one)."""
    reasons: dict[int, str] = {}
    for axis, reason in fixes:
        for c in np.unique(component[axis]).tolist():
            if not reasons.get(c):
                reasons[c] = reason
    return reasons


# ----------------------------------------------------------------------------- products: (heads x features) and kin


def _resolve_products(
    ledger: Ledger, component: Ids, fixes: list[tuple[Ids, str]], attention: str
) -> tuple[list[tuple[Ids, Ids]], list[tuple[Ids, str]]]:
    """Of the axes of every product at most one may be pruned; choose it, tie the slots to it, fix the others.

    Axes that are tied anywhere in the network choose together, so that the two sides of an attention product agree.
    """
    frozen = np.zeros(component.max(initial=0) + 1, dtype=bool)
    for axis, _ in fixes:
        frozen[component[axis]] = True
    cluster, count = _cluster_axes(ledger.products, component)
    head = np.zeros(len(frozen), dtype=bool)
    for axis in ledger.heads:
        head[component[axis]] = True
    worth = np.zeros((count, 2), dtype=np.int64)  # (is a head axis, prunable slots)
    for number, axis, grid in _product_axes(ledger.products, cluster, component):
        free = ~frozen[component[axis]] & ~frozen[grid].any(axis=tuple(range(1, grid.ndim)))
        prunable = len(np.unique(component[axis][free])) if len(axis) > 1 else 0
        worth[number] = np.maximum(worth[number], (bool(head[component[axis]].any()), prunable))
    worth[:, 0] *= 1 if attention == "heads" else -1
    chosen = _choose(ledger.products, cluster, worth)
    return _apply_choice(ledger.products, cluster, chosen)


def _cluster_axes(products: list[Product], component: Ids) -> tuple[dict[int, int], int]:
    """Axes (by identity) that share a component belong to one cluster."""
    axes = list({id(a): a for p in products for a in p.axes}.values())
    total = int(component.max(initial=0)) + 1
    rows = np.concatenate([np.full(len(a), k) for k, a in enumerate(axes)])
    cols = np.concatenate([component[a] for a in axes]) + len(axes)
    size = len(axes) + total
    graph = sp.coo_matrix((np.ones(len(rows), np.int8), (rows, cols)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    used, numbers = np.unique(labels[: len(axes)], return_inverse=True)
    return {id(a): int(n) for a, n in zip(axes, numbers, strict=True)}, len(used)


def _product_axes(
    products: list[Product], cluster: dict[int, int], component: Ids
) -> Iterable[tuple[int, Ids, Ids]]:
    for product in products:
        grid = component[product.slots]
        for k, axis in enumerate(product.axes):
            yield cluster[id(axis)], axis, np.moveaxis(grid, k, 0)


def _choose(products: list[Product], cluster: dict[int, int], worth: NDArray[np.int64]) -> set[int]:
    """Clusters that stay free, greedily by (head axis, number of prunable slots); the rivals in their products do not."""
    rivals: dict[int, set[int]] = {}
    selfish: set[int] = set()
    for product in products:
        numbers = [cluster[id(a)] for a in product.axes]
        for k, number in enumerate(numbers):
            rivals.setdefault(number, set()).update(numbers[:k] + numbers[k + 1 :])
            if number in numbers[:k]:
                selfish.add(number)
    order = sorted(rivals, key=lambda n: (-worth[n, 0] if worth[n, 1] > 1 else 1, -worth[n, 1], n))
    chosen: set[int] = set()
    banned = set(selfish)
    for number in order:
        if number not in banned and worth[number, 1] > 1:
            chosen.add(number)
            banned |= rivals[number]
    return chosen


def _apply_choice(
    products: list[Product], cluster: dict[int, int], chosen: set[int]
) -> tuple[list[tuple[Ids, Ids]], list[tuple[Ids, str]]]:
    ties: list[tuple[Ids, Ids]] = []
    fixes: list[tuple[Ids, str]] = []
    for product in products:
        free = [k for k, a in enumerate(product.axes) if cluster[id(a)] in chosen]
        for k, axis in enumerate(product.axes):
            if k not in free:
                fixes.append((axis, ""))
        if not free:
            fixes.append((product.slots.ravel(), f"two sizes multiply ({product.where})"))
            continue
        slots = np.moveaxis(product.slots, free[0], 0).reshape(len(product.axes[free[0]]), -1)
        ties.append((slots.ravel(), np.repeat(product.axes[free[0]], slots.shape[1])))
    return ties, fixes


# --------------------------------------------------------------------------------------------- places and channels


def _places(recording: Recording) -> list[Place]:
    consumed = np.zeros(recording.ledger.size, dtype=bool)
    for axis in recording.ledger.consumed:
        consumed[axis] = True
    places: list[Place] = []
    for name, label in recording.places.items():
        first = recording.first_use.get(name, len(recording.calls))
        for dim, axis in enumerate(label):
            if axis is not None and len(axis):
                role: Role = "consumer" if consumed[axis].all() else "producer"
                places.append(Place(name, dim, axis, role, first))
    return places


def _axes(recording: Recording, places: list[Place]) -> list[Ids]:
    """Distinct axes: of all places, of all buffers, of all products that cost MACs."""
    found: dict[int, Ids] = {id(p.axis): p.axis for p in places}
    for buffer in recording.buffers:
        found.update((id(a), a) for a in buffer.label if a is not None)
    for macs in recording.ledger.macs:
        found.update((id(a), a) for a in macs.axes)
    return list(found.values())


def _number_channels(component: Ids, reasons: dict[int, str], places: list[Place]) -> tuple[Ids, Bools]:
    """Channel numbers of prunable components; components in one place only stand alone and are frozen."""
    total = int(component.max(initial=-1)) + 1
    last = np.full(total, -1, dtype=np.int64)
    several = np.zeros(total, dtype=bool)
    produced = np.zeros(total, dtype=bool)
    for number, place in enumerate(places):
        c = np.unique(component[place.axis])
        several[c] |= last[c] >= 0
        last[c] = number
        produced[c] |= place.role == "producer"
    alive = several & produced
    alive[list(reasons)] = False
    alone = (last >= 0) & ~(several & produced)
    channel = np.full(total, -1, dtype=np.int64)
    channel[alive] = np.arange(int(alive.sum()))
    return channel, alone


def _multiplicity(slot_channel: Ids, axes: list[Ids], channels: int) -> sp.csr_matrix:
    """How often each channel occurs in each axis."""
    if not axes:
        return sp.csr_matrix((channels, 0), dtype=np.int64)
    rows = slot_channel[np.concatenate(axes)]
    cols = np.repeat(np.arange(len(axes)), [len(a) for a in axes])
    keep = rows >= 0
    data = np.ones(int(keep.sum()), np.int64)
    return sp.coo_matrix((data, (rows[keep], cols[keep])), shape=(channels, len(axes))).tocsr()


def _make_groups(solution: Solution, ledger: Ledger) -> None:
    """Equal rows of the multiplicity matrix are one group; 128 random bits a row stand in for comparing them."""
    matrix = solution.multiplicity
    channels, axes = matrix.shape
    if channels == 0:
        return
    keys = np.random.default_rng(0).integers(1, 2**62, size=(axes, 2), dtype=np.int64)
    with np.errstate(over="ignore"):
        digest = matrix @ keys
    _, group_of = np.unique(digest, axis=0, return_inverse=True)
    group_of = np.ravel(group_of)
    _place_channels(solution)
    order, number_of = _order_groups(solution, group_of)
    position = np.empty(channels, dtype=np.int64)
    members = [np.flatnonzero(number_of == g) for g in range(len(order))] if len(order) < 64 else _split_by(number_of)
    names = _names(solution, order)
    anchors = _anchor_index(solution, channels, number_of, order)
    reasons = _inexact_reasons(solution, ledger, number_of, len(order))
    groups = []
    for g, numbers in enumerate(members):
        ordered = numbers[np.argsort(anchors[numbers], kind="stable")]
        position[ordered] = np.arange(len(ordered))
        groups.append(Group(names[g], len(ordered), ordered, reasons[g], solution, g))
    solution.groups = tuple(groups)
    _spans(solution, number_of, position, len(groups))


def _split_by(number_of: Ids) -> list[Ids]:
    order = np.argsort(number_of, kind="stable")
    bounds = np.flatnonzero(np.diff(number_of[order])) + 1
    return list(np.split(order, bounds))


def _place_channels(solution: Solution) -> None:
    for place in solution.places:
        place.channel = solution.channels_of(place.axis)


def _order_groups(solution: Solution, group_of: Ids) -> tuple[list[Place], Ids]:
    """Number groups by execution: first use of their first producer, then position in it. Returns anchors and numbers."""
    best: dict[int, tuple[tuple[int, int, int, int], Place]] = {}
    dims = {p.name: 0 for p in solution.places}
    for place in solution.places:
        dims[place.name] = max(dims[place.name], place.dim + 1)
    for number, place in enumerate(solution.places):
        inside = np.flatnonzero(place.channel >= 0)
        if not len(inside) or place.role != "producer":
            continue
        found, first = np.unique(group_of[place.channel[inside]], return_index=True)
        for g, at in zip(found.tolist(), inside[first].tolist(), strict=True):
            # weights before vectors: the group is named after the layer that makes it
            key = (0 if dims[place.name] >= 2 else 1, place.first_use, at, number)
            if g not in best or key < best[g][0]:
                best[g] = (key, place)
    ranked = sorted(best, key=lambda g: (best[g][0][1], best[g][0][2], best[g][0][3]))
    rename = np.empty(int(group_of.max()) + 1, dtype=np.int64)
    for new, old in enumerate(ranked):
        rename[old] = new
    return [best[g][1] for g in ranked], rename[group_of]


def _names(solution: Solution, anchors: list[Place]) -> list[str]:
    taken: dict[str, int] = {}
    names = []
    for place in anchors:
        base = module_of(place.name)
        taken[base] = taken.get(base, 0) + 1
        names.append(base if taken[base] == 1 else f"{base}#{taken[base]}")
    return names


def module_of(tensor: str) -> str:
    """The module that owns a tensor, parametrisations seen through; a tensor of the root keeps its own name."""
    head = tensor.split(".parametrizations.")[0] if ".parametrizations." in tensor else tensor.rpartition(".")[0]
    return head or tensor


def _anchor_index(solution: Solution, channels: int, number_of: Ids, anchors: list[Place]) -> Ids:
    """Where each channel first occurs in its group's anchor."""
    index = np.full(channels, np.iinfo(np.int64).max)
    wanted: dict[int, tuple[Place, list[int]]] = {}
    for g, place in enumerate(anchors):
        wanted.setdefault(id(place), (place, []))[1].append(g)
    for place, numbers in wanted.values():
        inside = np.flatnonzero(place.channel >= 0)[::-1]
        inside = inside[np.isin(number_of[place.channel[inside]], numbers)]
        index[place.channel[inside]] = inside  # reversed, so the first occurrence is written last
    return index


def _spans(solution: Solution, number_of: Ids, position: Ids, groups: int) -> None:
    spans: list[list[tuple[int, int, int]]] = [[] for _ in range(groups)]
    order: list[Ids] = []
    for number, place in enumerate(solution.places):
        inside = np.flatnonzero(place.channel >= 0)
        owner = place.channel[inside]
        group, where = number_of[owner], position[owner]
        sorted_ = np.lexsort((inside, where, group))
        order.append(inside[sorted_])
        ranked = group[sorted_]
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1, [len(ranked)]]) if len(ranked) else [0]
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            spans[int(ranked[start])].append((number, int(start), int(stop)))
    first = [p.first_use for p in solution.places]
    for entry in spans:
        entry.sort(key=lambda s: first[s[0]])
    solution._spans, solution._order = spans, order


def _inexact_reasons(solution: Solution, ledger: Ledger, number_of: Ids, groups: int) -> list[tuple[str, ...]]:
    found: list[dict[str, None]] = [{} for _ in range(groups)]
    for axis, reason in ledger.inexacts:
        channel = solution.channels_of(axis)
        for g in np.unique(number_of[channel[channel >= 0]]).tolist():
            found[g].setdefault(reason)
    return [tuple(f) for f in found]


def _list_frozen(solution: Solution, recording: Recording, reasons: dict[int, str], alone: Bools) -> None:
    """Frozen output widths of layers, one row for every layer and reason."""
    rows: dict[tuple[str, str], int] = {}
    for call in recording.calls:
        axis = call.weight[0] if call.weight is not None else None
        if axis is None or len(axis) == 1:
            continue
        told: dict[str, int] = {}
        for c in np.unique(solution.component[axis]).tolist():
            reason = reasons.get(c) or ("nothing else is tied to it" if alone[c] else "")
            if solution.channel[c] < 0:
                told[reason] = told.get(reason, 0) + 1
        for reason, width in told.items():
            rows.setdefault((call.module, reason or "its size is part of the code"), width)
    solution.frozen = tuple(Frozen(name, width, reason) for (name, reason), width in rows.items())


def members_alive(solution: Solution, alive: Bools, axis: Axis) -> Bools | None:
    """Which indices of an axis survive, given which channels are alive; None where all do."""
    if axis is None:
        return None
    channel = solution.channels_of(axis)
    kept = (channel < 0) | alive[channel]
    return None if bool(kept.all()) else kept
