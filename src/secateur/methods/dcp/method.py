"""Discrimination-aware channel and kernel pruning: DCP and DKP.

Zhuang, Tan, Zhuang, Liu, Guo, Wu, Huang, Zhu: Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS
2018 (arXiv:1810.11809); Liu et al.: Discrimination-aware Network Pruning for Deep Model Compression, TPAMI 2021
(arXiv:2001.01050). Classifiers inside the network tell what its features are worth. Layer by layer, front to back, a
layer is emptied and its input channels come back one after the other, those first that a joint loss asks for most:

    L(V) = 1/2Q |Y - X * V|² + lambda cross-entropy of the next classifier, or of the network itself behind the last
    G = dL/dV;  k = argmax over channels not chosen of sum_j |G_jk|;  V_k = W_k;  V is fitted anew on those chosen

X comes from the network as pruned so far, Y from the whole one. `unit: kernel` chooses single kernels W_jk so.

Where this differs from the paper, and why:
    The paper trains network and classifiers together first. This acts on a trained network and leaves it alone: the
    classifiers are learnt on its features as they are. Fine-tuning afterwards is the recipe's business.
    How many channels a group keeps follows from the budget: the same share everywhere (`stop: share`), or one epsilon
    of the paper's stopping rule for the whole network (`stop: tolerance`), found from losses measured in the whole
    network. One channel a round takes thousands of passes; `rounds` rounds add as many each (`rounds: null`: one).
    After each round |Y - X * V|² is brought to its minimum from second moments at `positions` places of every image
    (an exact fit), then `epochs` of SGD on the joint loss follow; the paper has SGD alone, and no constant.
    Of few images more positions are taken; the pull (`ridge`) is then chosen only for layers nothing returns to.
    Passes begin at the layer, with all before it remembered. Only 2048 images are looked at unless told otherwise.
    Blocks, behind which classifiers stand, are stretches between layers whose last result is all that follows depends
    on. Where several layers read a channel, the first is reconstructed and the others' gradients are added, each over
    the norm of its weights. Residual streams stay whole, as in the paper, unless the budget is out of reach.
    Of kernel pruning only the abstract was read: `unit: kernel` is by analogy, with every layer but the first keeping
    the same share of its kernels. The network keeps its shape; with it the budget's `params` is the share of weights
    of convolutions (without the first and depthwise ones) that stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateur._protocols import BoolArray, FloatArray
from secateur.errors import ConfigError, ModelError
from secateur.graph.modules import as_call
from secateur.graph.norms import sources
from secateur.methods.contract import Loss, MethodRow
from secateur.methods.dcp.greedy import GreedyRules, GreedySelection, Part, Reconstruction, columns_of, kernels_of
from secateur.methods.dcp.heads import Head, learn, pivots
from secateur.methods.dcp.replay import Replay, cut_points
from secateur.methods.dcp.stopping import survival
from secateur.methods.kit.layerwise import Layerwise, LayerwiseSettings, Work
from secateur.methods.kit.sparse import WeightMasks, check_constraints, share_of
from secateur.plan import Plan
from secateur.repair import Repair
from secateur.statistics.lockstep import Stop
from secateur.statistics.samples import PatchSums, readable


class DCPSettings(LayerwiseSettings):
    """The paper's values where they are not a matter of how long one waits."""

    unit: Literal["channel", "kernel"] = Field("channel", description="cut channels, or set single kernels to zero")
    stop: Literal["share", "tolerance"] = Field(
        "share", description="every group keeps the same share, or one tolerance of the loss holds for all"
    )
    weight: float = Field(1.0, ge=0, le=1e6, description="lambda, of the classifiers' loss; 0: reconstruction alone")
    heads: int | None = Field(None, ge=0, le=100, description="classifiers inside; null: 2, or 3 from 16 blocks on")
    head_epochs: int = Field(60, ge=1, description="over the features, to learn a classifier")
    rounds: int | None = Field(5, ge=1, description="rounds for a layer; null: one channel a round, as in the paper")
    norm: Literal["sum", "frobenius"] = Field(
        "sum", description="of a channel's gradient: the sum of its kernels' norms as in the code, or as in the paper"
    )
    epochs: int = Field(1, ge=0, description="of SGD on the joint loss after each round")
    lr: float = Field(0.01, gt=0, le=10, description="of this SGD")
    images: int = Field(2048, ge=1, description="most calibration images used")
    positions: int = Field(64, ge=1, description="random output positions of each, for each layer")

    @model_validator(mode="after")
    def _no_idle_setting(self) -> DCPSettings:
        if self.unit == "kernel" and (self.stop == "tolerance" or self.streams or self.shares):
            raise ValueError("stop, streams and shares are about channels: leave them out with unit: kernel")
        if self.stop == "tolerance" and self.shares:
            raise ValueError("shares are what stop: share goes by: leave them out with stop: tolerance")
        return self


