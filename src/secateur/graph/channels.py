"""Solve: from the ledger's ties to channels, and from channels to groups, with one connected-components call.

Channels that occupy the same places with the same multiplicities form a group: one width of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from secateur.graph.components import components
from secateur.graph.exits import exits
from secateur.graph.grouped import choose, fixes_of, ties_of
from secateur.graph.labels import Ids, Ledger
from secateur.graph.products import resolve_products
from secateur.graph.recorder import Recording, Tap

Role = Literal["producer", "consumer"]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Member:
    """One place a group touches: row c of `index` [width, k] holds what channel c owns along `dim` of tensor `name`."""

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
class Seen:
    """Where a group shows in the forward pass: output tensor number `position` of a module, dimension `dim`.

    Row c of `index` [width, k] holds the indices of channel c there.
    """

    module: str
    position: int
    dim: int
    index: Ids


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
    both: bool = False  # read by one operator and written by another, as tied weights are


@dataclass(eq=False)
class Solution:
    """Channels of one recording: `component` of every slot, which are frozen, and the groups."""

    component: Ids  # slot -> component
    channel: Ids  # component -> channel number, -1 where frozen
    places: list[Place]
    axes: list[Ids]  # distinct axes that costs are made of
    multiplicity: sp.csr_matrix  # channel x axis
    single: Bools | None = None  # components that would be a group of one channel
    groups: tuple[Group, ...] = ()
    list_frozen: Callable[[], tuple[Frozen, ...]] = tuple
    _rank: Ids | None = None  # channel -> its rank by group, then position
    _order: dict[int, tuple[Ids, Ids]] = field(default_factory=dict)  # place -> indices by rank, and these ranks
    _alike: dict[bytes, tuple[Ids, Ids]] = field(default_factory=dict)  # the same by the channels of a place

    def members(self, number: int) -> Iterable[Member]:
        """The members of group `number`."""
        channels, width = self.groups[number].channels, self.groups[number].width
        assert self._rank is not None
        first, matrix = int(self._rank[channels[0]]), self.multiplicity
        row = slice(matrix.indptr[channels[0]], matrix.indptr[channels[0] + 1])
        columns, counts = matrix.indices[row].tolist(), matrix.data[row].tolist()
        found = sorted(
            [(self.places[c].first_use, c, n) for c, n in zip(columns, counts, strict=True) if c < len(self.places)]
        )
        for _, place, count in found:  # the first axes are those of the places, in order
            p = self.places[place]
            indices, ranks = self._ordered(place)
            start = int(ranks.searchsorted(first))
            yield Member(p.name, p.dim, p.role, indices[start : start + width * count].reshape(width, count))

    def _ordered(self, place: int) -> tuple[Ids, Ids]:
        """The prunable indices of a place by group, then channel, then index; and the ranks of their channels."""
        found = self._order.get(place)
        if found is not None:
            return found
        channel = self.places[place].channel
        key = channel.tobytes()  # bias, norm and statistics of a layer have the channels of its weight
        if key not in self._alike:
            assert self._rank is not None
            inside = (channel >= 0).nonzero()[0]
            ranks = self._rank[channel[inside]]
            order = ranks.argsort(kind="stable")
            self._alike[key] = (inside[order], ranks[order])
        found = self._order[place] = self._alike[key]
        return found

    def seen(self, number: int, taps: Iterable[Tap]) -> Iterable[Seen]:
        """The taps in which every channel of group `number` shows, equally often."""
        rank = np.full(int(self.channel.max(initial=-1)) + 2, -1, dtype=np.int64)
        rank[self.groups[number].channels] = np.arange(self.groups[number].width)
        for tap in taps:
            position = rank[self.channels_of(tap.axis)]  # frozen slots are channel -1, the last entry
            inside = np.flatnonzero(position >= 0)
            counts = np.bincount(position[inside], minlength=self.groups[number].width)
            if counts.min() > 0 and counts.min() == counts.max():
                order = inside[np.argsort(position[inside], kind="stable")]
                yield Seen(tap.module, tap.position, tap.dim, order.reshape(self.groups[number].width, -1))

    @cached_property
    def frozen(self) -> tuple[Frozen, ...]:
        """Frozen output widths of layers, found when asked for."""
        return self.list_frozen()

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
        together: further slots that are coupled, position by position.
        attention: what is pruned in attention, whole "heads" or the features of every head ("head_dim").
    """
    never, together = list(never), list(together)
    return choose(recording, lambda whole: _solve(recording, never, together, attention, whole))


