"""Gates with differentiable polarization: GDP.

Guo, Yuan, Tan, Wang, Yang, Liu: GDP: Stabilized Neural Network Pruning via Gates with Differentiable Polarization, ICCV
2021 (arXiv:2109.02220). In front of every convolution (not depthwise) and linear layer stands a trained gate for each
channel that it reads; all readers of a channel share its gate:

    g(a) = a^2 / (a^2 + eps)                           0 at a = 0 only, else near 1 where a^2 is far above eps
    S_u  = sum of g over the channels of group u       soft width
    F    = sum over layers of q S_in S_out             the network's cost at soft widths
    minimised: L(W, g) + lambda max(0, F / F0 - r)     r the budget's share of the whole cost F0

Near zero the cost pulls a gate to exactly 0, and far out its pull falls like 2 eps / a^3: gates polarise. Channels with
a = 0 are cut, and the other gates are multiplied into the weights that read them, which changes nothing.

Sources: the abstract, the caption of the paper's figure 2 and a summary by others were read (placement, sharing, a
smoothed L0 norm with exact zeros, a bilinear cost in alternation); there is no official code. The gate's formula is
recalled, unverified.

Where this differs from the paper, or stands in for what is not known of it:
    The hinge of the penalty: the pull goes on until the channels with open gates meet the budget. Were it to end when
        the soft cost does, which is lower, gates would stay half open. All groups' shares of F are pulled down at once
        (F_lin = sum_u S_u dF/dS_u with the derivatives held has the gradient of F): the alternation in Jacobi's form.
    A gate whose g falls below `closed`, or that crosses zero, is shut and held shut after every step, the smallest
        first, until the budget is met, and none with which less than 99% of it would be used. The largest gates of
        every group, as many as must stay, are not pulled and never shut: one channel of a group stays, and blocks are
        not removed.
    `strength` null: 1, and more in a training so short that gates would not close in half of the time (at a learning
        rate of 0.05 with momentum 0.9). With so strong a penalty the loss no longer influences which group is pruned,
        and groups with the most expensive channels lose all but one: where it is above 1 all groups are pulled
        alike (`even`), and within and between them the loss decides.
    Residual streams stay whole unless the budget is out of reach, or `streams` asks for them: their channels are the
        most expensive ones, too.
    A warm-up without pull, then the pull; then eps falls, and gates come close to 0 or 1. Where the budget is not met
        when eps begins to fall, the open gates of least |a| are shut, and a note says how many.
    Gates are divided by g(1), so that neither their insertion nor the fall of eps changes what the network computes.
    No weight decay on gates: it would close all of them, whatever they cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from secateur._hints import few
from secateur._protocols import BoolArray, FloatArray
from secateur.errors import ModelError
from secateur.methods.contract import Method, Settings
from secateur.methods.gdp.polarization import SoftCost, reach, smooth_count
from secateur.methods.kit.aim import CLOSE, Aim
from secateur.methods.kit.floors import keep_streams
from secateur.methods.kit.folded_gates import FoldedGates, check_folded, foldable
from secateur.methods.kit.ranking import Goal, Limits, lower
from secateur.methods.kit.shares import unspent
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.surgery import Result

#: What strength times steps times the mean pull is at least, so that an open gate closes in half of them.
_CLOSES = 8.0


class GDPSettings(Settings):
    """The paper's values are not known: these are of our own."""

    strength: float | None = Field(
        None, ge=0, description="lambda, on the share of the cost above the budget; null: 1, more in a short training"
    )
    eps: list[float] = Field(
        [0.1, 1e-4], min_length=2, max_length=2, description="of the gate, at first and in the end"
    )
    closed: float = Field(1e-3, gt=0, lt=0.5, description="value below which a gate is shut for good")
    even: bool | None = Field(
        None, description="pull all groups alike, not by their price; null: where the training makes strength exceed 1"
    )
    streams: bool = Field(False, description="prune residual streams too; else only if the budget is out of reach")
    phases: list[float] = Field(
        [0.1, 0.6, 0.8],
        min_length=3,
        max_length=3,
        description="shares of training at which the pull begins, at which it ends and eps begins to fall, and ends to",
    )

    @model_validator(mode="after")
    def _in_order(self) -> GDPSettings:
        if not 0 <= self.phases[0] < self.phases[1] < self.phases[2] <= 1:
            raise ValueError(f"phases are {self.phases}: give three shares of training that rise")
        if not 0 < self.eps[1] <= self.eps[0]:
            raise ValueError(f"eps is {self.eps}: give two numbers above 0 that do not rise")
        return self


