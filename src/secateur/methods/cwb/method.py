"""Channel pruning in a white box: class-wise masks, and a vote.

Zhang, Lin, Lin, Chen, Huang, Wu, Tian, Ji: Carrying out CNN Channel Pruning in a White Box, IEEE TNNLS 2023
(arXiv:2104.11883; official code zyxxmu/White-Box). Every channel has a learnable entry for each class, M [K, C], all
ones at first. In training a sample of class t sees the channel multiplied by its gate

    g = D @ M,    D[n, k] = 1 where k = t_n, else a fresh draw from U[0, 1) for every layer and forward pass,

so that entries learn what the channel does for their class, and the random rest keeps gates from telling the answer.
The loss gets lambda sum_l |sum_k M_l[k]|_2. In the end channels vote with |sum_k M[k, c]|, one threshold over all
layers with a floor in each; see `secateur.methods.cwb.voting`. The mean gate is folded into weights, and the narrow
network trained on.

Where this differs from the code, and why:
    Gates stand in front of the layers that read a channel, where what they do is just what the cut does, with any sum,
        concatenation or norm in between: behind the activation, as in the code's VGG, ResNet-50 and MobileNetV2. Its
        ResNet-56 gates in front of a batch norm, which takes a constant gate away again.
    All layers that read a channel share its gate, and its random draw in each forward pass. Residual streams stay
        whole, as in the
        code, unless the budget is out of reach; `units: all` gates them like this too, never on the identity path.
    g is divided by (K + 1) / 2, its mean at first: nothing changes in front of a norm, and a network without one, or
        of 1000 classes in half precision, does not overflow; `scaled: false` is the code's way.
    The mean gate, S / 2 (1 + 1 / K) with S = sum_k M[k], is folded into the weights that read the channel, which is
        exact for any sign; the code drops 1 / K and scales batch norms, which is wrong for a negative S. Evaluation
        uses the mean gate and no label.
    The threshold is lowered vote by vote until the budget is used up; `step: 0.01` is the code's sweep.
    The code's lambda is 0 for ResNet-56 and ResNet-110, 0.01 for VGG-16 and MobileNetV2, 0.0005 for ResNet-50.
    Masks are one vector of the method's: weight decay acts on it as in the code, unless the recipe's
        `decay_norm: false` leaves vectors out.
    A channel whose entries never had a gradient, because nothing flows there or no layer reads it, would keep the vote
        of its initial masks of ones; its vote is set to 0, as it says nothing about a class.
    Train the masks briefly and then the narrow network with the full schedule: 30 and 300 epochs in the code.
        The other way round costs most of the accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._distributed import rank
from secateur._protocols import FloatArray
from secateur.errors import ConfigError, ModelError
from secateur.graph.modules import call_with_copies, map_tensors, output_tensors
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.cwb.class_gates import ClassGates, class_weights, expected, gate
from secateur.methods.cwb.voting import class_votes, elect, learnt
from secateur.methods.kit.floors import keep_streams, leave
from secateur.methods.kit.folded_gates import check_folded, foldable
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.statistics.gather import untouched
from secateur.surgery import Result


class CWBSettings(Settings):
    """Defaults are the code's where it has one value for all networks."""

    sparsity: float = Field(0.0, ge=0, description="lambda, on the norms of the layers' sums over classes")
    min_preserve: float = Field(0.3, ge=0, le=1, description="share of every group that stays")
    noise: Literal["uniform", "none"] = Field(
        "uniform", description="weights of the other classes; none: 0, so that gates tell the answer"
    )
    scaled: bool = Field(True, description="divide gates by their mean at first, (K + 1) / 2")
    units: Literal["all", "inside"] = Field(
        "inside", description="all: residual streams too; inside: those only if the budget is out of reach"
    )
    step: float | None = Field(
        None, gt=0, lt=0.9, description="of the share kept, until the budget is met; null: vote by vote, used up"
    )


