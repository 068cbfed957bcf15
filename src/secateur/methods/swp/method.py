"""SWP: stripe-wise pruning; every filter gets a shape of its own.

Meng et al.: Pruning Filter in Filter, NeurIPS 2020 (arXiv:2009.14410). A k x k filter is k^2 stripes, 1x1 filters over
all inputs. The filter skeleton I [N, k, k], all ones at first, is learnt with the weights:

    min  L(f(x; W * I)) + alpha sum |I|                                      (3)
    Q = |I| > delta,  I <- I Q                       while training; what falls to delta stays out
    out[n, h, w] = sum over Q[n, i, j] of sum_c (W I)[n, c, i, j] xpad[c, h s + i, w s + j]

Channels whose filters have lost every stripe are cut. What stays is computed stripe by stripe (form "offsets" of
`secateur.forms`), with I folded into W.

Where this differs from the authors' code, and why:
    (alpha, delta) decide in the paper, over 160 epochs. Here the smallest threshold from delta up at which channels
        and stripes cost no more than the budget does. Most of that is asked for while there is time to make up for it:
        within `ramp` of the training the bound on the cost falls to the budget, and stripes with the smallest |I| are
        dropped to meet it as if they had fallen to delta, which a note reports. Where the penalty alone is fast enough
        none is. A training of 13 epochs with the paper's alpha drops no stripe at all.
    Q is applied after the optimiser's step as well, or the last step's momentum would leave tiny values.
    A channel goes if all filters that make it are empty, or if every layer that reads it is; not only inside blocks.
    A branch that has lost all stripes is still computed: the constant of its norm stays, and so does the ReLU after
        the sum. The code replaces it by the shortcut alone, which is a different function.
    Pointwise convolutions have no skeleton (a stripe is a filter there) unless `pointwise`; in the code those of
        shortcuts have one without penalty. Depthwise convolutions, where a stripe is a single weight, have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from secateur._protocols import BoolArray
from secateur.allocate import Constraints
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.forms import LayerForm, cost, dense_macs
from secateur.graph import Cost
from secateur.methods.contract import Method, Settings
from secateur.methods.kit.aim import CLOSE
from secateur.methods.row import MethodRow
from secateur.methods.swp.skeleton import Skeleton, taken_out
from secateur.methods.swp.stripes import Stripes, chosen
from secateur.plan import Plan
from secateur.repair import Repair

#: How often the bound on the cost is looked at while it falls.
_LOOKS = 20


class SWPSettings(Settings):
    """Defaults are those of the authors' code for CIFAR-10."""

    alpha: float = Field(1e-5, ge=0, le=1, description="strength of the L1 penalty on the skeleton")
    delta: float = Field(0.01, ge=0, lt=1, description="at |I| of this or less a stripe goes while training")
    ramp: list[float] | None = Field(
        [0.2, 0.6],
        min_length=2,
        max_length=2,
        description="shares of training between which the bound on the cost falls to the budget; null: after it alone",
    )
    pointwise: bool = Field(False, description="give 1x1 convolutions a skeleton, too: their stripes are whole filters")

    @model_validator(mode="after")
    def _in_order(self) -> SWPSettings:
        if self.ramp is not None and not 0 <= self.ramp[0] < self.ramp[1] <= 1:
            raise ValueError(f"ramp {self.ramp}: shares between 0 and 1, the second the larger one, are needed")
        return self


