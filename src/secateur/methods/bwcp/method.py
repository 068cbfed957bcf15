"""Batch-whitening channel pruning: BWCP.

Shao, Yu, Zhang, Xu, Li, Luo: BWCP: Probabilistic Learning-to-Prune Channels for ConvNets via Batch Whitening, 2021
(arXiv:2105.06423; equations as in the ICLR 2022 submission). Every batch norm behind a convolution also whitens: its
output is multiplied by W, a truncated inverse root of the correlation of blocks of channels. A whitened channel is
taken as normal with mean (W beta)_c and deviation |(W gamma)_c|, so that it exceeds delta with probability
P = Phi(((W beta)_c - delta) / |(W gamma)_c|), and a random gate that is open with about that probability multiplies it.
A penalty lambda1 |gamma| + lambda2 beta presses the probabilities down. In the end channels with P < 1/2 go; W and the
batch norm fold into the convolution before them.

Where this differs from the paper, and why:
    The paper finds strengths lambda by hand for every budget. Here a controller moves one strength, up and down, so
        that the cost follows a ramp from the whole network down to the budget; `controller: false` is the paper's way.
    The paper sharpens probabilities by a map it does not name. Here the gate's logit is k (P - 1/2), k growing.
    After `settle` the masks are fixed: random gates near their threshold let through what hard masks cut off, and the
        network trained at the end should be the one that is cut; in a short training most steps are of that phase.
        `settle: 1` is the paper's way.
    The largest strength, warm-up, ramp and k suit short trainings, in which they were tried.
    Until the penalty has taken effect, the level of P at which gates close (1/2 in the paper) is moved as well, so
        that the cost is on its ramp at every moment; `level: false` is the paper's way.
    A network that starts from scratch gets gamma = beta = 1/4: with the paper's 1 and 0 every channel would be below
        the threshold at first, and whitening would multiply what the classifier sees by 4.
    A floor in every group: without it the last layer loses nearly all of its channels first. With the controller the
        penalty acts only on norms whose own channels make a group's mask, and in groups that are above their floor.
    The controller may raise the strength up to 1e-3, five times the fixed strength that was seen to be stable over a
        whole training; it does so while the cost is above its ramp, and the penalty ends where the masks settle.
    At a projection shortcut the mask is the product of two norms' masks, needed before the second norm has run: its
        factor then comes from the running average of its matrix instead of this batch's.
    Norms that no convolution alone feeds (before an activation, behind a concatenation) gate without whitening.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._hints import few
from secateur._protocols import FloatArray
from secateur.allocate import Constraints
from secateur.errors import ModelError
from secateur.graph.modules import call_with_copies, map_tensors, output_tensors
from secateur.graph.norms import places, sources
from secateur.methods.bwcp.gates import Gates, WhitenedNorm, extract, insert
from secateur.methods.bwcp.steering import Ramp, Steering
from secateur.methods.contract import Method, Settings
from secateur.methods.kit.aim import Aim, counts
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.surgery import Result


class BWCPSettings(Settings):
    """Defaults are the paper's where it states one (delta, temperature, size); see each for the rest."""

    delta: float = Field(0.05, ge=0, description="activation threshold a channel must exceed")
    temperature: float = Field(0.5, gt=0, description="of the random gates")
    newton_steps: int = Field(5, ge=1, le=20, description="steps of the inverse root; the paper cites a code with 5")
    momentum: float = Field(0.1, gt=0, le=1, description="of the running average of the inverse root")
    size: int = Field(16, ge=1, description="channels that are whitened together; 1 leaves plain batch norms")
    sharpen: Literal["probability", "logit", "none"] = Field(
        "probability", description="logit of the gate: k (P - 1/2), k logit P, or logit P"
    )
    sharpness: list[float] = Field(
        [10.0, 60.0], min_length=2, max_length=2, description="k when the gates open and at the end"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with gates open wide and no penalty")
    ramp: float = Field(0.3, gt=0, le=1, description="share of the steps after which the budget should be reached")
    settle: float = Field(
        0.4, gt=0, le=1, description="share of the steps after which masks stand; 1: never, as in the paper"
    )
    start: list[float] = Field(
        [0.25, 0.25], min_length=2, max_length=2, description="scale and shift of norms that were never trained"
    )
    floor: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of every group whose gates never close; null: the budget's own share, or less",
    )
    controller: bool = Field(True, description="find the strength of the penalty; false: lambda1 and lambda2 as given")
    lambda1: float = Field(4e-5, ge=0, description="penalty on |gamma| without the controller")
    lambda2: float = Field(8e-5, ge=0, description="penalty on beta without the controller")
    ratio: float = Field(2.0, ge=0, description="lambda1 / lambda2 with the controller")
    strength: float = Field(1e-3, gt=0, description="largest lambda2 the controller may use")
    reward: float = Field(0.2, ge=0, description="largest reward for beta, as a share of the largest strength")
    proportional: float = Field(2.0, ge=0, description="share of the largest strength for an excess cost of 1")
    gain: float = Field(20.0, ge=0, description="the same for an excess of 1 that lasts for the whole training")
    level: bool = Field(True, description="also move the margin at which gates close, so that the ramp is kept to")


