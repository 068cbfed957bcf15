"""Discrimination-aware kernel pruning: DKP.

Liu, Zhuang, Zhuang, Guo, Huang, Zhu, Tan: Discrimination-aware Network Pruning for Deep Model Compression, TPAMI 2021
(arXiv:2001.01050). As `dcp` does with channels: layer by layer, front to back, a convolution is emptied and its kernels
W_jk [height, width], of output j and input k, come back, those first that a joint loss asks for most:

    L(V) = 1/2Q |Y - X * V|² + lambda cross-entropy of the next classifier, or of the network itself behind the last
    G = dL/dV;  the kernels not chosen with the largest |G_jk| join, V_jk = W_jk;  V is fitted anew on those chosen

Where this differs from the paper, and why:
    Only the paper's abstract was read: this is by analogy with the channels, and unverified.
    A round adds a twentieth of a layer's kernels, as one each would take a pass through the network for every kernel.
    Every layer but the first keeps the same share of its kernels; depthwise convolutions, whose channels have one
    kernel each, stay whole. The budget's `params` is the share of the weights of these layers that stay.
    The network keeps its shape: inputs and outputs whose kernels are all gone stay as zeros, and costs do not fall.
    Kernels are chosen in the whole network; the journal may choose channels first. For that, prune with `dcp`, and
    the narrow network with `dkp`.
    The fit of each output on kernels of its own is by conjugate gradients, with `ridge` pulling towards the weights as
    they are; classifiers, targets, SGD and passes are those of `dcp`, with the differences listed there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.graph.norms import sources
from secateur.methods.dcp.discrimination import Discriminating, DiscriminationSettings
from secateur.methods.dcp.greedy import Part, Reconstruction
from secateur.methods.kit.layerwise import Work
from secateur.methods.kit.sparse import WeightMasks, check_constraints, share_of
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair import Repair
from secateur.statistics.lockstep import Stop
from secateur.statistics.narrow import uses_its_weight
from secateur.statistics.samples import readable

#: Conjugate gradients: most steps of a fit; the gradient, and the curvature, that count as nothing.
_STEPS, _LEAST_GRADIENT, _LEAST_CURVATURE = 30, 1e-10, 1e-12


class DKPSettings(DiscriminationSettings):
    """As for channels, less what is about channels."""

    streams: ClassVar[bool] = False  # type: ignore[misc]
    shares: ClassVar[dict[str, float]] = {}  # type: ignore[misc]
    rounds: int = Field(20, ge=1, description="rounds for a whole layer: each adds one part of so many of its kernels")


class Kernels(Reconstruction):
    """L_M where every output has kernels of its own."""

    def fit(self, weight: torch.Tensor, mask: torch.Tensor, ridge: float) -> torch.Tensor:
        """Better weights on the entries [outputs, columns] that stay, by conjugate gradients in every row at once.

        Minimised is L_M + r d |V - weight|² / 2, d the mean of the diagonal of L_M's curvature. A row is done when its
        gradient is nothing beside that of zero weights, and no step goes where L_M does not curve: columns may be
        copies of each other, and a row may have been at its best from the start.
        """
        w = weight.double() * mask
        diagonal = self._xx.diagonal(dim1=1, dim2=2).mean() / self.outputs
        done = (_LEAST_GRADIENT * self._xy.norm() / self.outputs).square()
        residual = -self.gradient(w) * mask
        direction, size = residual.clone(), residual.square().sum(1, keepdim=True)
        for _ in range(_STEPS):
            curved = torch.bmm(self._split(direction), self._xx).flatten(0, 1) / self.outputs * mask
            curved += ridge * diagonal * direction
            curvature = (direction * curved).sum(1, keepdim=True)
            flat = curvature <= _LEAST_CURVATURE * diagonal * direction.square().sum(1, keepdim=True)
            step = torch.where((size <= done) | flat, 0.0, size / curvature)
            w += step * direction
            residual -= step * curved
            fresh = residual.square().sum(1, keepdim=True)
            direction = residual + torch.where(size <= done, 0.0, fresh / size) * direction
            size = fresh
        return w


class DKP(Discriminating):
    """Set single kernels to zero."""

    name = "dkp"
    Config = DKPSettings
    settings: DKPSettings

    def prepare(self) -> None:
        """See which layers have kernels to choose from; no channel goes."""
        runs = Counter(call.module for call in self.graph.recording.calls if call.weight is not None)
        first = self.graph.recording.first_use
        every = [(n, m) for n, m in self.model.named_modules() if runs[n] == 1 and _has_kernels(m)]
        fixed = [n for n, m in every if not m.weight.requires_grad]
        fixed = fixed if len(fixed) < len(every) else []  # a whole network that is frozen is one for inference
        layers = [n for n, _ in every if n not in fixed]
        layers = sorted(layers, key=lambda name: first.get(f"{name}.weight", 0))[1:]
        if not layers:
            raise ModelError(
                f"DKP chooses kernels of convolutions behind the first, and {type(self.model).__name__} has none that "
                "runs just once: choose another method."
            )
        if fixed:
            self.notes.append(f"Weights that are not trained keep all kernels: {', '.join(fixed[:4])}.")
        self._tables = {name: np.full(self._layer(name).in_channels, -1, dtype=np.int64) for name in layers}
        self._channels = {g.name: np.arange(g.width, dtype=np.int64) for g in self.graph.groups}
        self._norms = {layer: norm for norm, layer in sources(self.graph).of.items() if layer is not None}
        self._masks, self._fitted = {}, {}
        self.weight_masks = WeightMasks(self.graph, [f"{name}.weight" for name in layers], self.constraints)
        if self.allocator != "global" or self.normalise != "none":
            self.notes.append("Counts follow from one share for all layers: allocator and normalise were not applied.")

    def _layer(self, name: str) -> Any:
        return self.model.get_submodule(name)

    def _widths(self) -> dict[str, int]:
        return {}  # every channel stays

    def _check_reach(self) -> None:
        check_constraints(self.constraints)
        if hasattr(self, "weight_masks"):
            self._counts()
        else:
            share_of(self.budget, None)

    def _visit(self, work: Work, stop: Stop, chosen: set[str]) -> None:
        """Choose the kernels of one layer, and fit it on them."""
        layer: Any = work.case.model.get_submodule(stop.layer)
        units = kernels_of(layer)
        goal = Kernels(self._moments(work, stop, anew=True), constant=self._has_constant(stop.layer))
        part = Part(stop.layer, layer, units, layer.weight.clone())
        selection = self._selection(work, [part], units.numel(), goal)
        selection.run(self._counts()[stop.layer], -(-units.numel() // self.settings.rounds))
        self.weight_masks.by_name()[f"{stop.layer}.weight"].copy_(part.open(selection.kept))

    def _counts(self) -> dict[str, int]:
        """How many kernels of every layer stay: the same share, one at least, and all where constraints say so."""
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
        if left < -1e-6:
            raise BudgetError(
                f"The budget {self.budget} leaves less than one kernel for each of {len(found)} layers: raise it."
            )
        return {name.removesuffix(".weight"): count for name, count in found.items()}

    def plan(self) -> Plan:
        """All channels: kernels are what goes."""
        plan = super().plan()
        plan.provenance["mode"] = "weight"
        return plan

    def check_repairs(self, repairs: Sequence[Repair]) -> None:
        """Single kernels that are zero stay zero."""
        if repairs:
            raise ConfigError(
                f"The repair {repairs[0].name!r} would fill zeros that dkp has made: leave it out, or choose dcp."
            )

    def finish(self, repairs: Sequence[Repair] = (), batches: Iterable[tuple[Any, Any]] = ()) -> nn.Module:
        """The same network with zeros, and how many as a note."""
        model = super().finish(repairs, batches)
        assert self.result is not None
        note, said = self.weight_masks.describe(model)
        self.result.plan.provenance["sparse"] = said
        self.notes = [*(n for n in self.notes if not n.startswith(note.split(":")[0])), note]
        return model


def _has_kernels(module: nn.Module) -> bool:
    """Whether kernels can be chosen: of a depthwise convolution each is all that its channel has."""
    return isinstance(module, _ConvNd) and readable(module) and uses_its_weight(module) and module.weight.shape[1] > 1


def kernels_of(layer: nn.Module) -> torch.Tensor:
    """The unit of every kernel [outputs, inputs] where each is one."""
    weight: Any = layer.weight
    return torch.arange(weight.shape[0] * weight.shape[1], device=weight.device).view(weight.shape[:2])


ROW = MethodRow(
    name="dkp",
    summary="kernels added one after the other by reconstruction error and the loss of auxiliary classifiers",
    paper="Discrimination-aware Network Pruning for Deep Model Compression",
    year=2021,
    arxiv="2001.01050",
    needs="calibration",
    acts="after training",
    granularity="kernel",
    fidelity="written from the abstract alone, by analogy with the channels of dcp, unverified; every layer keeps "
    "the same share of its kernels, and the network its shape",
    factory=DKP,
    settings=DKPSettings,
    labels=True,
)
