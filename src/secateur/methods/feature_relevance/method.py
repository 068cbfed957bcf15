"""Gradual channel pruning while training, by feature relevance scores.

Aketi, Roy, Raghunathan, Roy: Gradual Channel Pruning while Training using Feature Relevance Scores for Convolutional
Neural Networks, IEEE Access 8, 2020 (arXiv:2002.09958). At ten moments of a training from scratch, relevance is
propagated from the true class back through the network (LRP, α = 2, β = 1; `propagation.py`). With
r[n, k] the mean over positions of what channel k gets from sample n, a_c the accuracy on class c and N_c its samples,

    s_c = sigmoid(max a / a_c)                                              (worse classes count more)
    v_k = |1/K Σ_c s_c 1/N_c Σ_{n in c} r[n, k]|                            (signs may cancel before | |)
    F_k = v_k / ‖v‖ over the group's channels                               (feature relevance score)

and the channels with the smallest F of the whole network are set to zero for good. Training goes on as if nothing had
happened; its last quarter is the recovery.

The abstract and the authors' code were read; the paper's text may differ from both.

Where this differs from the code, and why:
    The number of channels per event is not given but follows from the budget: those that must go for it now, divided by
        the events left. The last event meets it. Events are at the code's shares of training: 10 up to 75%.
        Where the smallest F would leave more than a hundredth of the budget, channels are exchanged for others. The
        code's other counts, 9 events in 90 epochs of ImageNet, are `rounds: 9` and `end`; there are no presets.
    What is masked while training is what is removed in the end; the code reports the two apart.
    The code silences a block's contribution to a residual stream; here a channel of the stream goes as a whole, so that
        it can be cut. Its v is the sum over the sums in which it shows, as the code reads those. A depthwise
        convolution follows what it filters. All widths of hidden linear layers are ranked with the rest.
    Relevance comes from the last `batches` batches before an event, as training shows them (the code: all images, or
        80,000), each with the weights of its step, and accuracy from the same images.
    Z+ and Z- collect what x W has of either sign, not what has W of either sign: the same where x is not negative, and
        stable where it is. Weights are not moved away from 0, stabilisers keep signs, class means divide by N_c.
    With a channel its bias and the scale and shift of its norm are removed, so that no constant of it remains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_sum
from secateur._protocols import BoolArray, FloatArray
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.graph.modules import output_tensors
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.feature_relevance.propagation import Rule
from secateur.methods.feature_relevance.relevance import (
    Relevance,
    channel_relevance,
    class_factors,
    layout,
    makers,
    shares_of,
)
from secateur.methods.kit.aim import CLOSE, Aim, counts
from secateur.methods.kit.holding import hold, stop_gradients
from secateur.methods.kit.ranking import Goal, Limits, lower
from secateur.methods.kit.rounds import Rounds
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair.masking import alive, apply_masks
from secateur.statistics.gather import gather, untouched


class FeatureRelevanceSettings(Settings):
    """Defaults are those of the authors' code: events after epochs 15, 30, ... 150 of 200."""

    rounds: int = Field(10, ge=1, le=1000, description="events of pruning")
    start: float = Field(0.0, ge=0, lt=1, description="share of training before the first round begins")
    end: float = Field(0.75, gt=0, le=1, description="share of training by which the last event has pruned")
    batches: int = Field(100, ge=1, description="batches before each event that relevance is taken from")
    alpha: float = Field(2.0, ge=1, description="α of the propagation rule; β = α - 1")
    class_factor: bool = Field(True, description="classes answered badly count more; false: all alike")
    stem: bool = Field(False, description="also rank what only the first layer makes; false: it stays whole")

    @model_validator(mode="after")
    def _in_order(self) -> FeatureRelevanceSettings:
        if self.start >= self.end:
            raise ValueError("the rounds must end after they start: set start below end")
        return self