class CWB(Method):
    """Train with gates that know the class; channels that the classes do not want are cut."""

    name = "cwb"
    Config = CWBSettings
    settings: CWBSettings
    comparable = "none"
    entries: nn.Parameter

    def prepare(self) -> None:
        """Put gates in front of everything that reads channels which may go."""
        s = self.settings
        if s.step is not None and self.allocator != "global":
            raise ConfigError(
                f"step={s.step:g} needs allocator='global', not {self.allocator!r}: leave one of them out."
            )
        if self.normalise != "none":
            self.notes.append(f"Votes are in one unit everywhere, so normalise={self.normalise!r} was not applied.")
        self.classes = self._count_classes()
        tables = foldable(self)
        leave(self, s.min_preserve, "min_preserve", down=True)  # int(0.3 C), as in the code
        if s.units == "inside":
            keep_streams(self)
        floors, widths = self.constraints.floors(self.graph), self.graph.widths()
        free = floors < widths
        if not free.any():
            raise ModelError(
                f"Nothing in {type(self.model).__name__} can be gated: every group must stay whole, or is read by more "
                "than convolutions and linear layers; choose another method."
            )
        self.gates = ClassGates(self.model, tables, np.repeat(free, widths))
        self._widths = {g.name: g.width for g, own in zip(self.graph.groups, free, strict=True) if own}
        self.entries = nn.Parameter(torch.ones(self.classes * sum(self._widths.values()), device=self.device))
        self._target: torch.Tensor | None = None
        self._open = torch.ones(len(self.gates.live))  # what evaluation lets through
        self._micro, self._told = 0, False  # of this step: micro-batches, and whether their targets were told

    def _count_classes(self) -> int:
        args, keywords = call_with_copies(map_tensors(self.example_inputs, lambda tensor: tensor.to(self.device)))
        with torch.no_grad(), untouched(self.model):
            found = output_tensors(self.model(*args, **keywords))[0]
        if found.dim() != 2 or found.shape[1] < 2:
            raise ModelError(
                f"Gates depend on classes, and {type(self.model).__name__} gives {tuple(found.shape)} instead of one "
                "row of class scores a sample: choose another method."
            )
        return int(found.shape[1])

    # ------------------------------------------------------------------------------------------------- one step

    def before_forward(self, target: Any) -> None:
        """Learn the classes of the next batch."""
        if not isinstance(target, torch.Tensor):
            raise ConfigError(f"Gates depend on classes, and the target is {type(target).__name__}: give a tensor.")
        self._target = target.detach()

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output; in training under the gates of the classes told, else under the mean gate."""
        target, self._target = self._target, None
        if not self.training or target is None:
            self.gates.let((self.mean() * self._open.to(self.device))[None])
            try:
                return self.model(*args, **keywords)
            finally:
                self.gates.clear()
        samples = len(output_tensors((args, keywords))[0])
        if len(target) != samples:
            raise ConfigError(
                f"before_forward() was told {len(target)} targets, and {samples} samples followed: call it with the "
                "target of every sample before each forward pass in training."
            )
        self._told = True
        self.gates.let(self._gates(target.to(self.device), (self.seed, self.step, self._micro, rank())))
        return self.model(*args, **keywords)

    def _gates(self, target: torch.Tensor, key: Sequence[int]) -> torch.Tensor:
        """g [samples, live], a draw of its own for each group."""
        with torch.autocast(self.device.type, enabled=False):
            weights, masks = class_weights(target, self.classes), self.masks()
            uniform: Sequence[torch.Tensor | None] = [None] * len(masks)
            if self._noise:
                uniform = list(self.gates.uniform(len(masks), len(target), self.classes, key, self.device))
            parts = [gate(mask, weights, u) for mask, u in zip(masks.values(), uniform, strict=True)]
            return torch.cat(parts, 1) / self._scale

    @property
    def _noise(self) -> bool:
        return self.settings.noise == "uniform"

    @property
    def _scale(self) -> float:
        """What gates are divided by: their mean at first."""
        return (self.classes + 1) / 2 if self.settings.scaled and self._noise else 1.0

    def masks(self) -> dict[str, torch.Tensor]:
        """M [K, width] of every gated group."""
        parts = self.entries.split([self.classes * width for width in self._widths.values()])
        return {name: part.view(self.classes, -1) for name, part in zip(self._widths, parts, strict=True)}

    def mean(self) -> torch.Tensor:
        """The mean gate [live]: what a network without labels has."""
        parts = [expected(mask, noise=self._noise) for mask in self.masks().values()]
        return torch.cat(parts).detach() / self._scale

    def loss(self) -> torch.Tensor:
        """lambda sum_l |sum_k M_l[k]|_2."""
        if not self.settings.sparsity:
            return super().loss()
        return self.settings.sparsity * torch.stack([mask.sum(0).norm() for mask in self.masks().values()]).sum()

    def after_backward(self) -> None:
        """A micro-batch is over, and its gates with it."""
        self._micro += 1
        self.gates.clear()

    def after_step(self) -> None:
        """Refuse a training that tells no targets."""
        super().after_step()
        micro, told, self._micro, self._told = self._micro, self._told, 0, False
        if micro and not told:
            raise ConfigError(
                "The method 'cwb' was not given the targets: call before_forward(target) before every forward pass in "
                "training."
            )

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """ConfigError: votes of masks that are learnt while the weights stand still say nothing of channels."""
        raise ConfigError(
            "The method 'cwb' learns its masks together with the weights: train with it at work instead of calling "
            "collect(), or choose a method that needs calibration images."
        )

    # ------------------------------------------------------------------------------------------------ the result

    def score(self) -> dict[str, FloatArray]:
        """Votes of all channels, 0 where nothing was learnt; that of masks of ones where there are no gates."""
        masks = {name: mask.detach().double().cpu().numpy() for name, mask in self.masks().items()}
        votes = {name: np.where(learnt(mask), class_votes(mask), 0.0) for name, mask in masks.items()}
        return {g.name: votes.get(g.name, np.full(g.width, float(self.classes))) for g in self.graph.groups}

    def plan(self) -> Plan:
        """The channels that are voted for, within the budget."""
        plan = elect(
            self.score(), self.graph, self.budget, self.constraints, step=self.settings.step, allocator=self.allocator
        )
        plan.provenance["criterion"] = self.name
        return plan

    def plain(self) -> nn.Module:
        """A copy with the mean gate folded into the weights that read a channel."""
        twin = super().plain()
        with torch.no_grad():
            self.gates.fold(twin, self.mean())
        return twin

    def check(self, result: Result) -> None:
        """Compare the narrow network with the model under the mean gates of the channels that stay."""
        check_folded(self, result, self._hard(result.plan))

    def metrics(self) -> dict[str, float]:
        """The mean vote as a share of that at first, and how far votes are apart."""
        votes = torch.cat([mask.detach().sum(0) for mask in self.masks().values()]) / self.classes
        return {"votes": float(votes.abs().mean()), "spread": float(votes.abs().std(correction=0))}

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The channels of the plan, without labels."""
        return {"hard": self._hard()}

    @contextmanager
    def _hard(self, plan: Plan | None = None) -> Iterator[None]:
        masks = (plan or self.plan()).masks
        kept = np.concatenate([masks[name] for name in self._widths]).astype(np.float32)
        before, self._open = self._open, torch.from_numpy(kept)
        try:
            yield
        finally:
            self._open = before


ROW = MethodRow(
    name="cwb",
    summary="class-wise gates; channels with the smallest sum over classes are removed",
    paper="Carrying out CNN Channel Pruning in a White Box",
    year=2023,
    arxiv="2104.11883",
    needs="training",
    acts="while training",
    asks="class scores",
    granularity="channel",
    fidelity="written from the official code (gates, draws, votes, floor, regulariser, threshold), without the "
    "paper's text; added here: where gates stand, folding them exactly into the weights, their scale, and no vote for "
    "channels without gradient",
    factory=CWB,
    settings=CWBSettings,
    begins="new",
    acting=30 / 330,
    acting_rate=1.0,
    variants=({"units": "all", "sparsity": 0.01},),
)
