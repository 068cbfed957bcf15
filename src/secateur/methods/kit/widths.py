"""From wanted widths to a plan, for methods that find how wide each group should be.

A search for widths answers in real numbers, or in whole ones that are no multiples, too dear, or leave much unspent.
Here they become widths that every constraint allows, within the budget and close to it where channels are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from secateur._protocols import Array, FloatArray, GraphLike, IntArray
from secateur.allocate import Constraints
from secateur.allocate.alignment import straight
from secateur.allocate.blocks import Blocks, Bounds, longest, stack, whole_cost
from secateur.allocate.exchanges import exchanged, used
from secateur.allocate.reach import unreachable
from secateur.budget import Budget
from secateur.errors import ConfigError
from secateur.methods.kit.aim import CLOSE
from secateur.methods.kit.shares import unspent
from secateur.plan import Plan, fingerprint

#: The order in which channels of each group stay: scores, {group: [width]}, higher = keep; or what gives them for the
#: widths of all groups, where the choice in one layer depends on what stays in the layers before.
Order = Mapping[str, Array] | Callable[[Mapping[str, int]], Mapping[str, Array]]


def fitted_widths(
    graph: GraphLike, budget: Budget, constraints: Constraints, wanted: Mapping[str, float]
) -> dict[str, int]:
    """The legal widths of all groups nearest to the wanted ones, within the budget and with 99% of it used.

    Where the wanted widths, each rounded to its nearest legal one (halves up), do that, they are the answer. Else all
    are scaled by one factor, the largest within the budget, and rounded; what then is still unspent goes to exchanges:
    a step more in one group, and some less in at most one other, of which the one that moves least from the wanted
    proportions is made.

    Args:
        wanted: channels of every group, in real numbers from 0. More than there are is allowed: such a group stays
            whole until the factor brings it below its width.

    Raises:
        BudgetError: no legal widths are within the budget. ConfigError: a group is missing, or its number is none.
    """
    floors, steps = constraints.grid(graph)
    whole = whole_cost(graph)
    bounds = Bounds(graph.costs, budget.limits(whole))
    if not bounds.fit(floors[None])[0]:
        raise unreachable(graph, budget, constraints, whole)
    target = _numbers(graph, wanted)

    def choose(tops: IntArray) -> IntArray:
        return _nearest(stack([np.zeros(top) for top in tops.tolist()], floors, constraints, steps), target, bounds)

    widths = straight(constraints.alignment(graph), floors, choose, lambda tried: float(used(bounds, tried[None])[0]))
    return {group.name: int(width) for group, width in zip(graph.groups, widths, strict=True)}


def fitted_plan(
    graph: GraphLike, budget: Budget, constraints: Constraints, wanted: Mapping[str, float], order: Order
) -> Plan:
    """The plan of `fitted_widths` that keeps the channels that come first in `order`; ties fall to the lower index.

    Its provenance says what was wanted, what `align` could not hold, and why budget is left where it is.
    """
    widths = fitted_widths(graph, budget, constraints, wanted)
    scores = order(widths) if callable(order) else order
    masks = {}
    for group in graph.groups:
        masks[group.name] = np.zeros(group.width, dtype=np.bool_)
        first = np.argsort(-np.asarray(scores[group.name], dtype=np.float64), kind="stable")
        masks[group.name][first[: widths[group.name]]] = True
    told = {"wanted": {name: round(float(number), 3) for name, number in wanted.items()}, "budget": budget.as_dict()}
    told |= unspent(graph, budget, widths, "no exchange of channels that keeps the constraints uses more of it")
    counts = np.array([widths[group.name] for group in graph.groups], dtype=np.int64)
    if note := constraints.alignment(graph).note(counts):
        told["notes"] = [note]
    return Plan(masks, told, fingerprint(graph))


def _numbers(graph: GraphLike, wanted: Mapping[str, float]) -> FloatArray:
    """The wanted widths in the order of the groups, all above 0; ConfigError naming one that is none."""
    names = [group.name for group in graph.groups]
    if missing := [name for name in names if name not in wanted]:
        raise ConfigError(f"The wanted width of group {missing[0]!r} is missing: give one for every group.")
    target = np.array([float(wanted[name]) for name in names], dtype=np.float64)
    if not (np.isfinite(target) & (target >= 0)).all():
        bad = names[int(np.argmin(np.isfinite(target) & (target >= 0)))]
        raise ConfigError(f"The wanted width of group {bad!r} is {wanted[bad]!r}: give a finite number from 0 up.")
    return np.maximum(target, 1e-6)  # a group of which nothing is wanted gets its blocks last


def _nearest(blocks: Blocks, target: FloatArray, bounds: Bounds) -> IntArray:
    """Widths [groups] near the target; a block is kept once the target, scaled, reaches the middle of it."""
    scale = (blocks.end - blocks.size / 2) / target[blocks.group]
    kept = scale <= 1.0
    sizes = np.bincount(blocks.group[kept], weights=blocks.size[kept], minlength=len(target))
    asked = blocks.floors + sizes.astype(np.int64)
    if used(bounds, asked[None])[0] >= CLOSE:
        return asked
    widths = longest(blocks, np.argsort(scale, kind="stable"), blocks.floors, bounds)
    return exchanged(replace(blocks, score=1.0 / scale), bounds, widths, CLOSE)
