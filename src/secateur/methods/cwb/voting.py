"""Widths by a global vote: what the classes think of every channel, one threshold for all layers, a floor in each.

The vote of a channel is |sum_k M_kc| over the entries of its classes: a channel that some classes want and others do
not goes before one that all want a little (Zhang et al., arXiv:2104.11883, as in the official code).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secateur._protocols import BoolArray, FloatArray, GraphLike, IntArray
from secateur.allocate import Constraints, allocate
from secateur.allocate.blocks import Bounds, whole_cost
from secateur.budget import Budget
from secateur.errors import BudgetError
from secateur.methods.kit.shares import unspent
from secateur.plan import Plan

#: Share of all channels above the threshold that is tried first.
_FIRST = 0.90


def class_votes(masks: FloatArray) -> FloatArray:
    """|sum_k M_kc| of masks [classes, channels]."""
    votes: FloatArray = np.abs(masks.sum(0))
    return votes


def learnt(masks: FloatArray) -> BoolArray:
    """Which channels of masks [classes, channels] ever had a gradient of the task, which is another for every class.

    Weight decay and penalties act on all classes alike.
    """
    return np.asarray((masks != masks[0]).any(0))


def elect(
    votes: Mapping[str, FloatArray],
    graph: GraphLike,
    budget: Budget,
    constraints: Constraints,
    *,
    step: float | None = None,
    allocator: str = "global",
) -> Plan:
    """The plan that keeps the most voted channels of the whole network, and in every group its floor.

    Args:
        votes: of every channel. constraints: `max_ratio` is one minus the share that stays in every group.
        step: by which the share of channels above the threshold is lowered, from `_FIRST` on, until the budget is met,
            as in the official code; None: vote by vote, and what is left of the budget is used up.
        allocator: as in `allocate`, where there is no step.

    Raises:
        BudgetError: the floors are above the budget.
    """
    if step is None:
        plan = allocate(votes, graph, budget, constraints, allocator=allocator, normalise="none")
        plan.provenance |= unspent(graph, budget, plan.widths, "no channel voted out fits into what is left")
        return plan
    bounds = Bounds(graph.costs, budget.limits(whole_cost(graph)))
    keeps = np.arange(_FIRST, 0.0, -step)
    rows = np.stack([elected(votes, graph, constraints, float(keep)) for keep in keeps])
    fitting = np.flatnonzero(bounds.fit(rows))
    if not len(fitting):
        raise BudgetError(
            f"The vote does not reach the budget {budget}: the floor of every group (min_preserve) and steps of "
            f"{step:g} leave more; lower either."
        )
    masks = {}
    for group, width in zip(graph.groups, rows[fitting[0]].tolist(), strict=True):
        masks[group.name] = np.zeros(group.width, dtype=np.bool_)
        masks[group.name][np.argsort(-votes[group.name], kind="stable")[:width]] = True
    plan = Plan(masks, {"keep": float(keeps[fitting[0]]), "budget": budget.as_dict()})
    plan.provenance |= unspent(graph, budget, plan.widths, f"the share that is kept falls in steps of {step:g}")
    return plan


def elected(votes: Mapping[str, FloatArray], graph: GraphLike, constraints: Constraints, keep: float) -> IntArray:
    """Widths [groups] where the threshold is the int(keep · total)-th vote of all groups that may be narrowed."""
    floors, steps = constraints.grid(graph)
    voting = [group.name for group, floor in zip(graph.groups, floors.tolist(), strict=True) if floor < group.width]
    ranked = np.sort(np.concatenate([votes[name] for name in voting]))[::-1]
    threshold = ranked[max(int(keep * len(ranked)), 1) - 1]
    widths = []
    for group, floor, step in zip(graph.groups, floors.tolist(), steps.tolist(), strict=True):
        legal = np.concatenate([[floor], constraints.ends(group.width, floor, step)])
        wanted = max(int((votes[group.name] >= threshold).sum()), floor)
        widths.append(int(legal[np.searchsorted(legal, wanted, side="right") - 1]))
    return np.array(widths, dtype=np.int64)
