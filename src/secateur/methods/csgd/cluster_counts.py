"""How many clusters every group gets: the same share, more where filters differ, or a fixed part of the width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from secateur._protocols import FloatArray, IntArray
from secateur.allocate import Constraints, allocate
from secateur.budget import Budget
from secateur.errors import BudgetError, ModelError
from secateur.graph import Graph
from secateur.methods.csgd.pacesetters import Makers
from secateur.methods.csgd.partitions import spread
from secateur.methods.kit.aim import Aim
from secateur.plan import Plan
from secateur.repair.merging import mergeable


def unmergeable(graph: Graph, seed: int) -> list[str]:
    """Groups in which equal channels cannot become one; ModelError if that leaves nothing.

    Random clusters are tried on random weights, of all groups at once and, if that fails, of one after the other.
    """
    generator = np.random.default_rng(seed)
    tried: dict[str, IntArray] = {g.name: generator.integers(0, -(-g.width // 2), g.width) for g in graph.groups}
    if mergeable(graph, tried, seed=seed):
        return []
    bad = [name for name in tried if not mergeable(graph, {name: tried[name]}, seed=seed)]
    good = {name: labels for name, labels in tried.items() if name not in bad}
    if not bad or not good or not mergeable(graph, good, seed=seed):
        raise ModelError(
            f"Merging equal channels changes what {type(graph.model).__name__} computes, so that csgd cannot prune it: "
            "choose another method."
        )
    return bad


def alike(graph: Graph, budget: Budget, constraints: Constraints) -> Plan:
    """The same share of every group, within the budget; which channels the plan keeps means nothing."""
    scores = {group.name: np.ones(group.width) for group in graph.groups}
    return allocate(scores, graph, budget, constraints, allocator="uniform")


def by_spread(
    graph: Graph, budget: Budget, constraints: Constraints, allocator: str, features: Literal["pacesetter", "all"]
) -> Plan:
    """More for groups whose filters differ more, beside their own size."""
    makers = Makers(graph)
    scores: Mapping[str, FloatArray] = {g.name: _relative(makers.rows(g.name, features)) for g in graph.groups}
    return allocate(scores, graph, budget, constraints, allocator=allocator, normalise="none")


def _relative(rows: FloatArray) -> FloatArray:
    size = float(np.sqrt((rows**2).sum(1).mean()))
    return spread(rows) / max(size, 1e-30)


def squeezed(graph: Graph, aim: Aim, constraints: Constraints, factor: float) -> Plan:
    """Every group at its width divided by `factor`, or at the next width that its constraints allow."""
    masks = {}
    for group, floor, step in zip(graph.groups, *map(np.ndarray.tolist, constraints.grid(graph)), strict=True):
        legal = np.concatenate([[floor], constraints.ends(group.width, floor, step)])
        wanted = int(np.ceil(group.width / factor - 1e-9))
        masks[group.name] = np.arange(group.width) < legal[np.searchsorted(legal, wanted)]
    plan = Plan(masks, {"allocator": "squeeze", "squeeze": factor})
    if not aim.met(plan.widths):
        cost = aim.cost(plan.widths)
        worst = max(aim.limits, key=lambda key: cost[key] / aim.limits[key])
        raise BudgetError(
            f"squeeze={factor:g} leaves {cost[worst] / aim.full[worst]:.4f} of the {worst}, which is more than the "
            "budget: raise the budget to that, or squeeze more."
        )
    return plan
