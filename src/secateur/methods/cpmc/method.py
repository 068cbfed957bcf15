"""Channel pruning via multi-criteria based on weight dependency: CPMC.

Yan, Guo, Li, Yang, Xu: Channel Pruning via Multi-Criteria based on Weight Dependency, 2020 (arXiv:2011.03240). With a
channel u goes everything in D(u): the filters that make it and the slice of every kernel that reads it. From the
trained weights alone

    V_u = sum of |w| over the conv and linear weights in D(u)                                        (weight value)
    C_u, P_u = multiply-accumulates and parameters that the network loses with u        (cost, parameter quantity)
    N(x)_u = (x_u - min x) / (max x - min x), over all units of the network                (global normalisation)
    I_u = N(V)_u - alpha N(C)_u - beta N(P)_u                                                        (importance)

and all units of the network are ranked together; the lowest go until the budget is met.

What is stated and what is not: only title, abstract and index terms were read. That both pieces of D(u) count, the
three criteria, the global normalisation and the global ranking are stated there. The exact combination and
normalisation formulas are not known; those above are a reconstruction, unverified, and so are L1, V divided by its
set's mean first (`v_mode: set_mean`; the literal `sum` empties narrow layers), the signs and weights of the cost terms,
full sums over coupled channels, the floor `r_min`. The alternatives are settings.

The paper's weights alpha and beta are unknown. Ours, 0.02 each, and the normalisation by (x - min) / (max - min), which
gives V, C and P the same range, were chosen on held-out training images (`benchmarks/method_defaults.py`; the page of
the method has its figures). Accuracies of 0 to 0.1 are within chance there; what decides is that at 0.1 the spread of
N(V) in the first layer, a quarter of its cost term, has no say: it keeps 6 of 16 channels where all others keep nine in
ten.

Where this differs from the reconstruction, and why:
    C and P are differences of the exact cost model, equal to the formulas in plain networks: a weight that both makes
        and reads a channel (a residual branch of one layer) counts once, in V as well.
    The budget is used up: what the last removal saves too much goes back to the best channels that fit, and a channel
        too costly to hit the budget within 1% stays for the next in the ranking. `fill: false` stops at the first
        removal that meets the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from secateur._hints import few
from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur._settings import validated
from secateur.allocate import Constraints, allocate
from secateur.allocate.blocks import Bounds, longest, stack
from secateur.allocate.ties import undecided
from secateur.errors import BudgetError, ConfigError
from secateur.graph import Graph
from secateur.methods.contract import Method, Settings
from secateur.methods.kit.aim import CLOSE, Aim, counts
from secateur.methods.kit.dependency import savings, summed, weight_values
from secateur.methods.kit.scores import Scores
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.surgery import Result


class CPMCSettings(Settings):
    """The paper's values are not known: defaults are the reconstruction's, and each alternative is one it names."""

    alpha: float = Field(0.02, ge=0, le=10, description="weight of the computational cost")
    beta: float = Field(0.02, ge=0, le=10, description="weight of the number of parameters")
    v_mode: Literal["sum", "set_mean"] = Field(
        "set_mean", description="weight value as summed, or divided by its mean over the channels coupled side by side"
    )
    norm: Literal["l1", "l2"] = Field("l1", description="of the weights that go with a channel")
    normaliser: Literal["max", "min-max"] | None = Field(
        None, description="how each criterion is normalised globally; null: min-max, and none is needed in a ratio"
    )
    combine: Literal["difference", "complement", "ratio"] = Field(
        "difference", description="V - alpha C - beta P, V + alpha (1 - C) + beta (1 - P), or V / (C^alpha P^beta)"
    )
    units: Literal["all", "inside"] = Field(
        "all", description="inside: channels that several layers make together (residual streams) stay whole"
    )
    recompute: int = Field(
        0, ge=0, description="removals after which cost and parameters are taken anew (1: greedy); 0: never, one shot"
    )
    r_min: float = Field(0.1, ge=0, le=1, description="share of every group that stays")
    fill: bool = Field(
        True, description="use up the budget; false: stop at the first removal that meets it: plans are then nested"
    )

    @model_validator(mode="after")
    def _no_idle_setting(self) -> CPMCSettings:
        if self.combine == "ratio" and self.normaliser == "min-max":
            raise ValueError("in a ratio the normalisation cancels: leave normaliser out with combine=ratio")
        return self


def cpmc(graph: Graph, *, constraints: Constraints | None = None, **settings: Any) -> Scores:
    """I_u of every channel; `secateur.prune(..., method=cpmc, normalise="none")` ranks by it.

    constraints: what no plan may do, which matters with `recompute` alone.
    """
    s = validated(CPMCSettings, settings, "cpmc")
    value = weight_values(graph, s.norm)
    if s.v_mode == "set_mean":
        value = [_over(v, float(v.mean())) for v in value]
    flat = np.concatenate(value)
    if s.recompute:
        scores = _recomputed(graph, flat, (constraints or Constraints()).floors(graph), s)
    else:
        number = np.repeat(np.arange(len(graph.groups)), graph.widths())
        cost, params = savings(graph, graph.widths())
        scores = importance(flat, cost[number], params[number], s)
    parts = np.split(scores, np.cumsum(graph.widths())[:-1])
    names = [group.name for group in graph.groups]
    return Scores(dict(zip(names, parts, strict=True)), {"criterion": "cpmc"} | s.model_dump(mode="json"))


def importance(value: FloatArray, cost: FloatArray, params: FloatArray, s: CPMCSettings) -> FloatArray:
    """I_u of all units; V, C and P are normalised over all of them, for per layer C and P would be constant."""
    if s.combine == "ratio":  # divided by the maxima to stay finite; a unit that costs nothing counts as one scalar
        v, c, p = (_over(x, float(x.max(initial=0.0))) for x in (value, np.maximum(cost, 1), np.maximum(params, 1)))
        return np.asarray(v / (c**s.alpha * p**s.beta))
    v, c, p = (_normalised(x, s.normaliser or "min-max") for x in (value, cost, params))
    if s.combine == "complement":
        return np.asarray(v + s.alpha * (1 - c) + s.beta * (1 - p))
    return np.asarray(v - s.alpha * c - s.beta * p)


def _recomputed(graph: Graph, value: FloatArray, floors: IntArray, s: CPMCSettings) -> FloatArray:
    """The moment of each unit's removal, from 0 to 1, where C and P are those of the network as it then is."""
    widths = graph.widths()
    number = np.repeat(np.arange(len(widths)), widths)
    order = np.lexsort((value, number))  # by group, lowest value first: the last ones of a group are its floor
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - np.repeat(np.cumsum(widths) - widths, widths)
    free = place < (widths - floors)[number]
    moment, left, removed = np.full(len(value), float(free.sum())), np.ones(len(value), dtype=np.bool_), 0
    while removed < free.sum():
        units, (cost, params) = np.flatnonzero(left), savings(graph, widths)
        found = importance(value[units], cost[number[units]], params[number[units]], s)
        found[~free[units]] = np.inf
        lowest = units[np.argsort(found, kind="stable")[: s.recompute]]
        lowest = lowest[free[lowest]]
        moment[lowest] = removed + np.arange(len(lowest))
        left[lowest] = False
        removed += len(lowest)
        widths = widths - np.bincount(number[lowest], minlength=len(widths))
    return np.asarray(moment / max(removed, 1))


