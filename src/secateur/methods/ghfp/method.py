"""Gradually hard filter pruning, and the family it brings together: GHFP, HFP, SFP, ASFP, SRFP and ASRFP.

Cai, An, Xu: GHFP: Gradually Hard Filter Pruning, IJCNN 2021 (arXiv:2011.03170); He, Kang, Dong, Fu, Yang: Soft Filter
Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018 (arXiv:1808.06866), and Asymptotic Soft Filter
Pruning (arXiv:1808.07471); Cai, An, Yang, Xu: Softer Pruning, Incremental Regularization, ICPR 2020 (arXiv:2010.09498).
Behind every epoch t of T, in every layer of N filters, the filters of least norm are pruned, and training goes on:

    S_t: the floor(N P_t) smallest ||W_i||_2;   H_t: the floor(N P_t lambda_t) smallest, a part of S_t
    W_i <- W_i (M_i + alpha_t (1 - M_i) Hm_i)    M_i = 0 in S_t, Hm_i = 0 in H_t: others stay, soft ones shrink, hard
                                                 ones are 0 and stay so

A soft filter may recover until the next event, which chooses anew; a hard one has no gradient and is set to 0 after
every step, as momentum and decay would move it. The members differ in their schedules only (`schedule.py`):

    hfp     P_t = P, lambda = 1                  sfp     P_t = P, alpha = 0, lambda = 0
    asfp    P_t rises, alpha = 0, lambda = 0     srfp    P_t = P, alpha_t decays, lambda = 0
    asrfp   P_t rises, alpha_t decays            ghfp    P_t rises, alpha_t decays, lambda_t rises: from soft to hard

Sources: SFP's code and that of the first author's later PGMPF were read, of the papers on GHFP, SRFP and ASFP the
abstracts only. That the "soft to hard" of PGMPF's code is GHFP's rule is an inference, and its cubic lambda with it;
PGMPF itself, which scales gradients instead of freezing filters, is not here.

Where this differs from the papers, and why:
    Coupled filters have one norm, the root of the sum of squares over all that make a channel, one
        S and one H, so that zeros can be cut. The papers prune every convolution by itself, residual streams included,
        and count
        FLOPs as if these zeros could go. Residual streams stay whole here unless the budget needs them.
    The final counts N P follow from the budget, by default with the same share of every group; P_t / P scales them.
    `norms: scaled` (the authors' ImageNet scripts) multiplies the scale and shift of norms like the filter, so that a
        pruned channel is exactly 0 and nothing is lost with it. A filter set to zero then comes back by the optimiser's
        momentum alone. `norms: left` (SFP's code) leaves them to soft filters, which so recover by their gradients;
        what constants they give then goes with the last event.
    A training of fewer than `events` epochs has that many events, evenly within the first three quarters of its steps:
        with three epochs, say, and one behind each, a filter of every group and more would go with the last step,
        where the papers' last events are ten epochs from the end, and nothing could make up for it.
    After the last epoch's event all pruned filters are hard: they are what is cut.
    The code's event before the first epoch is left out: making a method changes no weights.
    `rate: linear` and `hard: linear` are ours, for comparison.
    Of epochs only the last 5% are wholly pruned (10% with `phases: imagenet`): a checkpoint chosen before is pruned by
        its norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._protocols import BoolArray, FloatArray
from secateur.errors import ConfigError
from secateur.methods.contract import Method, Settings
from secateur.methods.ghfp.filters import Filters, event, floor_count, order
from secateur.methods.ghfp.schedule import HardName, MemberName, PhasesName, RateName, Schedule
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.events import ShortEvents
from secateur.methods.kit.floors import keep_streams
from secateur.methods.kit.holding import hold, stop_gradients
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair.merging import difference, outputs
from secateur.surgery import Result


class GHFPSettings(Settings):
    """Defaults are those of the authors' script for CIFAR-10."""

    member: MemberName = Field("ghfp", description="which one of the family: from hard over soft to gradually hard")
    rate: RateName | None = Field(None, description="how the pruned share comes; null: as the member has it")
    hard: HardName = Field("cubic", description="how the share of hard filters rises, with the member ghfp")
    alpha: float = Field(1.0, ge=0, le=1, description="factor of soft filters at first, where it decays")
    sigma: float = Field(1e-5, gt=0, lt=1, description="what is left of it in the end; 1e-3 on ImageNet from scratch")
    delay: float = Field(
        0.125, gt=0, le=1, description="share of training after which an exponential rate is at 3/4 of its end"
    )
    phases: PhasesName = Field("cifar", description="when all is soft at 0, pruned and hard, by the authors' scripts")
    interval: int = Field(1, ge=1, description="epochs between two events")
    events: int = Field(
        12,
        ge=0,
        description="least number of events, which stand within epochs where these are fewer (and interval is 1)",
    )
    norms: Literal["scaled", "left"] = Field(
        "scaled", description="whether scales and shifts of norms shrink with soft filters, or with hard ones only"
    )


