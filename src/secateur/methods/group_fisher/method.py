"""Group Fisher pruning: one channel after the other goes while the network is trained.

Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang: Group Fisher Pruning for Practical Network Compression,
ICML 2021 (arXiv:2108.00708). A trained network goes on training at a small learning rate. Channel i of the group X has
one mask m_i, in front of all layers x in X that read it, with inputs A and gradients G = dL_n/d(A m):

    r_x[n, i] = Σ_hw A[n, i] G[n, i]            dL_n/dm_i = Σ_x r_x[n, i]         (one mask: sum, and only then square)
    s_i = Σ_n (Σ_x r_x[n, i])²                  the empirical Fisher information: what zeroing m_i adds to the loss
    importance = s_i / ΔM                       ΔM: elements of convolutions' outputs that go with the channel

s is summed over an interval of iterations; then the least important channel of the whole network goes, all sums begin
anew, and so on until the budget is met.

Where this differs from the paper, and why:
    Groups are the graph's: all coupled channels, concatenations and flattenings included, where the paper
        makes them by one greedy pass. A grouped convolution loses the same places in each of its groups and the number
        of groups stays, where the paper removes whole groups. Depthwise convolutions are readers, as in the paper.
    `normaliser: flops` divides by what the network loses with the channel by the exact cost model, at the widths of
        the moment; in plain networks that is the paper's ΔC.
    The paper takes one channel every 25 iterations for as long as it takes. Here the budget is met by `end` of the
        training: an event takes one channel, or as many as leave the cost where a straight line from the whole network
        to the budget has it. Training too short for 20 events in that time has shorter intervals.
    The paper's code prunes at a small constant learning rate, 0.004 where the base network began with 0.1, for about a
        quarter of all epochs, and then trains on with the whole schedule: a comparison does so; a run does what its
        `train` says.
    The last event uses at least 99% of the budget where channels are small enough, by sparing a group.
    Channels that are read by anything but convolutions and linear layers stay whole, and a group for which no gradient
        came at all is not touched (as in the authors' code) unless the budget cannot be met otherwise.
    `collect` scores on calibration images in evaluation mode and `finish` then prunes at once: an extra of ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from secateur._distributed import global_sum
from secateur._hints import few
from secateur._protocols import BoolArray, FloatArray
from secateur.errors import ConfigError, ModelError
from secateur.graph import Graph
from secateur.graph.modules import output_tensors
from secateur.graph.readers import readers
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.group_fisher.gate_gradients import Fisher, Shared, filters
from secateur.methods.kit.aim import CLOSE, Aim
from secateur.methods.kit.dependency import savings
from secateur.methods.kit.ranking import Goal, Limits, lower
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.statistics.gather import gather

Masks = dict[str, BoolArray]

#: Events there are at least, where the training has as many steps.
EVENTS = 20
#: Parts in which one event goes down where what a channel costs depends on the widths.
_PARTS = 32


class GroupFisherSettings(Settings):
    """The paper's values for classification; `start` and `end` are ours."""

    normaliser: Literal["memory", "flops", "none"] = Field(
        "memory", description="what a score is divided by: output elements, multiply-accumulates, or nothing"
    )
    interval: int = Field(25, ge=1, description="iterations between two events, fewer in a short training")
    start: float = Field(0.0, ge=0, lt=1, description="share of training before the first interval begins")
    end: float = Field(0.75, gt=0, le=1, description="share of training by which the budget is met")

    @model_validator(mode="after")
    def _in_order(self) -> GroupFisherSettings:
        if self.start >= self.end:
            raise ValueError(f"start is {self.start} and end is {self.end}: let pruning end after it begins")
        return self


