"""Going down to a budget in steps: from what is left of a network, let the channels go that are worth least now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from secateur._protocols import Array, BoolArray, CostModelLike, FloatArray, FrozenLike, GraphLike, IntArray, MemberLike
from secateur.allocate import Constraints, allocate
from secateur.allocate.blocks import Bounds, stack
from secateur.allocate.exchanges import exchanged
from secateur.budget import KEYS, Budget, Target
from secateur.methods.kit.aim import Aim


@dataclass(frozen=True)
class Goal:
    """Bounds on the costs of widths."""

    costs: CostModelLike
    full: Mapping[str, float]  # of the whole network
    limits: Mapping[str, float]

    @classmethod
    def of(cls, costs: CostModelLike, aim: Aim) -> Goal:
        """A budget's own bounds."""
        return cls(costs, aim.full, aim.limits)

    @classmethod
    def channels(cls, full: int, limit: int) -> Goal:
        """A bound on the number of channels, wherever they are."""
        return cls(_Count(), dict.fromkeys(KEYS.values(), float(full)), {"macs": float(limit)})

    def at(self, share: float) -> Goal:
        """The bounds this share of the way from the whole network down to the goal."""
        limits = {key: self.full[key] + (limit - self.full[key]) * share for key, limit in self.limits.items()}
        return Goal(self.costs, self.full, limits)

    def met(self, widths: Array) -> bool:
        """Whether every bound holds."""
        found = self.costs.evaluate(widths)
        return all(float(found[key]) <= limit for key, limit in self.limits.items())

    def used(self, widths: Array) -> float:
        """The share of the bound that is nearest."""
        found = self.costs.evaluate(widths)
        return max(float(found[key]) / limit for key, limit in self.limits.items())


class _Count:
    """A cost model in which every channel costs 1."""

    def evaluate(self, widths: Array) -> Mapping[str, Array]:
        """Every cost is the number of channels."""
        return dict.fromkeys(KEYS.values(), np.asarray(widths, dtype=np.float64).sum(-1))


@dataclass(frozen=True)
class _Width:
    """A group as it is now."""

    name: str
    width: int
    members: Sequence[MemberLike] = ()


@dataclass(frozen=True)
class _Left:
    """What is left of a network, as an allocator reads it."""

    groups: Sequence[_Width]
    costs: CostModelLike
    frozen: Sequence[FrozenLike] = ()
    model: nn.Module = field(default_factory=nn.Identity)

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """There are none to speak of."""
        return {}


@dataclass(frozen=True)
class _Least(Constraints):
    """Constraints whose floors and steps are given."""

    least: tuple[int, ...] = ()
    between: tuple[int, ...] = ()

    def grid(self, graph: GraphLike) -> tuple[IntArray, IntArray]:
        return np.array(self.least, dtype=np.int64), np.array(self.between, dtype=np.int64)


@dataclass(frozen=True)
class Limits:
    """How far one step may go. floors: least widths of all. cap: largest share of a group that goes (at least one
    channel does). held: channels that stay this time. steps: how many channels lie between a group's legal widths,
    where it is not one (`Constraints.steps`). close: how much of a bound should be used, where that is possible by
    sparing one group (if `spare`), or, if `exchange`, by keeping channels in place of others."""

    floors: Mapping[str, int]
    cap: float = 1.0
    held: Mapping[str, BoolArray] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    close: float = 0.0
    exchange: bool = False
    spare: bool = True

    def least(self, name: str, mask: BoolArray) -> int:
        """The least width of a group whose channels are `mask` when the step begins."""
        width = int(mask.sum())
        held = int((self.held[name] & mask).sum()) if name in self.held else 0
        floor, step = self.floors[name], self.steps.get(name, 1)
        lowest = max(floor, width - max(1, int(self.cap * width + 1e-9)), held)
        return min(lowest + (floor - lowest) % step, width)