class BWCP(Method):
    """Train with random gates on whitened channels; those that stay shut are cut."""

    name = "bwcp"
    Config = BWCPSettings
    settings: BWCPSettings

    def prepare(self) -> None:
        """Swap in norms that whiten and gate; decide which norm makes which group's mask."""
        s, known = self.settings, sources(self.graph)
        found = places(self.graph, known)
        if not found:
            raise ModelError(
                f"{type(self.model).__name__} has no batch norm on channels that can be pruned, which BWCP needs: "
                "choose another method, or a network with batch norms."
            )
        gated = {place.group for place in found}
        self._keep_whole([g.name for g in self.graph.groups if g.name not in gated])
        self.aim = Aim(self.graph, self.budget)
        self.constraints = self._floored()
        least = zip(self.graph.groups, self.constraints.floors(self.graph).tolist(), strict=True)
        modules: dict[str, Any] = dict(self.model.named_modules())
        self.gates = Gates(
            self.graph.groups,
            found,
            {place.norm: modules[place.norm].num_features for place in found},
            floors={group.name: floor for group, floor in least},
            delta=s.delta,
            temperature=s.temperature,
            sharpening=s.sharpen,
            seed=self.seed,
        )
        insert(self.model, self.gates, known.of, size=s.size, newton_steps=s.newton_steps, momentum=s.momentum)
        self._start()
        self.steering = Steering(
            self.gates,
            self.aim,
            Ramp(s.warmup, s.ramp),
            most=s.strength,
            reward=s.reward,
            proportional=s.proportional,
            gain=s.gain,
            level=s.level,
        )
        self._settled: Plan | None = None
        self._press()
        self._follow()

    def _keep_whole(self, names: list[str]) -> None:
        if names:
            self.notes.append(f"Groups without a batch norm stay whole: {few(names)}.")
            self.constraints = self.constraints.keeping(names)

    def _floored(self) -> Constraints:
        """The constraints with a floor in every group.

        Without one, the layer before the classifier loses nearly all of its channels first. A floor at the budget's
        own share is lowered until it leaves a choice: at most 80% of what the budget allows.
        """
        c, goal = self.constraints, self.aim.goal
        given = self.settings.floor
        for floor in [goal * part for part in (1.0, 0.75, 0.5, 0.25, 0.0)] if given is None else [given]:
            found = replace(c, max_ratio=min(c.max_ratio, 1.0 - floor))
            widths = dict(zip(self.aim.groups, found.floors(self.graph).tolist(), strict=True))
            if self.aim.fraction(widths) <= 0.8 * goal:
                break
        return found

    @torch.no_grad()
    def _start(self) -> None:
        """Lift the shift of norms that were never trained, and undo what whitening multiplies them by."""
        trained, (scale, shift) = False, self.settings.start
        for layer in self.gates.layers.values():
            if bool((layer.weight == 1).all()) and bool((layer.bias == 0).all()):
                layer.weight.fill_(scale)
                layer.bias.fill_(shift)
            elif isinstance(layer, WhitenedNorm):
                trained = True
        if trained:
            self.notes.append("The network was trained without whitening, which changes what its layers see at first.")

    # ------------------------------------------------------------------------------------------------- training

    def loss(self) -> torch.Tensor:
        """The penalty: the sum over channels of lambda1 |gamma| + lambda2 beta."""
        lambda1, lambda2 = self._strengths()
        if not self.gates.open or self._settled is not None or not (lambda1 or lambda2):
            return torch.zeros((), device=self.device)
        gamma = torch.cat([layer.weight for layer in self.gates.layers.values()]).float()
        beta = torch.cat([layer.bias for layer in self.gates.layers.values()]).float()
        return (self._pressure.to(gamma.device) * (lambda1 * gamma.abs() + lambda2 * beta)).sum()

    def after_step(self) -> None:
        """Move the schedule on, and now and then the strength."""
        super().after_step()
        opening = not self.gates.open
        self._follow()
        if self._settled is not None or not self.gates.open:
            return
        interval = max(1, self.steps // 500)
        if self.settings.controller and (opening or self.step % interval == 0):
            self.steering.look(self.progress, interval / self.steps)
            self._press()
        if self.progress >= self.settings.settle < 1:
            self._settled = self.plan()
            self.gates.settle(self._settled.masks)

    def _follow(self) -> None:
        """Set what depends on the step: whether gates act, and how sharp they are."""
        warmup, (low, high) = self.settings.warmup, self.settings.sharpness
        since = (self.progress - warmup) / (1 - warmup)
        self.gates.open = since >= 0
        self.gates.sharpness = low + (high - low) * max(since, 0.0)

    def _press(self) -> None:
        """Decide on which channels the penalty acts: with the controller, on those that decide and may still go."""
        layers = self.gates.layers
        if self.settings.controller:
            pressure = self.gates.pressure(reward=self.steering.strength < 0)
            self._pressure = torch.cat([pressure[name] for name in layers])
        else:
            self._pressure = torch.ones(sum(layer.num_features for layer in layers.values()))

    def _strengths(self) -> tuple[float, float]:
        s, strength = self.settings, self.steering.strength
        return (s.ratio * strength, strength) if s.controller else (s.lambda1, s.lambda2)

    # ------------------------------------------------------------------------------------------------ the result

    def score(self) -> dict[str, FloatArray]:
        """z = ((W beta) - delta) / |W gamma| of every channel: the rule P >= 1/2 keeps those with z >= 0."""
        found = self.gates.margins()
        return {g.name: found.get(g.name, np.zeros(g.width)) for g in self.graph.groups}

    def plan(self) -> Plan:
        """What the gates' level keeps where it meets the budget, else the level is moved until it does."""
        if self._settled is not None:
            return Plan(dict(self._settled.masks), dict(self._settled.provenance))
        rule = {g.name: np.ones(g.width, dtype=np.bool_) for g in self.graph.groups}
        rule |= self.gates.hard_masks()
        c, provenance = self.constraints, {"criterion": "bwcp", "budget": self.budget.as_dict()}
        if (
            c.align == 1
            and self.aim.met(counts(rule))
            and (self.aim.close(counts(rule)) or not self.settings.controller)
        ):
            return Plan(rule, provenance | {"moved": 0})
        plan = self._allocate(self.score())
        plan.provenance["moved"] = sum(int((plan.masks[name] != rule[name]).sum()) for name in rule)
        return plan

    def plain(self) -> nn.Module:
        """A copy with whitening folded into the convolutions, and ordinary batch norms."""
        twin = super().plain()
        extract(twin)
        return twin

    def check(self, result: Result) -> None:
        """Compare the narrow network with the gated one under the plan's masks; `agreement` is the relative error."""
        args, keywords = call_with_copies(map_tensors(self.example_inputs, lambda tensor: tensor.to(self.device)))
        modes = self.training, result.model.training
        self.eval()
        result.model.eval()
        with self.gates.fixed(result.plan.masks):
            wanted = output_tensors(self.model(*args, **keywords))
        given = output_tensors(result.model(*args, **keywords))
        self.train(modes[0])
        result.model.train(modes[1])
        self.agreement = max(
            float((w - g).abs().max() / w.abs().max().clamp_min(1e-30)) for w, g in zip(wanted, given, strict=True)
        )
        if not self.agreement <= 1e-4:
            self.notes.append(
                f"The narrow network differs from the gated one by {self.agreement:.1e} of the largest output: "
                "something reads channels that are not gated, or an activation is not zero at zero."
            )

    def metrics(self) -> dict[str, float]:
        """What hard gates would leave of cost and channels, the strength of the penalty, the level of the gates."""
        masks = self.gates.hard_masks() if self._settled is None else self._settled.masks
        widths = counts(masks) if self.gates.open else {}
        every = sum(widths.get(name, width) for name, width in self.aim.groups.items())
        return {
            "flops": self.aim.cost(widths)["macs"] / max(self.aim.full["macs"], 1.0),
            "channels": every / sum(self.aim.groups.values()),
            "strength": self._strengths()[1],
            "level": self.gates.level,
        }

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The random gates of training, and the masks of the plan."""
        return {"soft": self.gates.soft(), "hard": self._planned()}

    @contextmanager
    def _planned(self) -> Iterator[None]:
        with self.gates.fixed(self.plan().masks):
            yield

    def state(self) -> dict[str, Any]:
        """The step, the controller and how many draws were made."""
        kept = (
            None if self._settled is None else {n: np.flatnonzero(m).tolist() for n, m in self._settled.masks.items()}
        )
        return super().state() | self.steering.state() | {"draws": self.gates.draws, "settled": kept}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self.steering.load_state(state)
        self.gates.draws = int(state["draws"])
        if state["settled"] is not None:
            masks = {g.name: np.isin(np.arange(g.width), state["settled"][g.name]) for g in self.graph.groups}
            self._settled = Plan(masks, {"criterion": "bwcp", "budget": self.budget.as_dict()})
            self.gates.settle(masks)
        self._follow()
        self._press()


ROW = MethodRow(
    name="bwcp",
    summary="random gates on whitened channels, open with the probability that a channel is active",
    paper="BWCP: Probabilistic Learning-to-Prune Channels for ConvNets via Batch Whitening",
    year=2021,
    arxiv="2105.06423",
    needs="training",
    acts="while training",
    granularity="channel",
    fidelity="equations from the full text; iterations and momentum of the whitening from the code it cites; the "
    "sharpening function and the controller of the penalty are reconstructions",
    factory=BWCP,
    settings=BWCPSettings,
    begins="new",
    finetunes=False,
    acting=1.0,
    chance="the noise of gates is drawn for every channel by its number",
)
