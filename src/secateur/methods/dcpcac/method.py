"""Dynamical channel pruning by conditional accuracy change, and its variant that doubles the channels and prunes half.

Chen, Xu, Du, Liu, He: Dynamical Channel Pruning by Conditional Accuracy Change for Deep Neural Networks, IEEE TNNLS
32(2), 2021 (DOI 10.1109/TNNLS.2020.2979517; no preprint). While a network is trained, random gates shut channels off,
for each sample others: z[n, c] = 0 with probability p. How much worse the samples without a channel are answered,

    CAC_c = E[q] - E[q | z_c = 0] = (1 - p) (E[q | z_c = 1] - E[q | z_c = 0]),

says what the channel is worth; q is whether the answer is right, or minus its cross-entropy. The channels that are
worth least go step by step, early in training, and the rest of it makes good for them.

Only the abstract could be read: random gates, two cheap criteria, gradual pruning early in training and DCPH are the
paper's; everything else is a design of our own, checked mathematically, and no transcription of the authors' criteria,
schedule or constants. What is our own:
    Gates are shut for single samples, with p = 0.1, and 0.05 for sums of several layers (residual streams), which every
        block reads; what is let through is divided by 1 - p.
    The sums of q with the channel on and off, and their counts, are forgotten alike, over five epochs or as long as the
        evidence asked for takes. The mean q of earlier steps, of which the gates are independent, is subtracted.
    A first-order criterion: the mean of -dl/dz over samples with the channel on, which needs far fewer samples.
        `metric: auto` takes it where the training is too short for the loss.
    From 5% to 40% of the steps the cost follows 1 - (1 - t)^3 down to the budget (DCPH: the number of channels), by one
        ranking of all channels, at most a fifth of a group at a time, and none without evidence before the end of
        that window. The last event spares a group, or lets channels go in place of others (those whose exchange loses
        the least CAC), where more than 1% of the budget would be left over. CAC is in one unit everywhere, so
        `normalise` has no say.
    At every event the model gets really narrower, with its optimiser's state: see `secateur.methods.dcpcac.narrowing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from secateur._distributed import global_sum, rank
from secateur._hints import few
from secateur._protocols import Array, BoolArray, FloatArray
from secateur.errors import ConfigError, ModelError
from secateur.graph.modules import output_tensors
from secateur.graph.readers import readers, summed
from secateur.methods.contract import MethodRow, Settings
from secateur.methods.dcpcac.conditional import Evidence, answered, conditional_change, cross_entropy, right, scale
from secateur.methods.dcpcac.narrowing import NarrowingMethod
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.ranking import Goal, Limits, lower
from secateur.methods.kit.sample_gates import SampleGates
from secateur.plan import Plan

Metric = Literal["accuracy", "loss", "gradient"]

#: Samples with a channel off (accuracy, loss) or on (gradient) that an estimate takes.
EVIDENCE: Mapping[str, int] = {"accuracy": 20_000, "loss": 20_000, "gradient": 2_000}
#: Epochs that are remembered.
EPOCHS = 5
#: How much of the budget is used in the end, where the channels are small enough.
CLOSE = 0.99


class DCPCACSettings(Settings):
    """All defaults are the design's; the paper's values are unknown."""

    metric: Literal["auto", "accuracy", "loss", "gradient"] = Field(
        "auto", description="what a sample's answer is worth: right or wrong, its loss, or the first order of its loss"
    )
    rate: float = Field(0.1, ge=0, lt=1, description="probability that a channel is off for a sample")
    trunk: float = Field(0.05, ge=0, lt=1, description="the same for sums of several layers, which many layers read")
    memory: int | None = Field(None, ge=1, description="steps that are remembered; null: five epochs, or what it takes")
    evidence: int | None = Field(
        None, ge=1, description="samples an estimate takes; null: 20000 with the channel off, gradient: 2000 with it on"
    )
    start: float = Field(0.05, ge=0, lt=1, description="share of the steps after which pruning begins")
    end: float = Field(0.4, gt=0, le=1, description="share of the steps after which the budget should be reached")
    every: int | None = Field(None, ge=1, description="steps between two events; null: an epoch")
    cap: float = Field(0.2, gt=0, le=1, description="largest share of a group that goes at once; at least one channel")
    double: Literal["no", "channels", "flops"] = Field(
        "no", description="DCPH: begin with doubled widths, prune half of the channels, or to half the widths' flops"
    )

    @model_validator(mode="after")
    def _in_order(self) -> DCPCACSettings:
        if self.start >= self.end:
            raise ValueError(f"start is {self.start} and end is {self.end}: let pruning end after it begins")
        return self

    def model_arguments(self, reference: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """DCPH begins with a network twice as wide."""
        if self.double == "no":
            return dict(given)
        if not reference.startswith("zoo:"):
            raise ConfigError(
                f"method.double cannot double the widths of {reference}: take a zoo: network, or build one with "
                'doubled widths and prune half of it with secateur.methods.create("dcpcac", ...).'
            )
        return {**given, "width": 2 * given.get("width", 1.0)}


class DCPCAC(NarrowingMethod):
    """Train with random gates; the channels without which samples are answered as well as with them are cut."""

    name = "dcpcac"
    Config = DCPCACSettings
    settings: DCPCACSettings

    def prepare(self) -> None:
        """Put gates before everything that reads channels which may go."""
        tables, others = readers(self.graph)
        if others:
            self.notes.append(
                f"Groups that are read by more than convolutions and linear layers stay whole: {few(others)}."
            )
            self.constraints = self.constraints.keeping(others)
        self._floors = self.constraints.floors(self.graph)
        widths = [group.width for group in self.graph.groups]
        if not (self._floors < widths).any():
            raise ModelError(
                f"Nothing in {type(self.model).__name__} can be gated: every group must stay whole, or is read by more "
                "than convolutions and linear layers; choose another method."
            )
        self._check_reach()  # before anything is inserted
        super().prepare()
        self._goals = self._set_goals()
        rates = [self.settings.trunk if trunk else self.settings.rate for trunk in summed(self.graph)]
        self._rates = torch.tensor(np.repeat(rates, widths), dtype=torch.float32)
        self.gates = SampleGates(self.model, tables, self._rates, np.repeat(self._floors < widths, widths))
        self.evidence = Evidence(sum(widths), self.device)
        self.metric: Metric | None = None if self.settings.metric == "auto" else self.settings.metric
        self.over = False  # pruning has ended, and all gates are open for good
        self._held: set[str] = set()  # groups that a size in code keeps as they are while training
        self._epoch, self._last = 0, 0  # steps of an epoch, as far as known; when channels went last
        self._micro, self._told = 0, False  # of this step: micro-batches, and whether their targets were told
        self._asked: tuple[torch.Tensor, torch.Tensor] | None = None

    def _set_goals(self) -> list[Goal]:
        """Where to end: DCPH's half, if that is asked for, and the budget."""
        aim = Aim(self.graph, self.budget)
        budget = Goal(self.graph.costs, aim.full, aim.limits)
        if self.settings.double == "no":
            return [budget]
        widths = np.array([group.width for group in self.graph.groups])
        if self.settings.double == "channels":
            return [Goal.channels(int(widths.sum()), int((widths // 2).sum())), budget]
        half = {"macs": float(self.graph.costs.evaluate(widths // 2)["macs"])}
        return [Goal(self.graph.costs, aim.full, half), budget]

    # ------------------------------------------------------------------------------------------------- one step

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output, in training with channels shut off at random."""
        self.gates.clear()
        self._asked = None
        if self.training and not self.over:
            first = output_tensors((args, keywords))[0]
            if self.metric is None:
                self.metric = self._suitable(int(global_sum(torch.tensor(len(first), device=first.device))))
            key = (self.seed, self.step, self._micro, rank())
            self.gates.draw(len(first), first.device, key, gradient=self.metric == "gradient")
        return self.model(*args, **keywords)

    def _suitable(self, images: int) -> Metric:
        """The loss, if its evidence is there by the middle of the pruning window."""
        s = self.settings
        off = s.rate * images * self.steps * (s.start + s.end) / 2
        return "loss" if off >= (s.evidence or EVIDENCE["loss"]) else "gradient"

    def after_forward(self, output: Any, target: Any) -> None:
        """Note what each sample's answer is worth."""
        if self.gates.z is None:
            return
        logits = output_tensors(output)[0]
        if not isinstance(target, torch.Tensor) or not answered(logits, target):
            raise ConfigError(
                "The method 'dcpcac' needs the target of every sample: call after_forward(output, target) with class "
                "scores and the classes that were asked for."
            )
        self._asked, self._told = (logits, target), True
        if self.metric == "gradient":
            if logits.requires_grad:
                logits.retain_grad()
            return
        with torch.no_grad():
            q = right(logits, target) if self.metric == "accuracy" else -cross_entropy(logits, target)
            self.evidence.add_worth(self.gates.z, q)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Note what the loss of each sample would be without each channel, to first order."""
        z = self.gates.z
        if self._asked is not None and z is not None:
            logits, target = self._asked
            if self.metric == "gradient" and z.grad is not None and logits.grad is not None:
                self.evidence.add_slope(z.detach(), z.grad / scale(logits, target))
            self.evidence.images += len(logits)
        if z is not None:
            self._micro += 1
        self.gates.clear()

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn from the step, and prune where it is time to."""
        super().after_step()
        micro, told, self._micro, self._told = self._micro, self._told, 0, False
        if self.over:
            return
        if micro:
            if not told:
                raise ConfigError(
                    "The method 'dcpcac' was not told the targets: call after_forward(output, target) before backward."
                )
            live = torch.from_numpy(self.gates.live).to(self.device)
            images = self.evidence.total(live)
            self.evidence.learn(live, images, self._memory(images), first=self.step == 1)
        if self.progress >= self.settings.start and self.step - self._last >= self._interval:
            self._prune()

    def _memory(self, images: int) -> float:
        """Steps that are remembered: as many as evidence and epochs take, with some to spare."""
        if self.settings.memory is not None:
            return float(self.settings.memory)
        if not self._epoch:
            return math.inf
        rates = self.gates.rates
        share = float((1 - rates if self.metric == "gradient" else rates).min()) if len(rates) else 1.0
        return max(EPOCHS * self._epoch, 2 * self._evidence / max(share * images, 1e-9))

    def after_epoch(self) -> None:
        """The first one tells how long an epoch is."""
        self._epoch = self._epoch or self.step

    # ---------------------------------------------------------------------------------------------------- pruning

    @property
    def _evidence(self) -> int:
        return self.settings.evidence or EVIDENCE[self.metric or "loss"]

    @property
    def _interval(self) -> int:
        return self.settings.every or self._epoch or max(1, self.steps // 100)

    def share(self, progress: float) -> float:
        """How far pruning should be: 1 - (1 - t)^3 within its window."""
        s = self.settings
        t = min(max((progress - s.start) / (s.end - s.start), 0.0), 1.0)
        return 1.0 - (1.0 - t) ** 3

    def _prune(self) -> None:
        """Let the least channels go, so many that the cost is where it should be now."""
        self._last, late = self.step, self.progress >= self.settings.end
        missing = self.gates.live[self._counts()[self.gates.live] < self._evidence]
        if late and len(missing) and not any("evidence" in note for note in self.notes):
            self.notes.append(
                f"At the end of its pruning window {len(missing)} of {len(self.gates.live)} channels had less evidence "
                f"than {self._evidence} samples: they are judged by what there is."
            )
        barred = np.concatenate([np.full(group.width, group.name in self._held) for group in self.graph.groups])
        if not late:
            barred[missing] = True
        masks = self._lowered(self.share(self.progress), self.settings.cap, barred)
        if not late and all(goal.met(self._widths(masks)) for goal in self._goals):
            return  # a large channel would go a little too early: the last event chooses anew
        changed = any((masks[name] != mask).any() for name, mask in self.masks.items())
        if changed:
            self._held |= self.narrow_around(masks)
        if late and (not changed or all(goal.met(self._widths(self.masks)) for goal in self._goals)):
            self.over = True
            self.gates.clear()

    def narrow(self, masks: Mapping[str, BoolArray]) -> None:
        """Narrow the model, and the gates with it; what was seen of channels that are gone is forgotten."""
        super().narrow(masks)
        self.gates.narrow(self.alive.cpu().numpy())
        self.evidence.seen.mul_(self.alive[:, None])

    def _lowered(self, share: float, cap: float, barred: BoolArray | None = None) -> dict[str, BoolArray]:
        """Masks that go this share of the way to every goal, and take from no group more than `cap` at once.

        barred: channels that must not go now.
        """
        change = self._change()
        barred = np.zeros(len(self.alive), dtype=np.bool_) if barred is None else barred
        ends = np.cumsum([group.width for group in self.graph.groups])[:-1]
        scores = dict(zip(self.masks, np.split(change, ends), strict=True))
        held = dict(zip(self.masks, np.split(barred, ends), strict=True))
        floors = dict(zip(self.masks, self._floors.tolist(), strict=True))
        steps = self.constraints.steps(self.graph)
        limits = Limits(floors, cap, held, steps, CLOSE if share == 1 else 0.0, exchange=True)
        return lower(self.graph, self.masks, scores, [g.at(share) for g in self._goals], limits, self.allocator)

    def _change(self) -> FloatArray:
        """The estimated CAC of every channel; 0 where nothing was seen."""
        metric = self.metric or "loss"
        found = conditional_change(self.evidence.seen, self._rates.to(self.evidence.seen.device), metric)
        return found.double().cpu().numpy()

    def _counts(self) -> FloatArray:
        """Samples behind every estimate."""
        return self.evidence.seen[:, 0 if self.metric == "gradient" else 2].double().cpu().numpy()

    def _widths(self, masks: Mapping[str, BoolArray]) -> Array:
        return np.array([np.count_nonzero(masks[group.name]) for group in self.graph.groups])

    # ------------------------------------------------------------------------------------------------ the result

    def score(self) -> dict[str, FloatArray]:
        """The CAC of every channel; those that are gone are below all others."""
        change, alive = self._change(), self.alive.cpu().numpy()
        change[~alive] = change[alive].min() - 1.0
        return dict(
            zip(self.masks, np.split(change, np.cumsum([g.width for g in self.graph.groups])[:-1]), strict=True)
        )

    def plan(self) -> Plan:
        """The channels that are left, and less of them where that does not meet the budget yet."""
        masks = self._lowered(1.0, 1.0)
        provenance = {"criterion": self.name, "metric": self.metric, "allocator": self.allocator}
        return Plan({name: mask.copy() for name, mask in masks.items()}, provenance | {"budget": self.budget.as_dict()})

    def metrics(self) -> dict[str, float]:
        """What is left of cost and channels, the samples behind the weakest estimate, whether gates are at work."""
        widths = self._widths(self.masks)
        cost, live = self.graph.costs.evaluate(widths)["macs"], self.gates.live
        return {
            "flops": float(cost) / max(float(self.graph.cost().macs), 1.0),
            "channels": float(widths.sum() / len(self.alive)),
            "evidence": float(self._counts()[live].min(initial=np.inf)) if len(live) else 0.0,
            "gates": float(not self.over),
        }

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The masks of the plan, of which most or all are cut already."""
        return {"hard": self._planned()}

    @contextmanager
    def _planned(self) -> Iterator[None]:
        with self.gates.fixed(np.concatenate(list(self.plan().masks.values())), self.device):
            yield

    def state(self) -> dict[str, Any]:
        """The step, what was found out about epochs and metric, and where pruning stands."""
        own = {"metric": self.metric, "over": self.over, "epoch": self._epoch, "last": self._last}
        return super().state() | own | {"held": sorted(self._held), "notes": list(self.notes)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self.metric, self.over = state["metric"], bool(state["over"])
        self._epoch, self._last = int(state["epoch"]), int(state["last"])
        self._held = set(state["held"])
        self.notes = list(state["notes"])
        self.gates.clear()


ROW = MethodRow(
    name="dcpcac",
    summary="random gates shut channels off for single samples; those nobody misses go, early in training",
    paper="Dynamical Channel Pruning by Conditional Accuracy Change for Deep Neural Networks",
    year=2021,
    arxiv="",
    needs="training",
    acts="while training",
    granularity="channel",
    fidelity="only the abstract and bibliographic data could be read; everything needed to make it a runnable method "
    "is our completion, mathematically checked, but not a transcription of the authors' two criteria, schedule or "
    "constants",
    factory=DCPCAC,
    settings=DCPCACSettings,
    begins="new",
    finetunes=False,
)