class FeatureRelevance(Method):
    """Train from scratch; channels that matter least for the true classes go at a few moments, for good."""

    name = "feature_relevance"
    Config = FeatureRelevanceSettings
    settings: FeatureRelevanceSettings
    comparable = "none"
    sums: torch.Tensor  # [classes, channels of all spots]: relevance since the last event
    counts: torch.Tensor  # [classes, 3]: samples summed, seen, answered right
    scores: torch.Tensor  # F of every channel, as of the last event

    def prepare(self) -> None:
        """See where groups are read, and which of them stay whole."""
        s = self.settings
        self.rounds = Rounds(s.rounds, s.start, s.end, self.steps, 1, s.batches)
        self.layers = makers(self.graph)
        self.layout = layout(self.model, self.layers, self.example_inputs)
        self._keep_whole()
        self.aim = Aim(self.graph, self.budget)
        channels = sum(group.width for group in self.graph.groups)
        zeros = torch.zeros(self.layout.classes, sum(self.layout.widths), dtype=torch.float64, device=self.device)
        self.register_buffer("sums", zeros)
        self.register_buffer("counts", zeros.new_zeros(self.layout.classes, 3))
        self.register_buffer("scores", zeros.new_zeros(channels))
        self._round, self._scored = 0, False
        self._told = False  # targets that tell classes have been seen
        self._calls: list[tuple[Any, Any]] = []  # inputs and target of this step's micro-batches
        self._kept = {g.name: np.ones(g.width, dtype=np.bool_) for g in self.graph.groups}
        self._held: dict[str, torch.Tensor] = {}  # masks of parameters by name, to be multiplied with

    def _keep_whole(self) -> None:
        if self.normalise != "none":
            self.notes.append(
                f"Feature relevance is normalised in its groups, so normalise={self.normalise!r} was not applied."
            )
        read = dict.fromkeys(self.layout.groups)
        groups = self.graph.groups
        unread = [g.name for k, g in enumerate(groups) if k not in read]
        if len(unread) == len(groups):
            raise ModelError(
                f"No layer of {type(self.model).__name__} shows its channels, so that they have no relevance: choose "
                "another method."
            )
        if unread:
            self.notes.append(f"Groups that have no relevance score stay whole: {', '.join(unread[:3])}.")
            self.constraints = self.constraints.keeping(unread)
        if self.layout.unknown:
            named = ", ".join(self.layout.unknown[:4])
            self.notes.append(f"Relevance has no rule of its own for {named}: gradient times input decides there.")
        deep = {k for k, depth in zip(self.layout.groups, self.layout.depths, strict=True) if depth > 1}
        stem = [g.name for k, g in enumerate(groups) if k in read and k not in deep]
        if not stem or self.settings.stem:
            return
        given = self.constraints
        self.constraints = given.keeping(stem)
        try:
            self._check_reach()
            self.notes.append(f"What only the first layer makes stays whole, as in the paper's code: {stem[0]}.")
        except BudgetError:
            self.constraints = given
            self.notes.append(f"The budget cannot be met with {stem[0]} whole, so it is ranked with the rest.")

    # ------------------------------------------------------------------------------------------------- training

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output; in training, inputs are remembered where relevance is due."""
        if self.training and torch.is_grad_enabled() and self.rounds.looks(self.step + 1, self._round):
            self._calls.append(((args, keywords), None))
        return self.model(*args, **keywords)

    def after_forward(self, output: Any, target: Any) -> None:
        """Remember the classes; what cannot tell them is refused in the first step, not at the first event."""
        if not self._told:
            logits = output_tensors(output)[0]
            shares_of(target, logits)
            self._told = True
        if self._calls and self._calls[-1][1] is None:
            self._calls[-1] = self._calls[-1][0], target

    def after_backward(self) -> None:
        """What is pruned gets no gradient, so that momentum does not gather."""
        stop_gradients(self._holding())

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep what is pruned at zero; propagate relevance; prune when a round is over."""
        super().after_step()
        hold(self._holding())
        calls, self._calls = self._calls, []
        told = [call for call in calls if call[1] is not None]  # a forward pass may be one that nobody learns from
        if calls and not told:
            raise ConfigError(
                "The method 'feature_relevance' was not given the targets: call after_forward(output, target)."
            )
        for (args, keywords), target in told:
            self._look(args, keywords, target)
        reached = self.rounds.over(self.step)
        if reached > self._round and float(global_sum(self.counts[:, 0]).sum()) > 0:
            self.sums.copy_(global_sum(self.sums))
            self.counts.copy_(global_sum(self.counts))
            self._score()
            self._prune(reached)

    def _look(self, args: Any, keywords: Any, target: Any) -> None:
        """Add the relevance of one batch."""
        collector = self._collector()
        handles: list[RemovableHandle] = []
        with untouched(self.model), torch.autocast(self.device.type, enabled=False):
            try:
                handles += collector.watch(self.model)
                collector.see(self.model(*args, **keywords), target)
            finally:
                for handle in handles:
                    handle.remove()

    def _collector(self) -> Relevance:
        return Relevance(self.layers, self.sums, self.counts, Rule(self.settings.alpha))

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Relevance over all batches with the weights as they are, for pruning at once; the loss is not needed."""
        self.sums.zero_()
        self.counts.zero_()
        gather(self.model, batches, [self._collector()])
        self._score()

    def _score(self) -> None:
        """F of all channels from the sums, which begin anew."""
        skipped = int((self.counts[:, 1] - self.counts[:, 0]).sum().round())
        if skipped:
            self.notes.append(f"{skipped} samples had relevance that is not finite and were left out.")
        factors = class_factors(self.counts) if self.settings.class_factor else torch.ones_like(self.counts[:, 0])
        found = channel_relevance(self.sums, self.counts, factors, self.layout)
        parts = []
        for number, group in enumerate(self.graph.groups):
            v = found.get(number, self.sums.new_zeros(group.width))
            parts.append(v / (v.norm() + 1e-9))
        self.scores.copy_(torch.cat(parts))
        self._scored = True
        self.sums.zero_()
        self.counts.zero_()

    def _prune(self, reached: int) -> None:
        """One event: of what must go for the budget, the lowest scored share that is due now."""
        final, due = self._lowered(), (reached - self._round) / (self.settings.rounds - self._round)
        scores = self.score()
        goes = [
            (scores[name][channel], number, int(channel), name)
            for number, (name, mask) in enumerate(final.items())
            for channel in np.flatnonzero(self._kept[name] & ~mask)
        ]
        now: dict[str, list[int]] = {name: [] for name in final}
        for _, _, channel, name in sorted(goes)[: math.ceil(len(goes) * due - 1e-9)]:
            now[name].append(channel)
        steps = self.constraints.steps(self.graph)
        for name, channels in now.items():
            left = np.count_nonzero(self._kept[name]) - len(channels)
            spared = int(-left % steps[name])  # the best of them wait for the next event
            self._kept[name][channels[: max(len(channels) - spared, 0)]] = False
        self._round = reached
        self._follow()

    def _lowered(self) -> dict[str, BoolArray]:
        """Masks within those so far that meet the budget: the smallest scores of the whole network go."""
        floors = dict(zip(self._kept, self.constraints.floors(self.graph).tolist(), strict=True))
        goal = Goal(self.graph.costs, self.aim.full, self.aim.limits)
        limits = Limits(floors, steps=self.constraints.steps(self.graph), close=CLOSE, exchange=True)
        return lower(self.graph, self._kept, self.score(), [goal], limits, self.allocator)

    def _holding(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        for name, mask in self._held.items():
            parameter = self.model.get_parameter(name)
            yield parameter, mask.to(parameter.device)

    def _follow(self) -> None:
        """Hold from now on what the masks say."""
        self._held = alive(self.graph.slices(Plan(self._kept)), dict(self.model.named_parameters()))
        apply_masks(self.model, self._held)

    # ------------------------------------------------------------------------------------------------ the result

    def score(self) -> dict[str, FloatArray]:
        """F of every channel as of the last event; pruned ones come last."""
        if not self._scored:
            raise ConfigError(
                "The method 'feature_relevance' has seen no data: train with it until its first event, or call "
                "collect(batches, loss)."
            )
        flat, result, first = self.scores.double().cpu().numpy(), {}, 0
        for name, kept in self._kept.items():
            result[name] = np.where(kept, flat[first : first + len(kept)], -1.0)
            first += len(kept)
        return result

    def plan(self) -> Plan:
        """The channels that stay: those of the last event, or what must go at once if events are left."""
        provenance = {"criterion": self.name, "budget": self.budget.as_dict(), "rounds": self._round}
        if self._round >= self.settings.rounds:
            return Plan({name: mask.copy() for name, mask in self._kept.items()}, provenance)
        return Plan(self._lowered(), provenance | {"allocator": self.allocator})

    def plain(self) -> nn.Module:
        """A copy with zeros where channels went (an average over many steps need not have them)."""
        twin = super().plain()
        apply_masks(twin, self._held)
        return twin

    def metrics(self) -> dict[str, float]:
        """Events so far, and what is left."""
        widths = counts(self._kept)
        left = self.aim.cost(widths)["macs"] / max(self.aim.full["macs"], 1.0)
        share = sum(widths.values()) / sum(self.aim.groups.values())
        return {"round": float(self._round), "flops": left, "channels": share}

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The network with all that goes set to zero, as soon as that is known."""
        return {"hard": self._planned()} if self._scored else {}

    @contextmanager
    def _planned(self) -> Iterator[None]:
        parameters = dict(self.model.named_parameters())
        masks = alive(self.graph.slices(self.plan()), parameters)
        before = {name: parameters[name].detach().clone() for name in masks}
        try:
            apply_masks(self.model, masks)
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    parameters[name].copy_(value)

    def state(self) -> dict[str, Any]:
        """The step, the round, and which channels stay."""
        kept = {name: np.flatnonzero(mask).tolist() for name, mask in self._kept.items()}
        return super().state() | {"round": self._round, "scored": self._scored, "kept": kept}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self._round, self._scored = int(state["round"]), bool(state["scored"])
        self._kept = {g.name: np.isin(np.arange(g.width), state["kept"][g.name]) for g in self.graph.groups}
        self._follow()


ROW = MethodRow(
    name="feature_relevance",
    summary="channels with the least relevance for the true classes are removed at a few points of training",
    paper="Gradual Channel Pruning while Training using Feature Relevance Scores for Convolutional Neural Networks",
    year=2020,
    arxiv="2002.09958",
    needs="training",
    acts="while training",
    asks="class scores",
    granularity="channel",
    fidelity="written from the abstract and the official code, without the paper's text: score, propagation rules "
    "and schedule are the code's; residual streams are pruned as a whole, and the channels removed per step follow "
    "from the budget",
    factory=FeatureRelevance,
    settings=FeatureRelevanceSettings,
    begins="new",
    finetunes=False,
    acting=1.0,  # events end at 150 of 200 epochs (`end`), and the masks hold in the rest
    variants=({"stem": True, "alpha": 1.0, "class_factor": False, "rounds": 2},),
)