class GHFP(Method):
    """Prune filters by their norms behind every epoch, softly at first, and train on."""

    name = "ghfp"
    Config = GHFPSettings
    settings: GHFPSettings
    #: S and H of the last event, over the channels of all groups.
    pruned: torch.Tensor
    hard: torch.Tensor

    def usual_allocator(self) -> str:
        """The same share of every group, as in the papers."""
        return "uniform"

    def prepare(self) -> None:
        """Decide how many filters of every group go in the end."""
        s = self.settings
        keep_streams(self)
        self.schedule = Schedule(s.member, s.rate, s.hard, s.phases, s.alpha, s.sigma, s.delay)
        self.filters, self.aim = Filters(self.graph), Aim(self.graph, self.budget)
        plan = self._allocate(self.score())
        self._provenance = {key: value for key, value in plan.provenance.items() if key != "undecided"}
        self._widths = plan.widths
        self._epochs = 0  # that are over
        self._short = ShortEvents(s.events if s.interval == 1 else 0, self.steps)
        every = sum(group.width for group in self.graph.groups)
        for name in ("pruned", "hard"):
            self.register_buffer(name, torch.zeros(every, dtype=torch.bool))
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []  # what hard filters consist of, with its masks
        self.agreement = float("nan")

    # ------------------------------------------------------------------------------------------------- training

    def after_backward(self) -> None:
        """Hard filters have no gradient."""
        stop_gradients(self._held)

    @torch.no_grad()
    def after_step(self) -> None:
        """Hard filters are zero, whatever momentum and decay did."""
        super().after_step()
        hold(self._held)
        if self._short.due(self.step, self._epochs):
            self._event(self._short.over - 1, self._short.most)

    def after_epoch(self) -> None:
        """The event of this epoch; its part of the steps tells how many epochs there are."""
        if not self.step or self._short.over:
            return
        self._epochs += 1
        epochs = max(round(self._epochs / self.progress), self._epochs)
        if self._epochs == epochs or self._epochs % self.settings.interval == 0:
            self._event(self._epochs - 1, epochs)

    @torch.no_grad()
    def _event(self, t: int, epochs: int) -> None:
        now, norms, last = self.schedule.at(t, epochs), self.filters.norms(), t == epochs - 1
        multipliers, hard, pruned = {}, [], []
        for group, held in self._split(self.hard).items():
            final = len(held) - self._widths[group]  # N P
            prune = floor_count(final, now.rate)  # floor(N P_t)
            harden = prune if last else floor_count(final, now.rate * now.hard)  # floor(N P_t lambda_t)
            found = event(norms[group], held, prune=prune, harden=harden, factor=now.factor)
            multipliers[group] = found.multipliers
            pruned.append(found.pruned)
            hard.append(found.hard)
        for tensor, factor in self.filters.factors(multipliers, norms=self.settings.norms == "scaled"):
            if isinstance(tensor, nn.Parameter):
                tensor.mul_(factor)
        for buffer, masks in ((self.pruned, pruned), (self.hard, hard)):
            buffer.copy_(torch.from_numpy(np.concatenate(masks)))
        for tensor, mask in self._follow():
            tensor.mul_(mask)

    def _follow(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Hold from now on what is hard; all that makes hard filters, running statistics too, with its masks."""
        found = self.filters.factors(
            {name: (~hard).astype(np.float64) for name, hard in self._split(self.hard).items()}
        )
        self._held = [(tensor, mask) for tensor, mask in found if isinstance(tensor, nn.Parameter)]
        return found

    def _split(self, channels: torch.Tensor) -> dict[str, BoolArray]:
        """A buffer of all channels by groups."""
        parts = channels.cpu().split([group.width for group in self.graph.groups])
        return {group.name: part.numpy() for group, part in zip(self.graph.groups, parts, strict=True)}

    # ------------------------------------------------------------------------------------------------ the result

    def score(self) -> dict[str, FloatArray]:
        """The norm of every channel's filters."""
        return self.filters.norms()

    def plan(self) -> Plan:
        """All but the pruned filters; before the last event those that are hard and the smallest others go."""
        norms, masks = self.score(), {}
        for group, hard in self._split(self.hard).items():
            masks[group] = np.ones(len(hard), dtype=np.bool_)
            masks[group][order(norms[group], hard)[: len(hard) - self._widths[group]]] = False
        return Plan(masks, {**self._provenance, "criterion": "ghfp", "member": self.settings.member})

    def check(self, result: Result) -> None:
        """Compare the narrow network with the trained one, in which what goes should be zero; say so if it is not."""
        self.agreement = difference(
            outputs(self.model, self.example_inputs), outputs(result.model, self.example_inputs)
        )
        if not self.agreement <= 1e-4:
            said = (
                f"The cut changed the output by {self.agreement:.1e} of the largest: what goes was not zero, for the "
                "training ended before its planned steps, its weights are a moving average, or an activation is not "
                "zero at zero."
            )
            self._note([said])

    def _check_loop(self) -> None:
        super()._check_loop()
        if self._steps_seen and not self._epochs and not self._short.over:
            raise ConfigError(
                f"{self.name} saw {self._steps_seen} steps and no end of an epoch, which is when it prunes: call "
                "after_epoch() after every epoch."
            )

    def metrics(self) -> dict[str, float]:
        """What is left of cost and channels without the pruned filters, and the share of these that is hard."""
        widths = {name: float((~mask).sum()) for name, mask in self._split(self.pruned).items()}
        pruned = int(self.pruned.sum())
        return {
            "flops": self.aim.cost(widths)["macs"] / max(self.aim.full["macs"], 1.0),
            "channels": sum(widths.values()) / sum(self.aim.groups.values()),
            "hard": int(self.hard.sum()) / pruned if pruned else 0.0,
        }

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """As trained, with soft filters at work; and with all that goes at zero."""
        return {"soft": nullcontext(), "hard": self._masked()}

    @contextmanager
    def _masked(self) -> Iterator[None]:
        masks = {name: mask.astype(np.float64) for name, mask in self.plan().masks.items()}
        found = self.filters.factors(masks)
        before = [tensor.detach().clone() for tensor, _ in found]
        with torch.no_grad():
            try:
                for tensor, mask in found:
                    tensor.mul_(mask)
                yield
            finally:
                for (tensor, _), old in zip(found, before, strict=True):
                    tensor.copy_(old)

    def state(self) -> dict[str, Any]:
        """The step, the epochs that are over, and how many channels stay in the end."""
        counts = {"epochs": self._epochs, "within": self._short.over}
        return super().state() | counts | {"widths": dict(self._widths)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self._epochs, self._short.over = int(state["epochs"]), int(state["within"])
        self._widths = {group.name: int(state["widths"][group.name]) for group in self.graph.groups}
        self._follow()


ROW = MethodRow(
    name="ghfp",
    summary="filters with the smallest norms pruned after every epoch, at first softly, then for good; also hfp, sfp, "
    "asfp, srfp and asrfp",
    paper="GHFP: Gradually Hard Filter Pruning",
    year=2021,
    arxiv="2011.03170",
    needs="training",
    acts="while training",
    granularity="channel",
    fidelity="SFP from its code; GHFP, SRFP and ASFP from their abstracts and the code of the first author's later "
    "PGMPF: that its schedule from soft to hard is GHFP's, and the cubic share of hard filters, are inferences; added "
    "here: one norm per group of coupled channels, filter counts from a budget, residual streams left whole",
    factory=GHFP,
    settings=GHFPSettings,
    finetunes=False,
    acting=1.0,
    variants=({"member": "sfp", "norms": "left"},),
)