def lower(
    graph: GraphLike,
    masks: Mapping[str, BoolArray],
    scores: Mapping[str, FloatArray],
    goals: Sequence[Goal],
    rules: Limits,
    allocator: str = "global",
) -> dict[str, BoolArray]:
    """Masks within those given that meet every goal, or come as near as the rules allow; the worst scored go first."""
    least = [rules.least(group.name, masks[group.name]) for group in graph.groups]
    result = dict(masks)
    for goal in goals:
        result = _toward(graph, result, scores, goal, rules, least, allocator)
    return result


def _toward(
    graph: GraphLike,
    masks: Mapping[str, BoolArray],
    scores: Mapping[str, FloatArray],
    goal: Goal,
    rules: Limits,
    least: Sequence[int],
    allocator: str,
) -> dict[str, BoolArray]:
    names = [group.name for group in graph.groups]
    live = {name: np.flatnonzero(masks[name]) for name in names}
    if goal.met(np.array([len(live[name]) for name in names])):
        return dict(masks)
    span = max(float(np.ptp(np.concatenate([scores[name] for name in names]))), 1.0)
    ranked = {name: scores[name][live[name]] for name in names}
    for name, held in rules.held.items():
        ranked[name] = ranked[name] + 2 * span * held[live[name]]  # the last to go
    chosen = _chosen(names, ranked, goal, rules, least, allocator)
    if rules.close and goal.used(_counts(chosen)) < rules.close:
        sparing = names if rules.spare else []
        spared = [[len(live[n]) if n == name else w for n, w in zip(names, least, strict=True)] for name in sparing]
        fitting = [row for row in spared if goal.met(np.array(row))]
        found = [chosen, *(_chosen(names, ranked, goal, rules, row, allocator) for row in fitting)]
        chosen = max(found, key=lambda kept: min(goal.used(_counts(kept)), rules.close))  # the first of the best
        if rules.exchange and goal.met(_counts(chosen)):
            chosen = _exchanged(ranked, chosen, goal, rules, least)
    result = {name: np.zeros(len(masks[name]), dtype=np.bool_) for name in names}
    for name in names:
        result[name][live[name][chosen[name]]] = True
    return result


def _exchanged(
    ranked: Mapping[str, FloatArray],
    chosen: Mapping[str, BoolArray],
    goal: Goal,
    rules: Limits,
    least: Sequence[int],
) -> dict[str, BoolArray]:
    """Some channels in place of others, where that uses more of the goal."""
    orders = {name: np.argsort(-values, kind="stable") for name, values in ranked.items()}
    steps = np.array([rules.steps.get(name, 1) for name in orders], dtype=np.int64)
    blocks = stack([ranked[name][order] for name, order in orders.items()], np.array(least), Constraints(), steps)
    widths = exchanged(blocks, Bounds(goal.costs, goal.limits), _counts(chosen), rules.close)
    kept = {name: np.zeros(len(order), dtype=np.bool_) for name, order in orders.items()}
    for (name, order), width in zip(orders.items(), widths.tolist(), strict=True):
        kept[name][order[:width]] = True
    return kept


def _counts(kept: Mapping[str, BoolArray]) -> IntArray:
    return np.array([np.count_nonzero(mask) for mask in kept.values()], dtype=np.int64)


def _chosen(
    names: Sequence[str],
    ranked: Mapping[str, FloatArray],
    goal: Goal,
    rules: Limits,
    least: Sequence[int],
    allocator: str,
) -> dict[str, BoolArray]:
    """Which of the channels that are left stay; the least of all where even that is too much."""
    if goal.met(np.array(least)):
        left = _Left([_Width(name, len(ranked[name])) for name in names], goal.costs)
        keys = {cost: key for key, cost in KEYS.items()}
        bounds = tuple((keys[cost], limit) for cost, limit in goal.limits.items())
        budget = Budget(bounds, Target("any") if "latency" in goal.limits else None)
        constraints = _Least(least=tuple(least), between=tuple(rules.steps.get(name, 1) for name in names))
        return allocate(ranked, left, budget, constraints, allocator=allocator, normalise="none").masks
    kept = {name: np.zeros(len(ranked[name]), dtype=np.bool_) for name in names}
    for name, width in zip(names, least, strict=True):
        kept[name][np.argsort(-ranked[name], kind="stable")[:width]] = True
    return kept