class GroupFisher(Method):
    """Prune while training, by the Fisher information of masks that coupled layers share."""

    name = "group_fisher"
    Config = GroupFisherSettings
    settings: GroupFisherSettings
    comparable = "none"
    sums: torch.Tensor  # s since the last event
    last: torch.Tensor  # s at the last event

    def prepare(self) -> None:
        """See which channels have readers; the model itself gets nothing inserted."""
        tables, others = readers(self.graph)
        if others:
            self.notes.append(
                f"Groups that are read by more than convolutions and linear layers stay whole: {few(others)}."
            )
            self.constraints = self.constraints.keeping(others)
        groups = self.graph.groups
        self._floors = dict(zip((g.name for g in groups), self.constraints.floors(self.graph).tolist(), strict=True))
        if all(self._floors[group.name] == group.width for group in groups):
            raise ModelError(
                f"Nothing in {type(self.model).__name__} can go: every group must stay whole, or is read by more than "
                "convolutions and linear layers; choose another method."
            )
        if self.normalise != "none":
            self.notes.append(f"Group Fisher ranks by one unit, so normalise={self.normalise!r} was not applied.")
        self._tables = tables | filters(self.graph)
        self._ends = np.cumsum([group.width for group in groups])
        self.shared = Shared(self._tables, int(self._ends[-1]))
        self._memory = memory(self.graph)
        for name in ("sums", "last"):
            self.register_buffer(name, torch.zeros(self.shared.channels, device=self.device))
        self._pending: torch.Tensor | None = None  # of this step's micro-batches
        self._rows = 0
        self._goal = Goal.of(self.graph.costs, Aim(self.graph, self.budget))
        s = self.settings
        self.interval = max(1, min(s.interval, int((s.end - s.start) * self.steps) // EVENTS))
        self._set({group.name: np.ones(group.width, dtype=np.bool_) for group in groups})

    def _set(self, masks: Masks) -> None:
        """Let the masks be these."""
        self.masks = masks
        alive = np.concatenate([masks[group.name] for group in self.graph.groups])
        self._alive = None if alive.all() else torch.from_numpy(alive)
        self.over = self._goal.met(self._widths(masks))  # nothing is left to be removed

    # ------------------------------------------------------------------------------------------------- training

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output with its masks; in training what the backward pass needs is noted."""
        watching = self.training and torch.is_grad_enabled() and not self.over and self.progress >= self.settings.start
        self._rows = len(output_tensors((args, keywords))[0])
        with self._masked(self._alive, watching=watching):
            return self.model(*args, **keywords)

    def _masked(self, alive: torch.Tensor | None, *, watching: bool = False) -> AbstractContextManager[None]:
        return self.shared.on(self.model, None if alive is None else alive.to(self.device), watching=watching)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Square each sample's gradient; times the samples, for the loss is their mean, and without its scale."""
        found = self.shared.take(self._rows)
        if found is None:
            return
        squares = (found * (self._rows / self.loss_scale)).square().sum(0)
        if bool(torch.isfinite(squares).all()):  # not where a scaled loss overflowed
            self._pending = squares if self._pending is None else self._pending + squares

    @torch.no_grad()
    def after_step(self) -> None:
        """Add up, and prune where an interval is over."""
        super().after_step()
        pending, self._pending = self._pending, None
        if self.over:
            return
        if self.progress > self.settings.start:
            self.sums += global_sum(torch.zeros_like(self.sums) if pending is None else pending)
        begun = self.step - math.ceil(self.settings.start * self.steps - 1e-9)
        if begun > 0 and (begun % self.interval == 0 or self._late):
            self._event()

    @property
    def _late(self) -> bool:
        return self.progress >= self.settings.end - 1e-9

    def _event(self) -> None:
        """One channel goes, or as many as it takes to be where the schedule has the cost; then all sums begin anew."""
        if not bool((self.sums > 0).any()):
            return
        s = self.settings
        self.last.copy_(self.sums)
        self.sums.zero_()
        left = int(self._widths(self.masks).sum())
        masks = self._lowered(self.masks, [Goal.channels(self.shared.channels, left - 1)])
        share = min(max((self.progress - s.start) / (s.end - s.start), 0.0), 1.0)
        if not self._goal.at(share).met(self._widths(masks)):
            masks = self._down(self.masks, share)
        if self._late or self._goal.met(self._widths(masks)):  # the last event: no more than has to goes
            masks = self._down(self.masks, 1.0)
        self._set(masks)

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """The same sums over all samples of `batches`, for pruning at once."""
        fisher = Fisher(self._tables, self.shared.channels, self.device)
        with self._masked(self._alive):
            gather(self.model, batches, [fisher], loss)
        scale = float(fisher.squares.max())  # only ratios matter, and these fit into single precision
        self.sums.copy_(fisher.squares / scale if scale > 0 else fisher.squares)

    # -------------------------------------------------------------------------------------------------- choosing

    def score(self) -> dict[str, FloatArray]:
        """s / Δ of every channel at the widths of the moment; removed ones come last."""
        found = self._importance(self.masks)
        return {name: np.where(mask, found[name], -1.0) for name, mask in self.masks.items()}

    def _importance(self, masks: Masks) -> dict[str, FloatArray]:
        """s / Δ; Δ in units of its largest value, so that no number gets too small."""
        sums = self.sums if bool((self.sums > 0).any()) else self.last
        values = sums.double().cpu().numpy() if sums.device.type != "mps" else sums.cpu().double().numpy()
        if not (values > 0).any():
            raise ConfigError(
                "The method 'group_fisher' has seen no gradients: train with it at work, or call collect(batches, "
                "loss) before finish()."
            )
        delta = {"memory": self._memory, "none": np.ones_like(self._memory)}.get(self.settings.normaliser)
        if delta is None:
            delta = savings(self.graph, self._widths(masks))[0]
        delta = np.maximum(delta, 1.0) / max(float(delta.max()), 1.0)
        parts = np.split(values, self._ends[:-1])
        return {group.name: part / d for group, part, d in zip(self.graph.groups, parts, delta, strict=True)}

    def _down(self, masks: Masks, share: float) -> Masks:
        """This share of the way from the whole network down to the budget."""
        goal = self._goal.at(share)
        now = goal.costs.evaluate(self._widths(masks))
        excess = {key: max(float(now[key]) - limit, 0.0) for key, limit in goal.limits.items()}
        stages = [masks]
        parts = _PARTS if self.settings.normaliser == "flops" else 1  # what a channel costs is taken anew in each
        for part in range(1, parts):
            limits = {key: limit + excess[key] * (1 - part / parts) for key, limit in goal.limits.items()}
            stages.append(self._lowered(stages[-1], [Goal(goal.costs, goal.full, limits)]))
        if share < 1.0:
            return self._lowered(stages[-1], [goal])
        found: list[Masks] = []
        for stage in reversed(stages):  # where a part has gone too far already, from the one before
            found.append(self._closely(stage, goal))
            if goal.used(self._widths(found[-1])) >= CLOSE:
                break
        return max(found, key=lambda masks: min(goal.used(self._widths(masks)), CLOSE))

    def _closely(self, masks: Masks, goal: Goal) -> Masks:
        """As `_lowered`; while the budget is not used up, the group that lost the most important channel is spared."""
        floors, plans = dict(self._floors), list[Masks]()
        while len(plans) <= len(floors):
            found = self._lowered(masks, [goal], CLOSE, floors)
            if plans and not goal.met(self._widths(found)):
                break
            plans.append(found)
            scores = self._importance(masks)
            gone = {name: scores[name][mask & ~found[name]] for name, mask in masks.items()}
            lost = {name: float(values.max()) for name, values in gone.items() if len(values)}
            if goal.used(self._widths(found)) >= CLOSE or not lost:
                break
            name = max(lost, key=lambda name: lost[name])
            floors[name] = int(masks[name].sum())
        return max(plans, key=lambda masks: min(goal.used(self._widths(masks)), CLOSE))

    def _lowered(
        self, masks: Masks, goals: list[Goal], close: float = 0.0, floors: Mapping[str, int] | None = None
    ) -> Masks:
        """The least important channels go until the goals are met."""
        scores = self._importance(masks)
        silent = {name: masks[name] for name, values in scores.items() if not (values > 0).any()}
        limits = Limits(floors or self._floors, 1.0, silent, self.constraints.steps(self.graph), close)
        found = lower(self.graph, masks, scores, goals, limits, self.allocator)
        if silent and not all(goal.met(self._widths(found)) for goal in goals):
            found = lower(self.graph, masks, scores, goals, replace(limits, held={}), self.allocator)
        return found

    def _widths(self, masks: Mapping[str, BoolArray]) -> Any:
        return np.array([np.count_nonzero(masks[group.name]) for group in self.graph.groups])

    # ------------------------------------------------------------------------------------------------ the result

    def plan(self) -> Plan:
        """The channels that are left, and less of them where that does not meet the budget yet."""
        masks = self.masks if self.over else self._down(self.masks, 1.0)
        provenance = {"criterion": self.name, "budget": self.budget.as_dict(), "allocator": self.allocator}
        return Plan({name: mask.copy() for name, mask in masks.items()}, provenance)

    def metrics(self) -> dict[str, float]:
        """What is left of cost and channels."""
        widths = self._widths(self.masks)
        full = max(float(self.graph.cost().macs), 1.0)
        left = float(self.graph.costs.evaluate(widths)["macs"])
        return {"flops": left / full, "channels": float(widths.sum() / self.shared.channels)}

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The masks of the plan, of which most or all are there already."""
        return {"hard": self._planned()}

    @contextmanager
    def _planned(self) -> Iterator[None]:
        before = self._alive
        masks = self.plan().masks
        self._alive = torch.from_numpy(np.concatenate([masks[group.name] for group in self.graph.groups]))
        try:
            yield
        finally:
            self._alive = before

    def state(self) -> dict[str, Any]:
        """The step, and which channels stay."""
        return super().state() | {"kept": {name: np.flatnonzero(mask).tolist() for name, mask in self.masks.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self._set({g.name: np.isin(np.arange(g.width), state["kept"][g.name]) for g in self.graph.groups})


def memory(graph: Graph) -> FloatArray:
    """ΔM [groups]: elements of convolutions' and linear layers' outputs that one channel of each group owns."""
    first = np.cumsum([0, *(group.width for group in graph.groups)])
    number = np.full(sum(group.width for group in graph.groups) + 1, -1, dtype=np.int64)  # the last one: frozen
    for k, group in enumerate(graph.groups):
        number[group.channels] = k
    found = np.zeros(len(first) - 1)
    for call in graph.recording.calls:
        if call.weight is None:
            continue
        for shape, label in zip(call.shapes, call.labels, strict=True):
            for size, axis in zip(shape, label, strict=True):
                if axis is None:
                    continue
                owners = number[graph.solution.channels_of(axis)]
                counts = np.bincount(owners[owners >= 0], minlength=len(found))
                found += counts * (np.prod(shape) / size) / np.diff(first)
    return found


ROW = MethodRow(
    name="group_fisher",
    summary="the Fisher information of masks that coupled layers share, per element of memory saved",
    paper="Group Fisher Pruning for Practical Network Compression",
    year=2021,
    arxiv="2108.00708",
    needs="training",
    acts="while training",
    asks="samples",
    granularity="channel",
    fidelity="written from the paper without its appendix, the authors' detection code and two reimplementations; "
    "added here: groups from the traced graph, several channels per step in short trainings, the schedule, and "
    "one-shot pruning; the authors' learning rate for classification is not known (0.004 at batch 256 in the "
    "reimplementations)",
    factory=GroupFisher,
    settings=GroupFisherSettings,
    acting=0.25,
    acting_rate=0.04,
    variants=({"normaliser": "flops"},),
)