class GDP(Method):
    """Train with gates in front of what reads channels, under a price on those that are open; shut ones are cut."""

    name = "gdp"
    Config = GDPSettings
    settings: GDPSettings
    comparable = "none"
    #: The numbers behind the gates, over the channels that have one; and which of them are shut.
    a: nn.Parameter
    shut: torch.Tensor

    def prepare(self) -> None:
        """Put gates in front of everything that reads channels which may go."""
        if self.normalise != "none":
            self.notes.append(f"Gates are in one unit everywhere, so normalise={self.normalise!r} was not applied.")
            self.normalise = "none"
        tables = foldable(self)
        self._check_reach()  # while nothing is inserted
        if not self.settings.streams:
            keep_streams(self)
        floors, widths = self.constraints.floors(self.graph), self.graph.widths()
        free = floors < widths
        if not free.any():
            raise ModelError(
                f"Nothing in {type(self.model).__name__} can be gated: every group must stay whole, or is read by more "
                "than convolutions and linear layers; choose another method."
            )
        self.aim = Aim(self.graph, self.budget)
        self.cost = SoftCost(self.graph, self.aim)
        self.gates = FoldedGates(self.model, tables, np.repeat(free, widths))
        self._group = np.repeat(np.arange(len(widths)), widths)[self.gates.live]
        self._floors, self._whole = floors, np.where(free, 0.0, widths)
        self.a = nn.Parameter(torch.ones(len(self._group), device=self.device))
        self.register_buffer("shut", torch.zeros(len(self._group), dtype=torch.bool, device=self.device))
        self._settled = False
        self._kept: BoolArray | None = None  # what a hard evaluation lets through
        self._crossed = 0  # gates that went through zero within a step
        self._follow()
        self.strength = self._strength()
        short = self.settings.strength is None and self.strength > 1
        self.even = short if self.settings.even is None else self.settings.even

    def _strength(self) -> float:
        """lambda; by default so that an open gate closes in half of the time there is."""
        if self.settings.strength is not None:
            return self.settings.strength
        begin, end, _ = self.settings.phases
        prices = self.cost.at(self.graph.widths().astype(np.float64))[1][self._group]  # c_u / F0 of every gate
        return float(max(1.0, _CLOSES / max((end - begin) * self.steps * prices.mean(), 1e-12)))

    def undecayed(self) -> Iterable[nn.Parameter]:
        """The gates."""
        return (self.a,)

    # ------------------------------------------------------------------------------------------------- training

    @property
    def eps(self) -> float:
        """eps now: as at first until the pull ends, then falling exponentially."""
        (first, last), (_, begin, end) = self.settings.eps, self.settings.phases
        fallen = min(max((self.progress - begin) / (end - begin), 0.0), 1.0)
        return float(first * (last / first) ** fallen)

    def opened(self) -> torch.Tensor:
        """g of every gate, in single precision; exactly 0 where it is shut."""
        with torch.autocast(self.device.type, enabled=False):
            return torch.where(self.shut, 0.0, smooth_count(self.a.float(), self.eps))

    def _factors(self) -> torch.Tensor:
        """What gates multiply by: g(a) / g(1)."""
        factors = self.opened() * (1 + self.eps)
        return factors if self._kept is None else factors * torch.from_numpy(self._kept).to(factors)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output under its gates; in training they stand until the backward pass is over."""
        self.gates.let(self._factors()[None])
        if self.training and torch.is_grad_enabled():
            return self.model(*args, **keywords)
        try:
            return self.model(*args, **keywords)
        finally:
            self.gates.clear()

    def loss(self) -> torch.Tensor:
        """lambda max(0, F / F0 - r), with the gradient of lambda F / F0 in its linear form until the budget is met."""
        if not self._pulls():
            return torch.zeros((), device=self.device)
        opened = self.opened()
        share, prices = self.cost.at(self._soft(opened))
        each = prices[self._group]
        if self.even:
            each = np.full(len(each), each.mean())
        pulled = torch.from_numpy(each * self._above_floors()).to(opened)
        linear = (pulled * opened).sum()  # sum_u S_u c_u / F0, c_u held
        return self.strength * (linear - linear.detach() + max(0.0, share - self.aim.goal))

    def _pulls(self) -> bool:
        begin, end, _ = self.settings.phases
        return begin <= self.progress < end and not self._met

    def _soft(self, opened: torch.Tensor) -> FloatArray:
        """S_u [groups]; groups without gates are whole."""
        values = opened.detach().cpu().double().numpy()
        return self._whole + np.bincount(self._group, values, len(self._whole))

    def _above_floors(self) -> BoolArray:
        """Gates that may shut: all but the largest of every group, as many as must stay."""
        values = self.a.detach().cpu().double().abs().numpy()
        order = np.lexsort((-values, self._group))  # group by group, the largest first
        first = np.searchsorted(self._group, np.arange(len(self._floors)))
        found = np.empty(len(order), dtype=np.bool_)
        found[order] = np.arange(len(order)) - first[self._group[order]] >= self._floors[self._group[order]]
        return found

    def after_backward(self) -> None:
        """A micro-batch is over."""
        self.gates.clear()

    @torch.no_grad()
    def after_step(self) -> None:
        """Shut gates that are nearly so, hold those that are, and when the pull is over see that the budget is met."""
        super().after_step()
        self.a.masked_fill_(self.shut, 0.0)  # whatever momentum did
        if not self._met:
            self._shut_near()
        if self.progress >= self.settings.phases[1] and not self._settled:
            self._end_pull()

    def _shut_near(self) -> None:
        """Shut gates that are nearly so or went through zero, the smallest first, until the budget is met, by 99%."""
        values, shut = self.a.detach().cpu().numpy(), self.shut.cpu().numpy().copy()
        near = (values <= reach(self.settings.closed, self.eps)) & ~shut
        if near.any():
            order = np.flatnonzero(near & self._above_floors())
            order = order[np.argsort(values[order], kind="stable")]
            self._crossed += int((values[order] < 0).sum())
            for channel in order.tolist():
                shut[channel] = True
                met, close = self.aim.met(self._widths(shut)), self.aim.close(self._widths(shut))
                shut[channel] = close or not met  # finer ones are left to use the budget up
                if met and close:
                    break
            self._shut(shut)

    @torch.no_grad()
    def _shut(self, channels: BoolArray) -> None:
        """Shut these gates for good."""
        self.shut |= torch.from_numpy(channels).to(self.shut.device)
        self.a.masked_fill_(self.shut, 0.0)
        self._follow()

    def _follow(self) -> None:
        """See whether the channels with open gates meet the budget."""
        self._met = self.aim.met(self._widths())

    def _widths(self, shut: BoolArray | None = None) -> dict[str, float]:
        """Channels with open gates, by group; now, or if these were shut."""
        shut = self.shut.cpu().numpy() if shut is None else shut
        counted = self._whole + np.bincount(self._group, ~shut, len(self._whole))
        return dict(zip(self.aim.groups, counted.tolist(), strict=True))

    def _end_pull(self) -> None:
        """The end of the pull: shut what the budget still asks for, and say so."""
        self._settled = True
        if not self._met:
            masks = self.plan().masks
            kept = np.concatenate([masks[name] for name in self.aim.groups])[self.gates.live]
            missing = ~kept & ~self.shut.cpu().numpy()
            self.notes.append(
                f"When the pull was over the budget was not met: the {int(missing.sum())} of {len(missing)} gates "
                "nearest to zero were shut. Train longer, or raise strength."
            )
            self._shut(missing)
        if self._crossed:
            self.notes.append(
                f"{self._crossed} gates went through zero within a step: the pull is strong for this learning rate; "
                "lower strength if accuracy suffers."
            )
        widths = self._widths()
        least = [n for n, floor in zip(widths, self._floors, strict=True) if widths[n] <= floor < self.aim.groups[n]]
        if least:
            self.notes.append(f"Groups down to the fewest channels that may stay (no block is removed): {few(least)}.")

    # ------------------------------------------------------------------------------------------------ the result

    def score(self) -> dict[str, FloatArray]:
        """a^2 of open gates, 0 of shut ones; channels without a gate stay."""
        every = np.full(int(self.graph.widths().sum()), np.inf)
        values = self.a.detach().cpu().double().square().numpy()
        every[self.gates.live] = np.where(self.shut.cpu().numpy(), 0.0, values)
        every[np.isinf(every)] = 1.0 + values.max()
        parts = np.split(every, np.cumsum(self.graph.widths())[:-1])
        return dict(zip(self.aim.groups, parts, strict=True))

    def plan(self) -> Plan:
        """Channels with open gates: where they cost too much the smallest go, where too little others fill up."""
        scores = self.score()
        if not self._met:
            opened = {name: values > 0 for name, values in scores.items()}
            floors = dict(zip(opened, self._floors.tolist(), strict=True))
            rules = Limits(floors, steps=self.constraints.steps(self.graph), close=CLOSE, exchange=True)
            kept = lower(self.graph, opened, scores, [Goal.of(self.graph.costs, self.aim)], rules, self.allocator)
            scores = {name: np.where(kept[name], values, 0.0) for name, values in scores.items()}
        plan = self._allocate(scores)
        plan.provenance.pop("undecided", None)  # which of the shut ones fill up makes no difference
        why = "what does not stay has a gate that is shut, and no channel of these fits in"
        plan.provenance |= unspent(self.graph, self.budget, plan.widths, why) | {"criterion": self.name}
        return plan

    def plain(self) -> nn.Module:
        """A copy with the gates multiplied into the weights that read a channel: W[:, i] <- W[:, i] g_i."""
        twin = super().plain()
        with torch.no_grad():
            self.gates.fold(twin, self._factors())
        return twin

    def check(self, result: Result) -> None:
        """VerificationError unless the narrow network computes what the gated one with hard masks does."""
        check_folded(self, result, self._hard(result.plan))

    def metrics(self) -> dict[str, float]:
        """Soft and hard cost, and which shares of the gates are shut, between (g below 1/2), and open."""
        opened = self.opened().detach()
        shut = float(self.shut.float().mean())
        between = float(((opened < 0.5) & ~self.shut).float().mean())
        widths = self._widths()
        return {
            "soft": self.cost.at(self._soft(opened))[0],
            "flops": self.aim.cost(widths)["macs"] / max(self.aim.full["macs"], 1.0),
            "shut": shut,
            "between": between,
            "open": 1 - shut - between,
            "eps": self.eps,
        }

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The gates as they are, and those of the plan alone."""
        return {"soft": nullcontext(), "hard": self._hard()}

    @contextmanager
    def _hard(self, plan: Plan | None = None) -> Iterator[None]:
        masks = (plan or self.plan()).masks
        before = self._kept
        self._kept = np.concatenate([masks[name] for name in self.aim.groups])[self.gates.live]
        try:
            yield
        finally:
            self._kept = before

    def state(self) -> dict[str, Any]:
        """The step, whether the pull is over, what crossed zero, and what was said."""
        own = {"settled": self._settled, "crossed": self._crossed, "notes": list(self.notes)}
        return super().state() | own

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self._settled, self._crossed = bool(state["settled"]), int(state["crossed"])
        self.notes = list(state["notes"])
        self._follow()


ROW = MethodRow(
    name="gdp",
    summary="gates in front of layers, driven to exactly zero or near one by a penalty on cost",
    paper="GDP: Stabilized Neural Network Pruning via Gates with Differentiable Polarization",
    year=2021,
    arxiv="2109.02220",
    needs="training",
    acts="while training",
    granularity="channel",
    fidelity="written from the abstract, a figure's caption and a summary by others, without official code: the "
    "formula of the gates is from memory, unverified; hinge, closing of gates, schedule and penalty strength are a "
    "reconstruction",
    factory=GDP,
    settings=GDPSettings,
    finetunes=False,
    acting=1.0,
    variants=({"strength": 100.0, "eps": [0.1, 0.1], "streams": True, "even": True},),
)