def _over(values: FloatArray, denominator: float) -> FloatArray:
    return values / denominator if denominator > 0 else np.zeros_like(values)


def _normalised(values: FloatArray, normaliser: str) -> FloatArray:
    if normaliser == "min-max":
        values = values - values.min(initial=np.inf)
    return _over(values, float(values.max(initial=0.0)))


class CPMC(Method):
    """Score the trained network by weight dependency, cost and parameters, once; the cut follows."""

    name = "cpmc"
    Config = CPMCSettings
    settings: CPMCSettings
    comparable = "none"

    def prepare(self) -> None:
        """Settle what stays whatever its score, and say which options have no use here."""
        if self.normalise != "none":
            self.notes.append(
                f"CPMC normalises over the whole network, so normalise={self.normalise!r} was not applied: "
                "within a group it would undo the cost terms."
            )
        if not self.settings.fill and self.allocator != "global":
            raise ConfigError(f"fill=false needs allocator='global', not {self.allocator!r}: leave one of them out.")
        if self.settings.units == "inside":
            self._keep_streams()
        ratio = 1.0 - self.settings.r_min
        if ratio < self.constraints.max_ratio:
            self.constraints = replace(self.constraints, max_ratio=ratio)
            try:
                self._allocate({group.name: np.ones(group.width) for group in self.graph.groups})
            except BudgetError as error:
                raise BudgetError(f"With r_min={self.settings.r_min:g}, t{str(error).removeprefix('T')}") from None

    def _keep_streams(self) -> None:
        weights = summed(self.graph)
        made = {g.name: sum(m.role == "producer" and m.name in weights for m in g.members) for g in self.graph.groups}
        streams = [name for name, layers in made.items() if layers > 1]
        if streams:
            self.notes.append(f"Channels that several layers make together stay whole: {few(streams, 6)}.")
            self.constraints = self.constraints.keeping(streams)

    def score(self) -> Scores:
        """I_u of every channel of the model as it stands."""
        return cpmc(self.graph, constraints=self.constraints, **self.settings.model_dump())

    def plan(self) -> Plan:
        """The best channels within the budget, ranked over the whole network."""
        scores = self.score()
        masks = self._filled(scores) if self.settings.fill else self._first_within(scores)
        provenance = {**scores.provenance, "allocator": self.allocator, "normalise": "none"}
        provenance["budget"] = self.budget.as_dict()
        if said := undecided(scores, masks):
            provenance["undecided"] = said
        return Plan(masks, provenance)

    def _filled(self, scores: Scores) -> dict[str, BoolArray]:
        """Use up the budget: a channel too costly to hit it within 1% stays, and the next in the ranking goes."""
        aim, held = Aim(self.graph, self.budget), Scores(scores, scores.provenance)
        lift = 1.0 + float(np.ptp(np.concatenate(list(scores.values()))))
        plans: list[tuple[float, Plan]] = []
        for _ in range(2 * len(scores)):
            plan = allocate(held, self.graph, self.budget, self.constraints, allocator=self.allocator, normalise="none")
            plans.append((aim.used(counts(plan.masks)), plan))
            gone = {name: float(held[name][~mask].max()) for name, mask in plan.masks.items() if not mask.all()}
            if plans[-1][0] >= CLOSE or self.allocator != "global" or not gone:
                break
            name = max(gone, key=lambda name: gone[name])  # the last removal: it would not fit any more
            if gone[name] > scores[name].max():
                break  # held before, and does not fit even so
            held[name] = np.where(scores[name] >= gone[name], scores[name] + lift, scores[name])
        return max(plans, key=lambda pair: pair[0])[1].masks

    def _first_within(self, scores: Mapping[str, FloatArray]) -> dict[str, BoolArray]:
        """Remove from the bottom of the ranking until the budget is met, and no more."""
        ranks = {name: np.argsort(-score, kind="stable") for name, score in scores.items()}
        ranked = [scores[name][rank] for name, rank in ranks.items()]
        floors, steps = self.constraints.grid(self.graph)
        blocks = stack(ranked, floors, self.constraints, steps)
        bounds = Bounds(self.graph.costs, self.budget.limits(self.graph.cost()))
        widths = longest(blocks, np.argsort(-blocks.score, kind="stable"), blocks.floors, bounds)
        masks = {name: np.zeros(len(rank), dtype=np.bool_) for name, rank in ranks.items()}
        for (name, rank), width in zip(ranks.items(), widths.tolist(), strict=True):
            masks[name][rank[:width]] = True
        return masks

    def check(self, result: Result) -> None:
        """Say which groups only the floor holds up, and which are far narrower than the rest.

        Too strong a cost term empties early layers, whose channels cost most.
        """
        widths, every = result.plan.widths, self.graph.groups
        overall = sum(widths.values()) / sum(group.width for group in every)
        least = zip(every, self.constraints.floors(self.graph).tolist(), strict=True)
        low = [group.name for group, floor in least if widths[group.name] == floor < group.width]
        thin = [g.name for g in every if widths[g.name] < overall / 2 * g.width and g.name not in low]
        said = [f"At the narrowest they may be, of {len(every)} groups: {few(low, 6)}."] if low else []
        if thin:
            said.append(f"Kept at less than half the share of all channels ({overall:.0%}): {few(thin, 6)}.")
        self._note(said)


ROW = MethodRow(
    name="cpmc",
    summary="the weights that go with a channel, less its cost in operations and parameters",
    paper="Channel Pruning via Multi-Criteria based on Weight Dependency",
    year=2020,
    arxiv="2011.03240",
    needs="nothing",
    acts="after training",
    granularity="channel",
    fidelity="written from title, abstract and index terms alone: the order of the steps is stated there; the "
    "formulas for combining and normalising are not known and are a reconstruction, unverified (L1, V divided by its "
    "set's mean, minimum and maximum over the network, cost terms subtracted at 0.02 each, full sums over coupled "
    "channels, one-shot)",
    factory=CPMC,
    settings=CPMCSettings,
    variants=({"units": "inside", "combine": "ratio"},),
)
