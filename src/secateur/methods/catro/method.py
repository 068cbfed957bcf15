"""Channel pruning by class-aware trace ratio optimisation: CATRO.

Hu, Che, Liu, Li, Tang, Zhang, Wang: CATRO: Channel Pruning via Class-Aware Trace Ratio Optimization, IEEE TNNLS 2023
(arXiv:2110.10921). From a few labelled samples, with f the (pooled) feature map of a channel and mu its means,

    b_c = sum_k n_k |mu_kc - mu_c|^2      w_c = sum_n |f_nc - mu_{y_n c}|^2      (scatter between and within classes)
    J(I) = sum_{c in I} b_c / sum_{c in I} w_c                                       (trace ratio of a set of channels)

say how well a set of channels tells the classes apart. In two stages, the widths of all layers under the budget come
first, by greedily maximising a submodular function, and then the set of each layer of its width with the largest J:

    lam <- J(I),  I <- the k channels with the largest b_c - lam w_c,  until lam grows no more.       (global optimum)

With `classes` only samples of these count: a network for a part of its task.

Only title, abstract and index terms were read. Trace ratio, submodularity, two greedy stages, few samples and subtasks
are stated there; the iteration is the published theory of trace-ratio feature selection (Nie et al., AAAI 2008). The
features, the utility of the first stage (see `submodular.py`) and all defaults are a reconstruction,
unverified.

Where this differs from the reconstruction, and why:
    Residual streams stay whole unless the budget is out of reach, which is the safest reading of the abstract. With
        `streams` they are looked
        at wherever they are read, so that one tensor counts once, and shares of the whole scatter are added, as advised
        for members of different sizes. The utility counts a channel of a stream as it counts one of a block, though a
        stream's costs many times as much and is read by all that follow, so that almost only streams went.
    Features of later layers are taken anew `refresh` times on the way through the network (`null`: for every group),
        as a pass for each group costs more than the training of some networks.
    Classes with a single sample are left out: nothing scatters within them. Where some have fewer samples than others,
        their sums are scaled up to as many, so that each class counts alike.
    To use up the budget the utility may fall by up to 1%; the plan reports what is unused even so.
    The rows of classes that are left out stay in the classifier: a network keeps its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from secateur._hints import few
from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.allocate.blocks import Bounds, stack
from secateur.errors import ConfigError, ModelError
from secateur.graph.readers import observed
from secateur.methods.catro.class_scatter import ClassScatter, Sample
from secateur.methods.catro.submodular import greedy, shares
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.kit.floors import keep_streams, leave
from secateur.methods.kit.shares import unspent
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.statistics.gather import gather, replayable


class CATROSettings(Settings):
    """The paper's values are not known: defaults are the reconstruction's."""

    samples: int = Field(
        50,
        ge=2,
        description="of every class that are looked at, at most; 50 as for ten classes, 20 are advised for many",
    )
    pool: int = Field(4, ge=1, le=64, description="side that feature maps are averaged to; 1: their means")
    eps: float = Field(1e-8, ge=0, lt=1, description="channels with less of their group's median scatter are dead")
    r_min: float = Field(0.1, ge=0, le=1, description="share of every group that stays")
    beta: float = Field(50.0, gt=0, description="how soon more channels of a group gain less")
    refresh: int | None = Field(
        4,
        ge=1,
        description="parts of the network whose features are taken behind the pruned parts before; null: groups",
    )
    streams: bool = Field(False, description="prune residual streams too; else only if the budget is out of reach")
    sweeps: int = Field(1, ge=1, le=5, description="how often the sets of all groups are chosen, one after the other")
    classes: list[int] | None = Field(None, description="whose samples count, to prune for these alone; null: all")

    @model_validator(mode="after")
    def _two_classes(self) -> CATROSettings:
        if self.classes is not None and len(set(self.classes)) < max(len(self.classes), 2):
            raise ValueError("classes must name two different classes or more, each once")
        return self


@dataclass(frozen=True)
class Best:
    """The set of k channels with the largest trace ratio: indices, scores b - lam w, and lam of every round."""

    chosen: IntArray
    scores: FloatArray
    ratios: tuple[float, ...]


def trace_ratio(between: FloatArray, within: FloatArray, k: int) -> Best:
    """The k channels of scatter b, w [channels] whose J is largest, by the iteration of the module's docstring."""
    # without any scatter within its class a channel would make J infinite
    within = np.maximum(within, 1e-12 * float((between + within).max(initial=0.0)))
    following = np.argsort(-between, kind="stable")[:k]
    ratios = [_ratio(between, within, following)]
    while True:
        scores = between - ratios[-1] * within
        following = np.argsort(-scores, kind="stable")[:k]
        found = _ratio(between, within, following)
        if not found > ratios[-1] * (1 + 1e-9):
            return Best(np.sort(following), scores, tuple(ratios))
        ratios.append(found)


