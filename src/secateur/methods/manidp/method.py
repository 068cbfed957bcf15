"""ManiDP: input-dependent pruning, in which easy images are computed by fewer channels.

Tang, Wang, Xu, Deng, Xu, Tao, Xu: Manifold Regularized Dynamic Network Pruning, CVPR 2021 (arXiv:2103.05861; official
code huawei-noah/Efficient-Computing, Pruning/ManiDP). Beside every convolution inside residual branches a gate looks at
the layer's input and gives each output channel a saliency of the image:

    pi = min(relu(F2 relu(F1 GAP(x)) + b), 1000),   m = pi where pi >= xi, else 0,   z = y m
    L  = CE + lambda sum_l mean_i (w_i mean_c pi_l[i, c])                            complexity
            + gamma sum_l |cos(pi_l) cos(pi_l)^T - cos(f_l) cos(f_l)^T|_F^2 / B^2    similarity
    w_i = 1[CE_i < C] max((C - CE_i) / C, 1e-10)^q,  C = c0 times the mean CE of the epoch before
    r_e = (1 - t) / 2 cos(pi (e + 1) / E) + (1 + t) / 2,   xi_l = the ceil(r_e C_l)-th largest mean saliency of epoch e

The result is the network with its gates (form "gated" of `secateur.forms`): an image alone is computed by its channels.

Where this differs from the authors' code, and why:
    t follows from the budget: while training, from layers that keep a share t of their outputs; in the end the
        largest t at which calibration images cost no more on average than the budget allows, with thresholds that move
        evenly between the mean saliencies of two channels, and on to 0, so that the budget is used up.
    Gates stand where they can in any network: behind the batch norm of a convolution, in front of the ReLU, which
        makes no difference as saliencies are not negative. The first convolution, shortcuts, grouped and depthwise
        convolutions, and layers hardly larger than a gate have none.
    F2 begins at 0, so that the gates are open and training begins with the trained network; `start: kaiming` is the
        code's, with saliencies that scatter from the first step.
    Until an epoch is over, C is c0 times the mean CE of the images seen so far; the code goes through them before.
    A training of fewer than `events` epochs has that many ends of one, in its first three quarters: with three epochs
        the highest thresholds would come with the last step, and nothing would be trained with them.
    Channels that no calibration image opens are cut.
    `deploy: static` is no part of the paper, and an approximation: saliencies become their means over calibration
        images and are folded into weights, and the result is an ordinary network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._distributed import global_sum
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.forms import LayerForm, dense_macs, note_of
from secateur.forms.expected import rows
from secateur.forms.gated import macs_of_images
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.kit.aim import CLOSE
from secateur.methods.kit.answers import kind_of, losses
from secateur.methods.kit.events import ShortEvents
from secateur.methods.manidp.gates import Gate, SiteGates
from secateur.methods.manidp.looking import Seen, look
from secateur.methods.manidp.losses import easiness, similarity, sparsity
from secateur.methods.manidp.sites import Closing, found, kept_of
from secateur.methods.manidp.thresholds import between, kth, largest_rate, remaining
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair import Repair
from secateur.statistics.gather import replayable

_OPEN = -10000.0  # the threshold at first
#: A smaller share of the multiply-accumulates in layers with gates is not worth them.
_WORTH = 0.5
#: How far above the largest saliency the highest threshold is, relative to it.
_ABOVE = 1.01


class ManiDPSettings(Settings):
    """Defaults are those of the authors' README for ResNet-56 on CIFAR-10."""

    sparsity: float = Field(5e-3, ge=0, description="lambda, on the mean saliency of easy images")
    similarity: float = Field(1.0, ge=0, description="gamma, on how like saliencies differ from how like features are")
    hard: float = Field(0.5, gt=0, description="c0: images with more than this times the mean loss are not pressed")
    power: float = Field(1.0, gt=0, description="q, of the weight of an easy image")
    squeeze: int = Field(2, ge=1, le=64, description="hidden units are outputs over this, from 80 outputs up")
    start: Literal["open", "kaiming"] = Field("open", description="F2 at first: 0, or drawn as in the authors' code")
    events: int = Field(
        12, ge=0, description="thresholds of a training of fewer epochs move this often, within epochs; 0: behind these"
    )
    deploy: Literal["dynamic", "static"] = Field(
        "dynamic", description="static: mean saliencies in an ordinary network, an approximation"
    )


