"""Dynamical channel pruning by conditional accuracy change, and its variant that doubles the channels and prunes half.

Chen, Xu, Du, Liu, He: Dynamical Channel Pruning by Conditional Accuracy Change for Deep Neural Networks, IEEE TNNLS
32(2), 2021 (DOI 10.1109/TNNLS.2020.2979517; no preprint). While a network is trained, random gates shut channels off,
for each sample others: z[n, c] = 0 with probability p. How much worse the samples without a channel are answered,

    CAC_c = E[q] - E[q | z_c = 0] = (1 - p) (E[q | z_c = 1] - E[q | z_c = 0]),

says what the channel is worth; q is whether the answer is right, or minus its loss. The channels that are
worth least go step by step, early in training, and the rest of it recovers from their removal.

Only the abstract could be read: random gates, two cheap criteria, gradual pruning early in training and DCPH are the
paper's; everything else is a design of our own, checked mathematically, and no transcription of the authors' criteria,
schedule or constants. What is our own:
    Gates are shut for single samples, with p = 0.1, and 0.05 for sums of several layers (residual streams), which every
        block reads; what is let through is divided by 1 - p. They stand before every layer that reads a channel. The
        first-order criterion looks at samples with the channel on, so there p is 0.02 and 0.01: gates cost a short
        training more than the pruning does (ResNet-8, CIFAR-10 at 16 x 16 pixels, 13 epochs: 52.8% with 0.1 and 0.05,
        55.9% so, means of three seeds by which it was chosen).
    The sums of q with the channel on and off, and their counts, decay at the same rate, over five epochs or as long as
        it takes to gather enough evidence. The mean q of earlier steps, of which the gates are independent, is
        subtracted.
    A first-order criterion: the mean of -dl/dz over samples with the channel on, which needs far fewer samples, and is
        of whatever loss the network is trained with. `metric: auto` takes it where the training is too short for the
        loss, and where the loss of single samples is not known: `answers` of classes, of yes or no, and numbers have
        one, embeddings and several outputs have none.
    From 5% to 40% of the steps the cost follows 1 - (1 - t)^3 down to the budget (DCPH: the number of channels), by one
        ranking of all channels, at most a fifth of a group at a time, and none without evidence before the end of
        that window. The last event spares a group, or lets channels go in place of others (those whose exchange loses
        the least CAC), where more than 1% of the budget would be left over. CAC has the same unit in every group, so
        `normalise` has no effect.
    At every event the model and its optimiser's state become narrower: see `secateur.methods.dcpcac.narrowing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import numpy as np
import torch

from secateur._distributed import global_sum, rank
from secateur._hints import few
from secateur._protocols import Array, BoolArray, FloatArray
from secateur.allocate.ties import undecided
from secateur.errors import ConfigError, ModelError
from secateur.graph.modules import output_tensors
from secateur.graph.readers import readers, summed
from secateur.methods.dcpcac.conditional import Evidence, conditional_change
from secateur.methods.dcpcac.narrowing import NarrowingMethod
from secateur.methods.dcpcac.settings import DCPCACSettings
from secateur.methods.kit.aim import CLOSE, Aim
from secateur.methods.kit.answers import AGREED, Kind, agreement, kind_of, losses, right
from secateur.methods.kit.loss_share import LossShare
from secateur.methods.kit.ranking import Goal, Limits, lower
from secateur.methods.kit.sample_gates import SampleGates
from secateur.methods.row import MethodRow
from secateur.plan import Plan

Metric = Literal["accuracy", "loss", "gradient"]

#: Samples with a channel off (accuracy, loss) or on (gradient) that an estimate takes.
EVIDENCE: Mapping[str, int] = {"accuracy": 20_000, "loss": 20_000, "gradient": 2_000}
#: Probability that a gate is shut, and the same for sums of several layers.
RATES: Mapping[str, tuple[float, float]] = {"accuracy": (0.1, 0.05), "loss": (0.1, 0.05), "gradient": (0.02, 0.01)}
#: Epochs that are remembered.
EPOCHS = 5


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
        self._trunks = np.repeat(np.array(summed(self.graph), dtype=np.bool_), widths)
        self._rates = self._rates_for(self.settings.metric)
        self.gates = SampleGates(self.model, tables, self._rates, np.repeat(self._floors < widths, widths))
        self.evidence = Evidence(sum(widths), self.device)
        self.metric: Metric | None = None if self.settings.metric == "auto" else self.settings.metric
        self.answers: Kind | None = None if self.settings.answers == "auto" else self.settings.answers
        self._sure = self.metric is not None  # whether the metric stands; auto is judged by the first gradient
        self._share = LossShare()
        self.over = False  # pruning has ended, and all gates are open for good
        self._held: set[str] = set()  # groups that a size in code keeps as they are while training
        self._epoch, self._last = 0, 0  # steps of an epoch, as far as known; when channels went last
        self._micro, self._told = 0, False  # of this step: micro-batches, and whether their targets were told
        self._asked: tuple[torch.Tensor, Any] | None = None

    def _set_goals(self) -> list[Goal]:
        """Where to end: DCPH's half, if that is asked for, and the budget."""
        aim = Aim(self.graph, self.budget)
        budget = Goal.of(self.graph.costs, aim)
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
                self._take(self._suitable(int(global_sum(torch.tensor(len(first), device=first.device)))))
            key = (self.seed, self.step, self._micro, rank())
            gradient = self.metric == "gradient" or not self._sure
            self.gates.draw(len(first), first.device, key, gradient=gradient)
        return super().forward(*args, **keywords)

    def _suitable(self, images: int) -> Metric:
        """The loss, if its evidence is there by the middle of the pruning window."""
        s = self.settings
        rate = RATES["loss"][0] if s.rate is None else s.rate
        off = rate * images * self.steps * (s.start + s.end) / 2
        return "loss" if off >= (s.evidence or EVIDENCE["loss"]) else "gradient"

    def _rates_for(self, metric: str) -> torch.Tensor:
        """The probability that each channel is off, where nobody says by the metric."""
        s, usual = self.settings, RATES.get(metric, RATES["loss"])
        rate, trunk = (own if given is None else given for given, own in zip((s.rate, s.trunk), usual, strict=True))
        return torch.from_numpy(np.where(self._trunks, trunk, rate)).float()

    def _take(self, metric: Metric) -> None:
        """Judge by this from now on."""
        self.metric, self._rates = metric, self._rates_for(metric)
        self._sure = self._sure or metric == "gradient"
        self.gates.set_rates(self._rates)

    def loss(self) -> torch.Tensor:
        """Zero, with a gradient that tells in which scale the step's loss went backward."""
        return self._share.zero(self.device)

    def after_forward(self, output: Any, target: Any) -> None:
        """Note what was answered and asked for."""
        if self.gates.z is None:
            return
        first = output_tensors(output)[0]
        if self.answers is None and self.metric != "gradient":
            self.answers = kind_of(first, target)
        if self.metric != "gradient":
            self._check_answers(len(self.gates.z))
        if not self._sure and first.requires_grad:
            first.retain_grad()
        self._asked, self._told = (first, target), True

    def _check_answers(self, samples: int) -> None:
        """ConfigError where what was asked for is no measure of single samples."""
        if self.answers is None and self._sure:
            raise ConfigError(
                f"metric: {self.metric} needs the target of every sample, {samples} here, as a tensor that the outputs "
                "can be held against: give class labels or as many targets as outputs, or set metric: gradient."
            )
        if self.metric == "accuracy" and self.answers == "numbers":
            raise ConfigError("metric: accuracy needs classes, and the targets are numbers: set metric: gradient.")

    @torch.no_grad()
    def after_backward(self) -> None:
        """Note what the samples' answers were worth, or to first order would be without each channel."""
        z = self.gates.z
        if self._asked is not None and z is not None:
            self._learn(z, *self._asked)
            self.evidence.images += len(z)
        if z is not None:
            self._micro += 1
        self.gates.clear()
        self._asked = None

    def _learn(self, z: torch.Tensor, output: torch.Tensor, target: Any) -> None:
        if not self._sure:
            self._confirm(output, target)
        if self.metric == "gradient":
            # a mean over the batch, times whatever scale: the loss of one sample went backward with share / samples
            if z.grad is not None:
                self.evidence.add_slope(z.detach(), z.grad * (len(z) / self._share.taken(self.name)))
        elif self.answers is not None:
            q = right if self.metric == "accuracy" else lambda *given: -losses(*given)
            self.evidence.add_worth(z.detach(), q(output.detach(), target, self.answers))

    def _confirm(self, output: torch.Tensor, target: Any) -> None:
        """Go by the gradient where the training's loss is not that of single samples' answers, in all processes."""
        other = self.answers is None or agreement(output, target, self.answers) < AGREED
        self._sure = True
        if global_sum(torch.tensor(float(other), device=output.device)) > 0:
            self._take("gradient")
            self.notes.append(
                "The training's loss is not known to be that of single samples' answers, so channels are judged by its "
                "gradient (metric: gradient)."
            )

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
                    "The method 'dcpcac' was not given the targets: call after_forward(output, target) before backward."
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
        self._check_scores(late)
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

    def _check_scores(self, late: bool) -> None:
        """ConfigError, before anything goes, where all evidence says that no channel is worth anything."""
        counts = self._counts()[self.gates.live]
        enough = (counts >= (1 if late else self._evidence)).all()
        if self.alive.all() and enough and not self._change()[self.gates.live].any():
            raise ConfigError(
                "dcpcac finds that no channel makes any difference to the loss, as with outputs that are the same for "
                "every image: check the network, its data and its loss, or choose another method."
            )

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
        provenance: dict[str, Any] = {"criterion": self.name, "metric": self.metric, "allocator": self.allocator}
        if not self.over and (said := undecided(self.score(), masks)):
            provenance["undecided"] = said
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
        own = {"metric": self.metric, "answers": self.answers, "sure": self._sure, "over": self.over}
        when = {"epoch": self._epoch, "last": self._last, "held": sorted(self._held)}
        return super().state() | own | when | {"notes": list(self.notes)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        if state["metric"] is not None:
            self._take(state["metric"])
        self.answers, self._sure, self.over = state["answers"], bool(state["sure"]), bool(state["over"])
        self._epoch, self._last = int(state["epoch"]), int(state["last"])
        self._held = set(state["held"])
        self.notes = list(state["notes"])
        self.gates.clear()


ROW = MethodRow(
    name="dcpcac",
    summary="random gates switch channels off for single samples; those that matter least are removed early on",
    paper="Dynamical Channel Pruning by Conditional Accuracy Change for Deep Neural Networks",
    year=2021,
    arxiv="",
    needs="training",
    acts="while training",
    asks="samples",
    granularity="channel",
    fidelity="written from the abstract and bibliographic data alone; everything else is a completion, checked "
    "mathematically, and no transcription of the authors' two criteria, schedule or constants",
    factory=DCPCAC,
    settings=DCPCACSettings,
    begins="new",
    finetunes=False,
    chance="which channels are shut for a sample is drawn by their numbers",
    variants=({"metric": "loss"},),
)