def _ratio(between: FloatArray, within: FloatArray, chosen: IntArray) -> float:
    """J of a set, which is 0 where nothing scatters."""
    w = float(within[chosen].sum())
    return float(between[chosen].sum()) / w if w > 0 else 0.0


def ranked_by_ratio(between: FloatArray, within: FloatArray, k: int, eps: float) -> tuple[FloatArray, float]:
    """Scores of a group's channels whose k best are the set with the largest J, and that J.

    Dead channels (b = w = 0 up to eps) come last: b - lam w = 0 would beat every live channel that is worse than lam.
    """
    live = scatters(between, within, eps)
    best = trace_ratio(between[live], within[live], min(k, int(live.sum())))
    scores = np.full(len(live), float(best.scores.min()) - max(float(np.ptp(best.scores)), 1.0))
    scores[live] = best.scores
    return scores, best.ratios[-1]


def scatters(between: FloatArray, within: FloatArray, eps: float) -> BoolArray:
    """Which channels scatter at all; every one where none does."""
    total = between + within
    live = (total > 0) & (total >= eps * float(np.median(total)))
    return live if live.any() else ~live


def fisher(between: FloatArray, within: FloatArray, eps: float) -> FloatArray:
    """b / w of every channel; 0 where it is dead."""
    floor = max(eps * float(np.median(between + within)), np.finfo(np.float64).tiny)
    return np.where(scatters(between, within, eps), between / np.maximum(within, floor), 0.0)