class ManiDP(Method):
    """Train gates that look at every image; what they shut is not computed for it."""

    name = "manidp"
    Config = ManiDPSettings
    settings: ManiDPSettings
    xi: torch.Tensor
    numbers: torch.Tensor

    def prepare(self) -> None:
        """Put gates onto convolutions, unless too little of the network can have them."""
        other = [key for key, _ in self.budget.bounds if key != "flops"]
        if other:
            raise BudgetError(
                f"ManiDP computes fewer channels of an image and stores all of them, so that no budget on {other[0]} "
                "can be met: give one on flops alone, which holds for the mean over images."
            )
        self.sites = found(self.graph, self.constraints, self.settings.squeeze)
        self.closing = Closing(self.graph, self.sites, self.constraints)
        self._images = rows(self.graph.example_inputs)
        self._limit = self.budget.limits(self.graph.cost())["macs"] / self._images
        self._check_sites()
        like = next(self.model.parameters())
        self.gates = nn.ModuleList(
            Gate(site, like, self.settings.start, self.seed * 1009 + k) for k, site in enumerate(self.sites)
        )
        self.register_buffer("xi", torch.full((len(self.sites),), _OPEN, device=like.device))
        # of the epoch: images, sum of their CE, open channels, all; of the last one: mean CE (-1: none), open share
        self.register_buffer("numbers", torch.tensor([0.0, 0, 0, 0, -1, 1], dtype=torch.float64, device=like.device))
        for k, site in enumerate(self.sites):
            self.register_buffer(f"sums{k}", torch.zeros(site.outputs, dtype=torch.float64, device=like.device))
            self.register_buffer(f"means{k}", torch.zeros(site.outputs, dtype=torch.float64, device=like.device))
        self.epochs = 0
        self.short = ShortEvents(self.settings.events, self.steps)
        self.target = largest_rate(lambda rate: self._share_cost(rate) <= self._limit)  # t while training
        self.work = SiteGates(self.model, self.sites, self.gates)
        self._losses_of: torch.Tensor | None = None
        self._known: tuple[float, torch.Tensor, Seen] | None = None  # what calibration has found

    def _check_sites(self) -> None:
        macs, gated = dense_macs(self.graph, None), {site.name for site in self.sites}
        share = sum(macs[name] for name in gated) / max(sum(macs.values()), 1)
        if share < _WORTH:
            raise ModelError(
                f"ManiDP puts gates onto convolutions inside a network, and {share:.0%} of the multiply-accumulates "
                f"of {type(self.model).__name__} are in such: choose another method."
            )
        shut = [np.zeros(site.outputs, dtype=np.bool_) for site in self.sites]
        plan = Plan(self.closing.masks(shut))
        one = torch.ones(1, len(self.sites), dtype=torch.int64)
        least = self._left(plan) if self.settings.deploy == "static" else float(self._counts(plan, one, one).mean())
        if least > self._limit:
            raise BudgetError(
                f"The budget {self.budget} is out of reach: with one channel open in every gated layer an image costs "
                f"{least:,.0f} of the flops' multiply-accumulates, and it allows {self._limit:,.0f}; raise it."
            )

    def _check_reach(self) -> None:
        """Asked before `prepare`, which knows where gates can stand."""

    def undecayed(self) -> Iterable[nn.Parameter]:
        """The gates."""
        return self.gates.parameters()

    # ---------------------------------------------------------------------------------------------------- what it costs

    def _left(self, plan: Plan) -> float:
        """Multiply-accumulates of one image in the cut network, as if it had no gates."""
        return self.graph.cost(plan).macs / self._images

    def _counts(self, plan: Plan, active: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Multiply-accumulates of images [images] in the cut network with gates; active, read: as of `Seen`."""
        slices, total = self.graph.slices(plan), torch.full((len(active),), self._left(plan), dtype=torch.float64)
        for k, site in enumerate(self.sites):
            outputs, inputs = (len(kept) for kept in kept_of(slices, site))
            total += site.gate_macs(inputs, outputs) - site.unit * inputs * outputs
            there = read[:, k] if site.columns else torch.full_like(read[:, k], inputs)
            total += macs_of_images(site.unit, active[:, k], there)
        return total

    def _share_cost(self, rate: float) -> float:
        """mac(t): as if every gate left this share of its channels, in the whole network."""
        total = self.graph.cost().macs / self._images
        for site in self.sites:
            dense = site.unit * site.inputs * site.outputs
            total += site.gate_macs(site.inputs, site.outputs) + dense * (rate * (rate if site.columns else 1) - 1)
        return total

    # -------------------------------------------------------------------------------------------------------- training

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output, with gates at the thresholds of the last epoch."""
        self._losses_of = None
        if self.work.thresholds is not None:  # somebody looks at others
            return self._ran(*args, **keywords)
        with self.work.at(self.xi):
            return self._ran(*args, **keywords)

    def _ran(self, *args: Any, **keywords: Any) -> Any:
        output = self.model(*args, **keywords)
        if self.training and torch.is_grad_enabled():
            self._sum()
        return output

    @torch.no_grad()
    def _sum(self) -> None:
        """Sums of saliencies, of training images only."""
        for k, pi in self.work.pi.items():
            self.get_buffer(f"sums{k}").add_(pi.detach().double().sum(0))
            self.numbers[2] += (self.work.masks[k] > 0).sum()
            self.numbers[3] += self.work.masks[k].numel()
        self.numbers[0] += len(self.work.pi[0])

    def after_forward(self, output: Any, target: Any) -> None:
        """CE_i of the images, or what is its like where answers are no classes (`kit.answers`)."""
        kind = kind_of(output, target) if isinstance(output, torch.Tensor) else None
        if kind is None:
            raise ConfigError(
                "ManiDP closes more gates on images that are answered well, and outputs and targets do not show which "
                "those are: give class numbers or as many targets as outputs, or choose another method."
            )
        self._losses_of = losses(output, target, kind)
        self.numbers[1] += self._losses_of.detach().double().sum()

    def loss(self) -> torch.Tensor:
        """lambda L_sp + gamma L_sim."""
        if not self.work.features:  # nothing was computed with gradients
            return super().loss()
        saliencies, features = zip(*((pi, self.work.features[k]) for k, pi in self.work.pi.items()), strict=True)
        total = self.settings.similarity * similarity(saliencies, features)
        if self._losses_of is None:  # nobody said what was asked for
            return total
        last = self.numbers[4] if self.numbers[4] >= 0 else self.numbers[1] / self.numbers[0]
        limit = (self.settings.hard * last).clamp(min=1e-12).float()
        weights = easiness(self._losses_of, limit, self.settings.power)
        return total + self.settings.sparsity * sparsity(saliencies, weights)

    def after_backward(self) -> None:
        """A micro-batch is over."""
        self._losses_of = None
        self.work.forget()

    def after_step(self) -> None:
        """In a short training, what else stands behind an epoch."""
        super().after_step()
        if self.short.due(self.step, self.epochs):
            self._end(self.short.over / self.short.most, move=self.short.over > 1)

    def after_epoch(self) -> None:
        """Means of the epoch, and from the second one on thresholds."""
        if not self.short.over:
            self.epochs += self._end(self.progress, move=self.epochs > 0)
        elif self.short.over == self.short.most:
            self._end(1.0, move=False)

    @torch.no_grad()
    def _end(self, done: float, *, move: bool) -> bool:
        """Means since the last end, and thresholds, if they are to move; False where no image was seen."""
        numbers = global_sum(self.numbers[:4])
        if not numbers[0]:
            return False
        rate = remaining(self.target, done)
        for k in range(len(self.sites)):
            sums, means = self.get_buffer(f"sums{k}"), self.get_buffer(f"means{k}")
            means.copy_(global_sum(sums) / numbers[0])
            if move:
                self.xi[k] = kth(means, rate)
            sums.zero_()
        self.numbers[4], self.numbers[5] = numbers[1] / numbers[0], numbers[2] / numbers[3]
        self.numbers[:4] = 0
        return True

    # ----------------------------------------------------------------------------------------------------- calibration

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Find the thresholds at which these images cost on average what the budget allows; targets do not matter."""
        shown = replayable(batches)
        first = self._look(shown, torch.full_like(self.xi, _OPEN))
        means = (
            [self.get_buffer(f"means{k}").cpu() for k in range(len(self.sites))]
            if self.epochs or self.short.over
            else first.saliencies
        )
        tried: dict[float, tuple[torch.Tensor, Seen]] = {}

        def met(rate: float) -> bool:
            xi = torch.tensor([between(m, rate, _ABOVE * top) for m, top in zip(means, first.tops, strict=True)])
            tried[rate] = (xi, self._look(shown, xi.to(self.device)))
            return self._cost_of(tried[rate][1]) <= self._limit

        rate = largest_rate(met, most=2.0)
        if not met(rate):
            raise BudgetError(
                f"The budget {self.budget} is out of reach: with thresholds above all saliencies of open gates an "
                f"image costs {self._cost_of(tried[rate][1]):,.0f} multiply-accumulates on average; train longer."
            )
        self._known = (rate, *tried[rate])

    def _look(self, batches: Iterable[tuple[Any, Any]], xi: torch.Tensor) -> Seen:
        """What the images do at these thresholds."""
        return look(self.model, self.work, batches, xi)

    def _cost_of(self, seen: Seen) -> float:
        plan = Plan(self.closing.masks(seen.opened))
        if self.settings.deploy == "static":
            return self._left(plan)
        return float(self._counts(plan, seen.active, seen.read).mean())

    def _found(self) -> tuple[float, torch.Tensor, Seen]:
        """The rate, the thresholds, and what images do at them."""
        if self._known is None:
            raise ConfigError(
                "ManiDP has seen no images to count their cost on: call collect(batches, loss) before finish()."
            )
        return self._known

    # ---------------------------------------------------------------------------------------------------------- result

    def plan(self) -> Plan:
        """Channels that no calibration image opens go; what images cost on average is noted."""
        rate, _, seen = self._found()
        plan = Plan(self.closing.masks(seen.opened))
        plan.provenance = {"budget": self.budget.as_dict(), "rate": rate, "training_rate": self.target}
        if self.settings.deploy == "static":
            plan.provenance["notes"] = [
                "The network is an approximation of what was trained: saliencies, which depend on the image, are "
                f"replaced by their means over {len(seen.active)} calibration images."
            ]
        else:
            plan.provenance |= note_of(self._counts(plan, seen.active, seen.read))
        if self._cost_of(seen) < CLOSE * self._limit:
            plan.provenance["unspent"] = (
                "Gates that are a little more open cost more than the budget allows, or all are as open as they get: "
                "less than 99% of it is used."
            )
        return plan

    def forms(self, plan: Plan) -> dict[str, LayerForm]:
        """The gates of all sites, as wide as the plan leaves their layers."""
        if self.settings.deploy == "static":
            return {}
        _, xi, _ = self._found()
        slices, forms = self.graph.slices(plan), dict[str, LayerForm]()
        for k, site in enumerate(self.sites):
            outputs, inputs = (torch.from_numpy(kept).to(self.device) for kept in kept_of(slices, site))
            gate = self.gates[k]
            tensors = {
                "reduce": gate.get_parameter("reduce").detach()[:, inputs].clone(),
                "expand": gate.get_parameter("expand").detach()[outputs].clone(),
                "shift": gate.get_parameter("shift").detach()[outputs].clone(),
            }
            data = {"inputs": len(inputs), "outputs": len(outputs), "hidden": site.hidden, "norm": site.norm}
            forms[site.name] = LayerForm("gated", {**data, "threshold": float(xi[k]), "columns": site.columns}, tensors)
        return forms

    def plain(self) -> nn.Module:
        """A copy without gates; deployed statically, with their means over calibration images folded in."""
        twin = super().plain()
        self.work.taken_out(twin)
        if self.settings.deploy == "static" and self._known is not None:
            for site, mean in zip(self.sites, self._known[2].masks, strict=True):
                for tensor in twin.get_submodule(site.end).parameters():  # z = (a y + b) m
                    tensor.data *= mean.to(tensor).view(-1, *[1] * (tensor.dim() - 1))
        return twin

    def check_repairs(self, repairs: Sequence[Repair]) -> None:
        """Repairs see a network without its gates."""
        if repairs:
            raise ConfigError(
                f"The repair {repairs[0].name!r} would adapt the network to what it computes without gates: leave it "
                "out."
            )

    def metrics(self) -> dict[str, float]:
        """The share of channels that were open in the last epoch, and that whose mean saliencies set the thresholds."""
        return {"active": float(self.numbers[5]), "rate": remaining(self.target, self.progress)}

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """With the thresholds that the budget leaves, once they are known."""
        return {} if self._known is None else {"hard": self._hard()}

    @contextmanager
    def _hard(self) -> Iterator[None]:
        _, xi, seen = self._found()
        if self.settings.deploy == "static":
            with self.work.at(xi.to(self.device), constant=[m.float().to(self.device) for m in seen.masks]):
                yield
            return
        slices, stays = self.graph.slices(self.plan()), list[torch.Tensor]()
        for site in self.sites:
            kept = torch.zeros(site.outputs)
            kept[torch.from_numpy(kept_of(slices, site)[0])] = 1
            stays.append(kept.to(self.device))
        with self.work.at(xi.to(self.device), stays=stays):
            yield

    def state(self) -> dict[str, Any]:
        """The step, and epochs that are over."""
        return super().state() | {"epochs": self.epochs, "short": self.short.over}

    def load_state(self, state: Any) -> None:
        """Go on from there."""
        super().load_state(state)
        self.epochs, self.short.over = int(state["epochs"]), int(state["short"])


ROW = MethodRow(
    name="manidp",
    summary="channels that a gate shuts for the image are skipped, more of them for easy images",
    paper="Manifold Regularized Dynamic Network Pruning",
    year=2021,
    arxiv="2103.05861",
    needs="training",
    acts="while training",
    asks="class scores",
    granularity="single image's channel",
    fidelity="follows the authors' code (ResNets on CIFAR-10); added here: the budget, gates in other kinds of "
    "networks, gates that begin open, removal of channels that never open, and skipping only where it pays",
    factory=ManiDP,
    settings=ManiDPSettings,
    finetunes=False,
    acting=1.0,
    result="per input",
    chance="the weights of gates are drawn, for every channel by its number",
    variants=({"deploy": "static"}, {"start": "kaiming"}),
)