def _solve(
    recording: Recording,
    never: list[tuple[Ids, str]],
    together: list[tuple[Ids, Ids]],
    attention: str,
    whole: set[int],
) -> Solution:
    ledger = recording.ledger
    fixes = [*ledger.fixes, *never, *fixes_of(ledger, whole)]
    ties = [*ties_of(ledger, whole), *together]
    component = components(ledger.size, ties, ledger.links)
    fixes += _bins(recording, component)
    if ledger.products:
        more_ties, more_fixes = resolve_products(ledger, component, fixes, attention)
        ties += more_ties
        fixes += more_fixes
        component = components(ledger.size, ties, ledger.links)
    fixes += exits(ledger, component)
    reasons = _reasons(component, fixes)
    places = _places(recording)
    axes = _axes(recording, places)
    channel, alone = _number_channels(component, reasons, places)
    multiplicity = _multiplicity(channel[component], axes, int(channel.max(initial=-1)) + 1)
    solution = Solution(component, channel, places, axes, multiplicity)
    _make_groups(solution, ledger)
    solution.list_frozen = lambda: _list_frozen(solution, recording, reasons, fixes, alone)
    return solution


def _bins(recording: Recording, component: Ids) -> list[tuple[Ids, str]]:
    """A softmax that a fixed vector of rising values reads is a distribution over bins; bins are no channels."""
    if not recording.scales:
        return []
    mixed = component[np.concatenate(recording.softmaxed)]
    reason = "the bins of a softmax, read by a fixed projection"
    return [(axis, reason) for axis in recording.scales if bool(np.isin(component[axis], mixed).any())]


def _reasons(component: Ids, fixes: list[tuple[Ids, str]]) -> Ids:
    """For every component the number of the first fix worth telling (or of one that is not); -1: not frozen."""
    number = np.full(int(component.max(initial=-1)) + 1, -1, dtype=np.int64)
    for worth_telling in (False, True):  # written backwards, so that the first one stays
        chosen = [k for k, (_, reason) in enumerate(fixes) if bool(reason) == worth_telling][::-1]
        if chosen:
            slots = np.concatenate([fixes[k][0] for k in chosen])
            number[component[slots]] = np.repeat(chosen, [len(fixes[k][0]) for k in chosen])
    return number


# --------------------------------------------------------------------------------------------- places and channels


def _places(recording: Recording) -> list[Place]:
    ledger = recording.ledger
    consumed, emitted = np.zeros((2, ledger.size), dtype=bool)
    for flags, marked in ((consumed, ledger.consumed), (emitted, ledger.emitted)):
        for slots in marked:
            flags[slots] = True
    found = [
        (name, dim, axis)
        for name, label in recording.places.items()
        if name in recording.first_use  # nothing is tied to what never ran, so it is in no group
        for dim, axis in enumerate(label)
        if axis is not None and axis.size
    ]
    if not found:
        return []
    axes = [axis for _, _, axis in found]
    slots, starts = np.concatenate(axes), _starts(axes)
    reads = np.logical_and.reduceat(consumed[slots], starts)
    both = np.logical_and.reduceat((consumed & emitted)[slots], starts)
    roles: list[Role] = ["consumer" if read else "producer" for read in (reads & ~both).tolist()]
    return [
        Place(*each, role, recording.first_use[each[0]], both=twice)
        for each, role, twice in zip(found, roles, both.tolist(), strict=True)
    ]