class CATRO(Method):
    """Keep in every layer the set of channels that tells the classes apart best."""

    name = "catro"
    Config = CATROSettings
    settings: CATROSettings
    comparable = "none"

    def prepare(self) -> None:
        """See where channels can be looked at; the rest stays whole."""
        self._tables, others = observed(self.graph)
        if others:
            self.notes.append(
                f"Groups that are read by more than convolutions and linear layers stay whole: {few(others)}."
            )
            self.constraints = self.constraints.keeping(others)
        if self.allocator == "global" and self.normalise != "none":
            self.notes.append(
                f"CATRO finds widths by a utility of its own, so normalise={self.normalise!r} was not applied: "
                "it takes another allocator."
            )
        if not (self.constraints.floors(self.graph) < self.graph.widths()).any():
            raise ModelError(
                f"Nothing in {type(self.model).__name__} can be told apart by classes: every group must stay whole, or "
                "is read by more than convolutions and linear layers; choose another method."
            )
        leave(self, self.settings.r_min, "r_min")
        if not self.settings.streams:
            keep_streams(self)
        self._masks: dict[str, BoolArray] = {}

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Take scatter from labelled samples and choose widths and sets; the loss is not looked at."""
        shown = replayable(batches)
        sample = Sample.of(shown, self.settings.samples, self.settings.classes)
        if sample.skipped:
            self.notes.append(f"{len(sample.skipped)} classes with a single sample were left out.")
        fewest, most = min(sample.counts.values()), max(sample.counts.values())
        if fewest < most:
            self.notes.append(f"Classes were seen in {fewest} to {most} samples; each counts alike.")
        self._sample = sample
        self._first_pass(shown)
        widths = self._widths()
        self._choose(shown, widths)

    def _first_pass(self, batches: Iterable[tuple[Any, Any]]) -> None:
        every = np.ones(int(self.graph.widths().sum()), dtype=np.bool_)
        self._scatter = self._look(batches, every, every)

    def _look(
        self, batches: Iterable[tuple[Any, Any]], wanted: BoolArray, kept: BoolArray
    ) -> list[tuple[FloatArray, FloatArray]]:
        """b and w of every group, where only these channels are read."""
        widths = self.graph.widths().tolist()
        collector = ClassScatter(
            self._tables, self._sample.counts.values(), widths, pool=self.settings.pool, wanted=wanted, kept=kept
        )
        gather(self.model, self._sample.few(batches), [collector])
        coarse = f"Maps were averaged to a side of {collector.pool}: sums over classes would take too much memory."
        if collector.pool < self.settings.pool and coarse not in self.notes:
            self.notes.append(coarse)
        ends = np.cumsum(widths)[:-1]
        return list(zip(*(np.split(part, ends) for part in collector.result), strict=True))

    # ------------------------------------------------------------------------------------------------- two stages

    def _widths(self) -> IntArray:
        """Stage 1: how many channels of each group stay."""
        groups = self.graph.groups
        scores = [shares(fisher(b, w, self.settings.eps)) for b, w in self._scatter]
        if self.allocator != "global":
            named = {group.name: score for group, score in zip(groups, scores, strict=True)}
            return self.graph.widths(self._allocate(named))
        ranked = [np.sort(score)[::-1] for score in scores]
        floors, steps = self.constraints.grid(self.graph)
        blocks = stack(ranked, floors, self.constraints, steps)
        return greedy(
            blocks, Bounds(self.graph.costs, self.budget.limits(self.graph.cost())), ranked, self.settings.beta
        )

    def _choose(self, batches: Iterable[tuple[Any, Any]], widths: IntArray) -> None:
        """Stage 2: which; from front to back, with what was chosen before shut."""
        groups, s = self.graph.groups, self.settings
        masks = [np.ones(group.width, dtype=np.bool_) for group in groups]
        scores: list[FloatArray] = [np.zeros(0)] * len(groups)
        self.ratios: dict[str, float] = {}
        parts = np.array_split(np.arange(len(groups)), min(s.refresh or len(groups), len(groups)))
        for number, part in enumerate(parts * s.sweeps):
            scatter = self._scatter
            if number and (widths[part] < self.graph.widths()[part]).any():
                own = [np.full(group.width, k in part) for k, group in enumerate(groups)]
                wanted = np.concatenate(own)
                scatter = self._look(batches, wanted, wanted | np.concatenate(masks))
            for k in part.tolist():
                b, w = scatter[k]
                scores[k], self.ratios[groups[k].name] = ranked_by_ratio(b, w, int(widths[k]), s.eps)
                masks[k] = np.zeros(groups[k].width, dtype=np.bool_)
                masks[k][np.argsort(-scores[k], kind="stable")[: widths[k]]] = True
        self._masks = {group.name: mask for group, mask in zip(groups, masks, strict=True)}
        self._scores = {group.name: score for group, score in zip(groups, scores, strict=True)}

    # ------------------------------------------------------------------------------------------------ the result

    def score(self) -> dict[str, FloatArray]:
        """b - lam w of every channel, at the lam of its group's set; comparable within a group only."""
        self._require_data()
        return {name: score.copy() for name, score in self._scores.items()}

    def plan(self) -> Plan:
        """The sets of the widths that were found."""
        self._require_data()
        provenance = {"criterion": self.name, "allocator": self.allocator, "budget": self.budget.as_dict()}
        seen = {"samples": sum(self._sample.counts.values()), "classes": len(self._sample.counts)}
        plan = Plan({name: mask.copy() for name, mask in self._masks.items()}, provenance | seen)
        if self.allocator == "global":
            why = "no exchange of channels uses more for less than a hundredth of the utility"
            plan.provenance |= unspent(self.graph, self.budget, plan.widths, why)
        plan.provenance["trace_ratios"] = dict(self.ratios)
        return plan

    def _require_data(self) -> None:
        if not self._masks:
            raise ConfigError(
                "The method 'catro' has seen no data: call collect(batches, loss) with labelled samples "
                "before finish()."
            )


ROW = MethodRow(
    name="catro",
    summary="sets of channels that separate the classes best, widths by a submodular function",
    paper="CATRO: Channel Pruning via Class-Aware Trace Ratio Optimization",
    year=2023,
    arxiv="2110.10921",
    needs="calibration",
    labels=True,
    acts="after training",
    asks="classes",
    granularity="channel",
    fidelity="written from title, abstract and index terms alone: trace ratio, submodularity, two greedy stages and "
    "few samples are stated there; the iteration is the published theory of trace-ratio selection; features, the "
    "submodular function, the split into stages and all constants are a reconstruction, unverified",
    factory=CATRO,
    settings=CATROSettings,
    variants=({"streams": True, "sweeps": 2, "refresh": None}, {"classes": [0, 1], "pool": 1}),
)