class SWP(Method):
    """Train with a skeleton on every filter, drop stripes that fall to the threshold, deploy what is left of them."""

    name = "swp"
    Config = SWPSettings
    settings: SWPSettings

    def prepare(self) -> None:
        """Put skeletons onto convolutions, unless too little of the network has stripes."""
        if self.budget.target is not None:
            raise BudgetError("Times of single stripes are not predicted: give SWP a budget on flops or params.")
        layers = chosen(self.graph, self.constraints, pointwise=self.settings.pointwise)
        self.stripes = Stripes(self.graph, layers, self.constraints)
        macs = dense_macs(self.graph, None)
        able = chosen(self.graph, Constraints(), pointwise=self.settings.pointwise)
        share = sum(macs.get(name, 0) for name in able) / max(sum(macs.values()), 1)
        if share < 0.5:
            raise ModelError(
                f"SWP removes kernel positions, and {share:.0%} of the multiply-accumulates of this network are in "
                "convolutions that have several: set pointwise to true, or take another method."
            )
        self._check_floor()
        modules = dict(self.graph.model.named_modules())
        self.skeletons = nn.ModuleList(Skeleton(modules[name]) for name in layers)
        self.names = tuple(layers)
        self._pressed = 0  # stripes that were dropped for the budget

    def _check_floor(self) -> None:
        least = {name: np.zeros(shape, dtype=np.bool_) for name, shape in self.stripes.shapes.items()}
        found = self._cost(self._planned(least))
        for key, limit in self.budget.limits(self.graph.cost()).items():
            if getattr(found, key) > limit:
                raise BudgetError(
                    f"The budget {self.budget} is out of reach: without any stripe {getattr(found, key):,} {key} are "
                    f"left, and it allows {limit:,.0f}; raise it, or keep fewer layers whole."
                )

    def _check_reach(self) -> None:
        """Asked before `prepare`, which knows what can go."""

    @property
    def _by_name(self) -> dict[str, Skeleton]:
        return dict(zip(self.names, self.skeletons, strict=True))  # type: ignore[arg-type]

    # ---------------------------------------------------------------------------------------------------- training

    def loss(self) -> torch.Tensor:
        """Alpha sum |I|, the second term of (3)."""
        return self.settings.alpha * torch.stack([s.values.abs().sum() for s in self._by_name.values()]).sum()

    def after_backward(self) -> None:
        """Gradients of what is out: of the skeleton, and of norms behind filters that are empty."""
        for skeleton in self._by_name.values():
            skeleton.mask_gradient()
        for vector, stays in self._vectors():
            if vector.grad is not None:
                vector.grad *= stays

    @torch.no_grad()
    def after_step(self) -> None:
        """Drop stripes, and with the last of a channel what its norm adds."""
        super().after_step()
        for skeleton in self._by_name.values():
            skeleton.threshold(self.settings.delta)
        if (bound := self._bound(self.step)) != self._bound(self.step - 1):
            kept = self._kept(bound)[0]
            self._pressed += sum(self._by_name[name].drop(torch.from_numpy(stays)) for name, stays in kept.items())
        for vector, stays in self._vectors():
            vector.mul_(stays)

    def _bound(self, step: int) -> float:
        """How far the bound on the cost has come behind a step, from the whole network (0) to the budget (1)."""
        if self.settings.ramp is None:
            return 0.0
        first, last = self.settings.ramp
        share = (step / self.steps - first) / (last - first)
        return int(min(max(share, 0.0), 1.0) * _LOOKS + 1e-9) / _LOOKS

    def _vectors(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Affines and biases of channels that skeletons alone make, with 1 where a stripe is left and 0 elsewhere."""
        parameters = dict(self.model.named_parameters())
        for name, made in self.stripes.vectors(self._stays()).items():
            vector = parameters[name]
            yield vector, torch.from_numpy(made).to(vector)

    def _stays(self) -> dict[str, BoolArray]:
        return {name: s.stays.cpu().numpy() for name, s in self._by_name.items()}

    def state(self) -> dict[str, Any]:
        """The step, and how many stripes were dropped for the budget."""
        return super().state() | {"pressed": self._pressed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self._pressed = int(state["pressed"])

    # ------------------------------------------------------------------------------------------------------ result

    def _kept(self, bound: float = 1.0) -> tuple[dict[str, BoolArray], float]:
        """Stripes above the smallest threshold from delta up that meets the budget, and that threshold.

        bound: between the whole network (0) and the budget (1), what is to be met.
        """
        sizes = {name: s.values.detach().abs().cpu().double().numpy() for name, s in self._by_name.items()}
        flat = np.concatenate([size.ravel() for size in sizes.values()])
        order = np.argsort(flat, kind="stable")
        whole = self.graph.cost()
        limits = {
            key: getattr(whole, key) + bound * (limit - getattr(whole, key))
            for key, limit in self.budget.limits(whole).items()
        }

        def without(count: int) -> dict[str, BoolArray]:
            stays = np.ones(len(flat), dtype=np.bool_)
            stays[order[:count]] = False
            parts = np.split(stays, np.cumsum([size.size for size in sizes.values()])[:-1])
            return {name: part.reshape(sizes[name].shape) for name, part in zip(sizes, parts, strict=True)}

        def met(count: int) -> bool:
            found = self._cost(self._planned(without(count)))
            return all(getattr(found, key) <= limit for key, limit in limits.items())

        low, high = int((flat <= self.settings.delta).sum()), len(flat)
        while low < high:  # the cost falls with every stripe that goes
            middle = (low + high) // 2
            low, high = (low, middle) if met(middle) else (middle + 1, high)
        return without(low), float(flat[order[low - 1]]) if low else 0.0

    def _planned(self, kept: Mapping[str, BoolArray]) -> Plan:
        """Channels and forms that follow from which stripes stay."""
        plan = Plan(self.stripes.masks(kept))
        plan.forms = self._formed(plan, kept)
        return plan

    def _formed(self, plan: Plan, kept: Mapping[str, BoolArray]) -> dict[str, LayerForm]:
        slices, found = self.graph.slices(plan), dict[str, LayerForm]()
        unread = self.stripes.unread(kept)
        for name, stays in kept.items():
            index = slices.get(f"{name}.weight", (None,))[0]
            rows = (stays if index is None else stays[index]) & (name not in unread)
            if not rows.all():
                flat = rows.reshape(len(rows), -1)
                kernel = [int(n) for n in rows.shape[1:]]
                found[name] = LayerForm(
                    "offsets", {"kernel": kernel, "kept": [np.flatnonzero(r).tolist() for r in flat]}
                )
        return found

    def _cost(self, plan: Plan) -> Cost:
        return cost(self.graph, plan)

    def plan(self) -> Plan:
        """Channels that have lost every stripe go; how far the threshold is from delta is told."""
        kept, threshold = self._kept()
        plan = self._planned(kept)
        plan.forms = {}  # `forms` gives them, for this plan or one that is made anew around a size in the code
        total, left = sum(m.size for m in kept.values()), sum(int(m.sum()) for m in kept.values())
        plan.provenance = {"budget": self.budget.as_dict(), "threshold": threshold, "stripes": left, "of": total}
        dropped = sum(int((~s.stays).sum()) for s in self._by_name.values())
        if threshold > 2 * self.settings.delta:
            plan.provenance["notes"] = [
                f"The budget needs a threshold of {threshold:.3g}, and training dropped stripes at "
                f"{self.settings.delta:g}: more than twice that costs accuracy; train longer, or raise alpha."
            ]
        if self._pressed:
            plan.provenance["pressed"] = self._pressed
            self._note([
                f"{self._pressed} of the {dropped} stripes that went while training were dropped for the budget, not "
                "by the penalty: the training is short for this alpha."
            ])  # fmt: skip
        used = self._cost(self._planned(kept))
        limits = self.budget.limits(self.graph.cost())
        if max(getattr(used, key) / limit for key, limit in limits.items()) < CLOSE:
            plan.provenance["unspent"] = (
                "Training dropped more stripes than the budget asks for, or the last one takes whole channels with it: "
                "less than 99% of it is used."
            )
        return plan

    def forms(self, plan: Plan) -> dict[str, LayerForm]:
        """The stripes of every convolution that are left, in terms of its filters after the cut."""
        return self._formed(plan, self._kept()[0])

    def plain(self) -> nn.Module:
        """A copy with W <- W I, in which nothing of the skeletons is left."""
        twin = super().plain()
        taken_out(twin, self._by_name)
        return twin

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Zeros where stripes go, so that what follows sees the network as it is going to be."""
        kept = self._kept()[0]
        parameters = dict(model.named_parameters())
        for name, stays in kept.items():
            parameters[f"{name}.weight"].mul_(torch.from_numpy(stays[:, None]).to(parameters[f"{name}.weight"]))
        for name, made in self.stripes.vectors(kept).items():
            parameters[name].mul_(torch.from_numpy(made).to(parameters[name]))

    def check_repairs(self, repairs: Sequence[Repair]) -> None:
        """Stripes that are gone stay gone."""
        other = [repair.name for repair in repairs if repair.name != "batchnorm"]
        if other:
            raise ConfigError(f"The repair {other[0]!r} would fill stripes that SWP has removed: leave it out.")

    def metrics(self) -> dict[str, float]:
        """The share of stripes that are left."""
        stays = self._stays().values()
        return {"stripes": sum(int(m.sum()) for m in stays) / sum(m.size for m in stays)}

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """With the stripes that the budget leaves, alone."""
        return {"hard": self._hard()}

    @contextmanager
    def _hard(self) -> Iterator[None]:
        kept = self._kept()[0]
        parameters = dict(self.model.named_parameters())
        vectors = self.stripes.vectors(kept)
        before = {name: parameters[name].detach().clone() for name in vectors}
        try:
            for name, skeleton in self._by_name.items():
                skeleton.look_at(torch.from_numpy(kept[name]).to(skeleton.values))
            with torch.no_grad():
                for name, made in vectors.items():
                    parameters[name].mul_(torch.from_numpy(made).to(parameters[name]))
            yield
        finally:
            for skeleton in self._by_name.values():
                skeleton.look_at(None)
            with torch.no_grad():
                for name, value in before.items():
                    parameters[name].copy_(value)


ROW = MethodRow(
    name="swp",
    summary="single kernel positions of each filter, by a skeleton that is learnt with the weights",
    paper="Pruning Filter in Filter",
    year=2020,
    arxiv="2009.14410",
    needs="training",
    acts="while training",
    granularity="stripe and channel",
    fidelity="follows the authors' code (CIFAR-10); the paper's threshold of 0.05 and its ImageNet recipe from "
    "memory; added here: the budget, coupled channels, exact results where branches become empty, and stripes only "
    "where they pay",
    factory=SWP,
    settings=SWPSettings,
    begins="new",
    finetunes=False,
    result="forms",
    variants=({"pointwise": True, "alpha": 0.01},),
)
