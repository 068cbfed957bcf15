"""Grouped convolutions of which whole groups may go: where the equal positions of all groups cannot, but groups can.

The rule of a grouped convolution ties position j of every group, so that groups stay equal. Where heads of attention
run through the groups, that ties everything to everything; there a group lives or dies whole, and their number follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from secateur.graph.labels import Grouped, Ids, Ledger
from secateur.graph.rules import Expect

if TYPE_CHECKING:
    from secateur.graph.recorder import Recording

Ties = list[tuple[Ids, Ids]]


class Solved(Protocol):
    """What is asked of a solution; `secateur.graph.channels.Solution` is one."""

    @property
    def places(self) -> Sequence[Any]: ...
    def channels_of(self, axis: Ids) -> Ids: ...


S = TypeVar("S", bound=Solved)


def ties_of(ledger: Ledger, whole: set[int]) -> Ties:
    """All ties, those of the grouped convolutions with weights `whole` (identities of axes) group by group."""
    ties = list(ledger.ties)
    for record in ledger.grouped:
        if id(record.rows) in whole:
            nothing = np.empty(0, np.int64)
            ties[record.first : record.last] = [(nothing, nothing)] * (record.last - record.first)
            stored = record.rows.reshape(record.groups, -1)
            ties += [(stored[:, 0], stored[:, k]) for k in range(1, stored.shape[1])]
            ties.append((np.repeat(stored[:, 0], len(record.source) // record.groups), record.source))
    return ties


def fixes_of(ledger: Ledger, whole: set[int]) -> list[tuple[Ids, str]]:
    """What stays for it: the inputs of one group."""
    return [(record.columns, "") for record in ledger.grouped if id(record.rows) in whole]


def choose(recording: Recording, solved: Callable[[set[int]], S]) -> S:
    """The solution with whole groups where that makes something prunable and costs nothing; the calls then say so."""
    plain = solved(set())
    records = {id(r.rows): r for r in recording.ledger.grouped if r.call >= 0}
    stuck = {key for key, r in records.items() if not (plain.channels_of(r.rows) >= 0).any()}
    solution, whole = plain, set[int]()
    if stuck and recording.ledger.heads:
        other = solved(stuck)
        inputs = {id(records[key].columns) for key in stuck}  # these stay: a group keeps all its inputs
        pairs = [(a, b) for a, b in zip(plain.places, other.places, strict=True) if id(a.axis) not in inputs]
        before, after = (
            np.concatenate([place.channel >= 0 for place in places]) for places in zip(*pairs, strict=True)
        )
        if after.sum() > before.sum() and not (before & ~after).any():
            solution, whole = other, stuck
    for key, record in records.items():
        _tell(recording, record, key in whole)
    return solution


def _tell(recording: Recording, record: Grouped, whole: bool) -> None:
    """Note in the call that its number of groups follows, or that it does not."""
    call = recording.calls[record.call]
    first = np.ascontiguousarray(record.rows.reshape(record.groups, -1)[:, 0])
    others = tuple(e for e in call.expects if e.arg != "groups")
    call.expects = (*others, Expect("groups", None, first)) if whole else others
    call.form = None if whole else record.form


def whole_by_slices(recording: Recording, slices: Mapping[str, tuple[Ids | None, ...]]) -> set[int]:
    """Which grouped convolutions lost whole groups, by what was cut out of their weights."""
    found = set()
    for name, kept in slices.items():
        for record in recording.ledger.grouped:
            if recording.places[name][0] is record.rows and kept[0] is not None:
                alive = np.unique(kept[0] // (len(record.rows) // record.groups))
                if len(alive) < record.groups:
                    found.add(id(record.rows))
    return found