def _starts(axes: Sequence[Ids]) -> Ids:
    """Where each of several axes begins, one after the other."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum([len(axis) for axis in axes])[:-1]])


def _axes(recording: Recording, places: list[Place]) -> list[Ids]:
    """Distinct axes: of all places, of all buffers, of all products that cost MACs."""
    found: dict[int, Ids] = {id(p.axis): p.axis for p in places}
    for buffer in recording.buffers:
        found.update((id(a), a) for a in buffer.label if a is not None)
    for macs in recording.ledger.macs:
        found.update((id(a), a) for a in macs.axes)
    return list(found.values())


def _number_channels(component: Ids, reasons: Ids, places: list[Place]) -> tuple[Ids, Bools]:
    """Channel numbers of prunable components; components in one place only stand alone and are frozen."""
    total = int(component.max(initial=-1)) + 1
    first, last = np.full(total, -1, dtype=np.int64), np.full(total, -1, dtype=np.int64)
    produced, both = np.zeros((2, total), dtype=bool)
    if places:
        lengths = [len(place.axis) for place in places]
        own = component[np.concatenate([place.axis for place in places])]
        number = np.repeat(np.arange(len(places)), lengths)
        last[own], first[own[::-1]] = number, number[::-1]  # of equal indices the last is written last
        produced[own[np.repeat([place.role == "producer" for place in places], lengths)]] = True
        both[own[np.repeat([place.both for place in places], lengths)]] = True
    several = (first != last) | both
    alive = several & produced
    alive[reasons >= 0] = False
    alone = (last >= 0) & ~(several & produced)
    channel = np.full(total, -1, dtype=np.int64)
    channel[alive] = np.arange(int(alive.sum()))
    return channel, alone


def _multiplicity(slot_channel: Ids, axes: list[Ids], channels: int) -> sp.csr_matrix:
    """How often each channel occurs in each axis."""
    if not axes:
        return sp.csr_matrix(np.zeros((channels, 0), dtype=np.int64))
    rows = slot_channel[np.concatenate(axes)]
    keep = rows >= 0
    cols = np.repeat(np.arange(len(axes)), [len(a) for a in axes])[keep]
    starts = np.searchsorted(cols, np.arange(len(axes) + 1))
    ones = np.ones(len(cols), dtype=np.int64)
    matrix = sp.csc_matrix((ones, rows[keep], starts), shape=(channels, len(axes)))
    matrix.sum_duplicates()
    return matrix.tocsr()


def _make_groups(solution: Solution, ledger: Ledger) -> None:
    """Equal rows of the multiplicity matrix are one group; 64 random bits a row stand in for comparing them."""
    matrix = solution.multiplicity
    if matrix.shape[0] == 0:
        return
    keys = np.random.default_rng(0).integers(1, 2**62, size=matrix.shape[1], dtype=np.int64)
    with np.errstate(over="ignore"):
        digest = matrix @ keys
    _, first, group_of, width = np.unique(digest, return_index=True, return_inverse=True, return_counts=True)
    left = _drop(solution, width[group_of] == 1)
    if not left.all():
        _, first, group_of = np.unique(digest[left], return_index=True, return_inverse=True)
    channels = len(group_of)
    if channels == 0:
        return
    anchors, at, number_of = _order_groups(solution, first, group_of)
    order = np.lexsort((at, number_of))
    members = np.split(order, np.flatnonzero(np.diff(number_of[order])) + 1)
    rank = np.empty(channels, dtype=np.int64)
    rank[order] = np.arange(channels)
    names = _names(anchors)
    reasons = _inexact_reasons(solution, ledger, number_of, len(anchors))
    solution.groups = tuple(Group(names[g], len(m), m, reasons[g], solution, g) for g, m in enumerate(members))
    solution._rank = rank


def _drop(solution: Solution, single: Bools) -> Bools:
    """Freeze channels that are a group of their own, for one must stay; returns which channels are left."""
    keep: Bools = ~single
    if single.any():
        number = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)  # the last entry stands for frozen (-1)
        solution.single = (solution.channel >= 0) & (number[solution.channel] < 0)
        solution.channel = number[solution.channel]
        solution.multiplicity = solution.multiplicity[np.flatnonzero(keep)]
    axes = [place.axis for place in solution.places]
    if axes:
        channels = solution.channels_of(np.concatenate(axes))
        for place, start in zip(solution.places, _starts(axes).tolist(), strict=True):
            place.channel = channels[start : start + len(place.axis)]
    return keep


def _order_groups(solution: Solution, first: Ids, group_of: Ids) -> tuple[list[Place], Ids, Ids]:
    """Number groups by execution.

    Returns the anchor of every group (the place it is named after: its first weight, or vector where it has none),
    where each channel first occurs in its group's anchor, and the number of every channel's group.
    """
    places, matrix = solution.places, solution.multiplicity
    dims = {p.name: 0 for p in places}
    for place in places:
        dims[place.name] += 1
    # rank of a place as an anchor: producers first, weights before vectors, then by execution
    keys = [(p.role != "producer", dims[p.name] < 2, p.first_use, k) for k, p in enumerate(places)]
    rank = np.empty(len(places), dtype=np.int64)
    rank[sorted(range(len(places)), key=keys.__getitem__)] = np.arange(len(places))
    anchor = np.empty(len(first), dtype=np.int64)
    for g, channel in enumerate(first.tolist()):
        columns = matrix.indices[matrix.indptr[channel] : matrix.indptr[channel + 1]]
        columns = columns[columns < len(places)]  # the first axes are those of the places, in order
        anchor[g] = columns[np.argmin(rank[columns])]
    at = np.empty(len(group_of), dtype=np.int64)
    own = anchor[group_of]
    for k in np.unique(anchor).tolist():
        inside = np.flatnonzero(places[k].channel >= 0)[::-1]
        inside = inside[own[places[k].channel[inside]] == k]
        at[places[k].channel[inside]] = inside  # written backwards, so that the first occurrence stays
    lowest = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(lowest, group_of, at)
    ranked = sorted(range(len(first)), key=lambda g: (places[anchor[g]].first_use, lowest[g], anchor[g]))
    rename = np.empty(len(first), dtype=np.int64)
    rename[ranked] = np.arange(len(first))
    return [places[anchor[g]] for g in ranked], at, rename[group_of]


def _names(anchors: list[Place]) -> list[str]:
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


def _inexact_reasons(solution: Solution, ledger: Ledger, number_of: Ids, groups: int) -> list[tuple[str, ...]]:
    found: list[dict[str, None]] = [{} for _ in range(groups)]
    for axis, reason in ledger.inexacts:
        channel = solution.channels_of(axis)
        for g in np.unique(number_of[channel[channel >= 0]]).tolist():
            found[g].setdefault(reason)
    return [tuple(f) for f in found]


def _list_frozen(
    solution: Solution, recording: Recording, reasons: Ids, fixes: list[tuple[Ids, str]], alone: Bools
) -> tuple[Frozen, ...]:
    """Frozen output widths of layers, one row for every layer and reason."""
    rows: dict[tuple[str, str], int] = {}
    for call in recording.calls:
        axis = call.weight[0] if call.weight is not None else None
        if axis is None or len(axis) == 1:
            continue
        components_, indices = np.unique(solution.component[axis], return_counts=True)
        stays = solution.channel[components_] < 0
        told: dict[str, int] = {}
        for c, count in zip(components_[stays].tolist(), indices[stays].tolist(), strict=True):
            reason = fixes[reasons[c]][1] if reasons[c] >= 0 else _loose(solution, c, count, alone)
            told[reason] = told.get(reason, 0) + 1
        for reason, width in told.items():
            rows.setdefault((call.module, reason or "its size is part of the code"), width)
    return tuple(Frozen(name, width, reason) for (name, reason), width in rows.items())


def _loose(solution: Solution, component: int, indices: int, alone: Bools) -> str:
    """Why a component that nothing fixes is not prunable; it is at so many indices of the width."""
    if solution.single is not None and solution.single[component]:
        return "all its channels are tied to each other" if indices > 1 else "one channel is used as no other is"
    return "nothing else is tied to it" if alone[component] else ""