class DCP(Layerwise):
    """Empty a layer and fill it again, one after the other."""

    name = "dcp"
    Config = DCPSettings
    settings: DCPSettings

    def prepare(self) -> None:
        """See what can be chosen from."""
        self._heads: list[Head] = []
        self._order: dict[str, int] = {}
        self._scores: dict[str, FloatArray] = {}
        self._settled: dict[str, BoolArray] = {}
        if self.settings.unit == "channel":
            super().prepare()
            if self.settings.stop == "share" and self.allocator not in ("global", "uniform"):
                self.notes.append(f"Widths follow from shares: allocator={self.allocator!r} was not applied.")
            return
        runs = Counter(call.module for call in self.graph.recording.calls if call.weight is not None)
        first = self.graph.recording.first_use
        layers = [n for n, m in self.model.named_modules() if runs[n] == 1 and _has_kernels(m)]
        self._layers = sorted(layers, key=lambda name: first.get(f"{name}.weight", 0))[1:]
        if not self._layers:
            raise ModelError(
                f"DKP chooses kernels of convolutions behind the first, and {type(self.model).__name__} has none that "
                "runs just once: choose another method, or unit: channel."
            )
        self._without_groups()
        self.weight_masks = WeightMasks(self.graph, [f"{name}.weight" for name in self._layers], self.constraints)

    # ------------------------------------------------------------------------------------------------- from the data

    @torch.no_grad()
    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Learn the classifiers, then choose and fit layer by layer."""
        if self.settings.unit == "channel":
            super().collect(batches, loss)
            return
        work = self._work(batches, loss)
        self._classifiers(work, self._layers)
        counts, masks = self._counts(), self.weight_masks.by_name()
        for stop in self._stops(work, self._layers):
            layer: Any = work.case.model.get_submodule(stop.layer)
            goal = Reconstruction(self._moments(work, stop), constant=self._has_constant(stop.layer))
            units, total = kernels_of(layer), layer.weight[:, :].shape[0] * layer.weight.shape[1]
            part = Part(stop.layer, layer, units, layer.weight.clone())
            selection = self._selection(work, [part], total, goal, whole=False)
            selection.run(counts[stop.layer], self._per_round(counts[stop.layer]))
            masks[f"{stop.layer}.weight"].copy_(part.open(selection.kept))
        self._masks = {g.name: np.ones(g.width, dtype=np.bool_) for g in self.graph.groups}
        self._remember(work.case.model)

    def _survey(self, work: Work) -> None:
        """Learn the classifiers; with a tolerance, see how losses fall in the whole network."""
        self._classifiers(work, list(self._tables))
        self._settled = {}
        if self.settings.stop == "share":
            return
        self._scores = {name: np.zeros(len(mine)) for name, mine in self._channels.items()}
        floors = dict(zip(self._channels, self.constraints.floors(self.graph).tolist(), strict=True))
        seen: set[str] = set()
        for stop in self._stops(work, list(self._tables)):
            moments, table = self._moments(work, stop), self._table(stop)
            fresh = [g for g, mine in self._channels.items() if g not in seen and np.isin(mine, table).any()]
            seen.update(fresh)
            for group in fresh:
                if floors[group] < len(self._channels[group]):
                    self._scores[group] = self._survival(work, stop, moments, group)
        plan = self._allocate(self._scores)
        self._settled = plan.masks
        work.widths = plan.widths

    def _survival(self, work: Work, stop: Stop, moments: PatchSums, group: str) -> FloatArray:
        """Up to which tolerance every channel stays, with all layers before as they were; nothing is changed."""
        selection = self._of_group(work, stop, moments, group)
        before = [part.layer.weight.clone() for part in selection.parts]
        width = len(self._channels[group])
        selection.run(width, self._per_round(width))
        selection.restore(before)
        return survival(selection.losses, selection.added)

    def _choose(self, work: Work, stop: Stop, moments: PatchSums, group: str, width: int) -> BoolArray:
        """The channels that come back first."""
        selection = self._of_group(work, stop, moments, group)
        if group in self._settled:
            selection.settle(self._settled[group])
            return self._settled[group]
        return selection.run(width, self._per_round(width))

    def _fit(self, work: Work, stop: Stop, moments: PatchSums, *, anew: bool) -> None:
        """Layers that a choice has just fitted stay as they are."""
        if not anew:
            super()._fit(work, stop, moments, anew=anew)

    def _per_round(self, count: int) -> int:
        return 1 if self.settings.rounds is None else -(-count // self.settings.rounds)

    def _of_group(self, work: Work, stop: Stop, moments: PatchSums, group: str) -> GreedySelection:
        """What is to be chosen among: the layer in front of which everything stands, and the others that read it."""
        mine = self._channels[group]
        others = [n for n, table in self._tables.items() if n != stop.layer and np.isin(mine, table).any()]
        parts = []
        for name in [stop.layer, *others]:
            layer: Any = work.case.model.get_submodule(name)
            gone = ~np.concatenate([*self._masks.values(), np.ones(1, dtype=np.bool_)])[self._tables[name]]
            units = columns_of(layer, self._tables[name], mine, gone)
            parts.append(Part(name, layer, units, layer.weight.clone()))
        goal = Reconstruction(moments, constant=self._has_constant(stop.layer))
        return self._selection(work, parts, len(mine), goal, whole=True)

    def _selection(
        self, work: Work, parts: Sequence[Part], units: int, goal: Reconstruction, *, whole: bool
    ) -> GreedySelection:
        s, first = self.settings, parts[0].name
        rules = GreedyRules(s.weight, s.norm, s.epochs, s.lr, s.ridge, len(work.shown), whole)
        return GreedySelection(
            parts,
            units,
            goal,
            self._further(work, [part.name for part in parts]) if s.weight else _nothing,
            lambda amount: self._shift(work.case, first, amount),
            rules,
        )

    def _further(self, work: Work, layers: Sequence[str]) -> Callable[[int], torch.Tensor]:
        """The loss of the first classifier behind these layers, or of the network, for one batch."""
        behind = max(self._order[layer] for layer in layers)
        head = next((head for head in self._heads if self._order[head.module] > behind), None)
        replay = Replay(work.case.model, work.shown, layers[0], head.module if head else None)

        def loss(number: int) -> torch.Tensor:
            output = replay.run(number)
            value = work.loss(head(output) if head else output, work.targets[number])
            if not torch.isfinite(value):
                raise ConfigError(f"The loss is {value.item()}: check the data and the loss.")
            return value

        return loss

    def _classifiers(self, work: Work, layers: Sequence[str]) -> None:
        """Learn them, and note in which order layers and classifiers come."""
        dense, s = work.case.dense, self.settings
        args, keywords = as_call(work.shown[0])
        output = dense(*args, **keywords)
        self._heads = []
        points = cut_points(dense, work.shown[0]) if s.weight else []
        wanted = s.heads if s.heads is not None else (3 if len(points) >= 16 else 2)
        modules: list[str] = []
        if isinstance(output, torch.Tensor) and output.dim() == 2 and len(points) > 1 and wanted:
            modules = [points[k - 1] for k in sorted(set(pivots(wanted, len(points))))]
            pairs = list(zip(work.shown, work.targets, strict=True))
            classes = int(output.shape[1])
            self._heads = learn(dense, pairs, modules, classes, work.loss, epochs=s.head_epochs)
        self._order = _order(dense, work.shown[0], layers, modules)

    # --------------------------------------------------------------------------------------------------- single kernels

    def _without_groups(self) -> None:
        """What a choice of channels would know, where no channel goes."""
        norms = sources(self.graph).of
        self._norms = {layer: norm for norm, layer in norms.items() if layer is not None}
        self._tables, self._channels = {}, {}
        self._masks, self._fitted = {}, {}

    def _check_reach(self) -> None:
        if self.settings.unit == "kernel":
            check_constraints(self.constraints)
            share_of(self.budget, self.weight_masks if hasattr(self, "weight_masks") else None)
        elif self.settings.stop == "tolerance":
            self._allocate({g.name: np.ones(g.width) for g in self.graph.groups})
        else:
            super()._check_reach()

    def _counts(self) -> dict[str, int]:
        """How many kernels of every layer stay: the same share, all of them where constraints say so."""
        masks = self.weight_masks
        sizes = {name: mask.numel() for name, mask in masks.by_name().items()}
        kept = int(share_of(self.budget, masks) * masks.total)
        whole = sum(sizes[name] for name in masks.whole)
        share, left = (kept - whole) / max(masks.total - whole, 1), 0.0
        found = {}
        for name, mask in masks.by_name().items():
            kernels, each = mask.shape[0] * mask.shape[1], mask[0, 0].numel()
            if name in masks.whole:
                found[name] = kernels
            else:
                left += share * sizes[name]  # weights that may stay so far
                found[name] = max(1, min(kernels, int(left / each + 1e-9)))
                left -= found[name] * each
        return {name.removesuffix(".weight"): count for name, count in found.items()}

    def plan(self) -> Plan:
        """The channels chosen; all of them where kernels were."""
        plan = super().plan()
        if self.settings.unit == "kernel":
            plan.provenance["mode"] = "weight"
        return plan

    def check_repairs(self, repairs: Sequence[Repair]) -> None:
        """Single kernels that are zero stay zero."""
        if repairs and self.settings.unit == "kernel":
            raise ConfigError(
                f"The repair {repairs[0].name!r} would fill zeros that unit=kernel has made: leave it out, or set "
                "unit: channel."
            )

    def finish(self, repairs: Sequence[Repair] = (), batches: Iterable[tuple[Any, Any]] = ()) -> nn.Module:
        """The narrow network; with `unit: kernel` the same network with zeros, and how many as a note."""
        model = super().finish(repairs, batches)
        if self.settings.unit == "kernel" and self.result is not None:
            note, said = self.weight_masks.describe(model)
            self.result.plan.provenance["sparse"] = said
            self.notes = [*(n for n in self.notes if not n.startswith(note.split(":")[0])), note]
        return model


def _has_kernels(module: nn.Module) -> bool:
    """Whether kernels can be chosen: of a depthwise convolution each is all that its channel has."""
    return isinstance(module, _ConvNd) and readable(module) and module.weight.shape[1] > 1


def _nothing(_: int) -> torch.Tensor:
    raise AssertionError  # without a weight nobody asks


@torch.no_grad()
def _order(model: nn.Module, inputs: Any, layers: Iterable[str], modules: Iterable[str]) -> dict[str, int]:
    """When layers begin and modules return, as places in one order."""
    found: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: found.__setitem__(name, len(found))

    with ExitStack() as stack:
        for name in layers:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(note(name)).remove)
        for name in modules:
            stack.callback(model.get_submodule(name).register_forward_hook(note(name)).remove)
        args, keywords = as_call(inputs)
        model(*args, **keywords)
    return found


ROW = MethodRow(
    name="dcp",
    summary="inputs that come back first to an emptied layer, as its answers and classifiers inside ask for them",
    paper="Discrimination-aware Network Pruning for Deep Model Compression",
    year=2021,
    arxiv="2001.01050",
    needs="calibration",
    labels=True,
    acts="after training",
    granularity="channel or kernel",
    fidelity="channels: conference paper with supplement and official code were read; classifiers are learnt on the "
    "fixed network, several channels join a round, and an exact fit goes before SGD, for speed; counts from a budget, "
    "or one tolerance found from it, our advice. Kernels: only the journal's abstract was read, the rest by analogy, "
    "unverified",
    factory=DCP,
    settings=DCPSettings,
)
