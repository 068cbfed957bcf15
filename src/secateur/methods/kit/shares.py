"""Widths in given proportions: the share of every group that stays is one number times the group's own weight."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import numpy as np

from secateur._protocols import CostLike, FloatArray, GraphLike, IntArray
from secateur.allocate.blocks import Blocks, Bounds, longest, stack
from secateur.allocate.constraints import Constraints
from secateur.allocate.patterns import matched, parse_patterns
from secateur.allocate.reach import unreachable
from secateur.budget import Budget
from secateur.errors import ConfigError
from secateur.methods.kit.aim import Aim


def proportional(
    graph: GraphLike,
    whole: CostLike,
    budget: Budget,
    constraints: Constraints,
    weights: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """The widths of all groups: share of a group = min(1, s · its weight), with the largest s within the budget.

    What then is left rounds widths up, at most: one more step of a group that is below its proportion. Beyond that it
    stays unspent, for groups wider than their proportion are not what was asked for.

    Args:
        whole: cost of the original. weights: {module pattern: weight}; 1 where none matches, the last one wins.

    Raises:
        BudgetError: no legal widths are within the budget. ConfigError: a pattern or a weight is wrong.
    """
    floors, steps = constraints.grid(graph)
    blocks = stack([np.zeros(group.width) for group in graph.groups], floors, constraints, steps)
    bounds = Bounds(graph.costs, budget.limits(whole))
    if not bounds.fit(floors[None])[0]:
        raise unreachable(graph, budget, constraints, whole)
    share = blocks.end / (blocks.full * _weights(graph, weights or {}))[blocks.group]
    order = np.argsort(share, kind="stable")
    widths = longest(blocks, order, floors, bounds)
    for block in _next(blocks, order, widths):
        wider = widths.copy()
        wider[blocks.group[block]] = blocks.end[block]
        widths = wider if bounds.fit(wider[None])[0] else widths
    return {group.name: int(width) for group, width in zip(graph.groups, widths, strict=True)}


def _next(blocks: Blocks, order: IntArray, widths: IntArray) -> list[int]:
    """The block on top of every group's width, in the given order."""
    left = order[blocks.end[order] > widths[blocks.group[order]]]
    _, first = np.unique(blocks.group[left], return_index=True)
    return [int(block) for block in left[np.sort(first)]]


def unspent(graph: GraphLike, budget: Budget, widths: Mapping[str, int], why: str) -> dict[str, str]:
    """For a plan's provenance: `why` more than a hundredth of the budget is left, as a sentence; nothing if it is not.

    widths: of all groups. why: what is said behind the colon.
    """
    aim = Aim(graph, budget)
    if aim.close(widths):
        return {}
    return {"unspent": f"{aim.used(widths):.1%} of the budget is used: {why}."}


def _weights(graph: GraphLike, weights: Mapping[str, float]) -> FloatArray:
    found = np.ones(len(graph.groups))
    for pattern, (text, weight) in zip(parse_patterns(graph, weights, "shares"), weights.items(), strict=True):
        given: object = weight
        if isinstance(given, bool) or not isinstance(given, Real) or not 0 < float(given) < float("inf"):
            raise ConfigError(f"shares has {text!r}: {weight!r}: give a number above 0, such as 1.5.")
        hit = [k for k, group in enumerate(graph.groups) if matched(pattern, group.members)]
        if not hit:
            raise ConfigError(f"shares pattern {text!r} matches no module whose channels can be pruned: remove it.")
        found[hit] = float(given)
    return found
