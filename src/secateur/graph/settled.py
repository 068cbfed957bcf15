"""Settled sizes as a plan keeps them, and their calls found again in another trace of the same network.

Between sizes.py, which knows a conflict, and surgery.py, which applies plans. A network that remembers something from
its first run (anchors, a mask) makes other calls later: an operator is named by its module and how often it ran there
before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from secateur.errors import PlanError
from secateur.graph.recorder import Call, places_of
from secateur.graph.sizes import Done, SizeConflict


def keep_settled(conflicts: Iterable[SizeConflict], calls: list[Call]) -> list[list[Any]]:
    """What a plan keeps of what was settled in a trace with these calls: JSON only."""
    places = places_of(calls)
    found = []
    for conflict in conflicts:
        at = places[min(conflict.call, len(calls) - 1)]
        done = conflict.done or Done(0)
        found.append([*at, conflict.operator, conflict.detail, done.number, [list(places[k]) for k in done.without]])
    return found


def find_settled(kept: Any, calls: list[Call]) -> list[SizeConflict]:
    """The same conflicts in a trace with these calls; PlanError where it has none of an entry's."""
    numbers = {place: number for number, place in enumerate(places_of(calls))}
    found = []
    for entry in kept if isinstance(kept, list) else [kept]:
        match entry:
            case [str(module), str(name), int(nth), str(operator), str(detail), int(number), [*but]] if number >= 0:
                call = numbers.get((module, name, nth))
                without = [numbers.get(tuple(place)) if _is_place(place) else None for place in but]
                if call is not None and None not in without:
                    done = Done(number, tuple(k for k in without if k is not None))
                    found.append(SizeConflict(call, module, operator, detail, done))
                    continue
        raise PlanError(
            f"The plan was made around a size in code ({str(entry)[:80]}) that this network does not have there; "
            "make the plan again for this network."
        )
    return found


def _is_place(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and [type(part) for part in entry] == [str, str, int]
