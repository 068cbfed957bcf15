"""Discrimination-aware channel pruning: DCP.

Zhuang, Tan, Zhuang, Liu, Guo, Wu, Huang, Zhu: Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS
2018 (arXiv:1810.11809); Liu et al.: Discrimination-aware Network Pruning for Deep Model Compression, TPAMI 2021
(arXiv:2001.01050). Classifiers inside the network tell what its features are worth. Layer by layer, front to back, a
layer is emptied and its input channels come back one after the other, those first that a joint loss asks for most:

    L(V) = 1/2Q |Y - X * V|² + lambda cross-entropy of the next classifier, or of the network itself behind the last
    G = dL/dV;  k = argmax over channels not chosen of sum_j |G_jk|;  V_k = W_k;  V is fitted anew on those chosen

X comes from the network as pruned so far, Y from the whole one. Single kernels W_jk so: `dkp`.

The cross-entropy is asked by passes, as in the paper. With `exact: false` it is the quadratic form that one pass
forward and back of the whole network gives (`quadratic`): scores, fits and losses come from second moments.

Where this differs from the paper, and why:
    The paper trains network and classifiers together first, its text stage by stage. Here the network is trained
    already and its weights are not changed first: only the classifiers are trained, on its features, normalised by the
    statistics of the images, without scale and shift. Fine-tuning afterwards is set in the recipe.
    How many channels a group keeps follows from the budget: the same share everywhere (`stop: share`), up to rounding,
    or one epsilon of the paper's stopping rule for the whole network (`stop: tolerance`), found from losses measured
    in the whole network; it cannot be set directly. At least one channel of every group stays, so that no residual
    branch disappears.
    One channel a round takes thousands of passes; `rounds` rounds add as many each (`rounds: null`: one).
    After each round |Y - X * V|² is brought to its minimum from second moments at `positions` places of every image
    (an exact fit), and `epochs` of SGD on the joint loss follow, taken back, and tried with a smaller rate, where they
    raise it; with `exact: false` it is brought to the minimum of the whole quadratic L. The paper has SGD alone, and no
    constant.
    Of few images more positions are taken; the pull (`ridge`) is then chosen only for layers nothing returns to.
    Passes start at the layer itself, as the outputs of earlier layers are stored. By default 2048 images are used.
    Blocks, behind which classifiers stand, are counted by the sums of residual branches whose result is all that
    follows depends on; where there are none, every stretch between two layers that ends so is one.
    Where several layers read a channel, the first is reconstructed and the others' gradients are added, each over
    the norm of its weights. Residual streams stay whole, as in the paper, unless the budget is out of reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.methods.dcp.discrimination import Discriminating, DiscriminationSettings, finite
from secateur.methods.dcp.greedy import GreedySelection, Part, Reconstruction
from secateur.methods.dcp.quadratic import Slopes, dense_blocks, loss_slopes
from secateur.methods.dcp.stopping import survival
from secateur.methods.kit.layerwise import MEMORY, Work
from secateur.methods.row import MethodRow
from secateur.repair.least_squares import samples
from secateur.statistics.lockstep import Stop
from secateur.statistics.samples import PatchSums


class DCPSettings(DiscriminationSettings):
    """Those of channels."""

    stop: Literal["share", "tolerance"] = Field(
        "share", description="every group keeps the same share, or one tolerance of the loss holds for all"
    )
    rounds: int | None = Field(5, ge=1, description="rounds for a layer; null: one channel a round, as in the paper")
    exact: bool = Field(
        True,
        description="the loss of classifiers is asked round by round, by passes as in the paper; false: its gradient "
        "and curvature in the whole network stand for it, which is faster and was not as accurate where measured",
    )
    norm: Literal["sum", "frobenius"] = Field(
        "sum", description="of a channel's gradient: the sum of its kernels' norms as in the code, or as in the paper"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unit(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "unit" in given:
            raise ValueError("unit is gone: channels are pruned by dcp, and single kernels by the method dkp")
        return given

    @model_validator(mode="after")
    def _no_idle_setting(self) -> DCPSettings:
        if self.stop == "tolerance" and self.shares:
            raise ValueError("shares are for stop: share; leave them out with stop: tolerance")
        idle = sorted({"epochs", "lr"} & self.model_fields_set)
        if idle and not self.exact:
            raise ValueError(f"{idle[0]} is of the passes of exact: true: leave it out, or leave out exact: false")
        return self


class DCP(Discriminating):
    """Choose channels."""

    name = "dcp"
    Config = DCPSettings
    settings: DCPSettings

    def prepare(self) -> None:
        """See what can be chosen from."""
        super().prepare()
        self._scores: dict[str, FloatArray] = {}
        self._slopes: dict[str, Slopes] = {}
        self._joint: Reconstruction | None = None
        self._settled: dict[str, BoolArray] = {}
        if self.settings.stop == "share" and self.allocator not in ("global", "uniform"):
            self.notes.append(f"Widths follow from shares: allocator={self.allocator!r} was not applied.")

    # ------------------------------------------------------------------------------------------------- from the data

    def _survey(self, work: Work) -> None:
        """Learn the classifiers; with a tolerance, see how losses fall in the whole network."""
        super()._survey(work)
        self._slopes = self._look_ahead(work)
        self._others: dict[str, Reconstruction] = {}
        self._settled = {}
        if self.settings.stop == "share":
            return
        self._scores = {name: np.zeros(len(mine)) for name, mine in self._channels.items()}
        floors = dict(zip(self._channels, self.constraints.floors(self.graph).tolist(), strict=True))
        seen: set[str] = set()
        for stop in self._stops(work, list(self._tables)):
            table = self._table(stop)
            fresh = [g for g, mine in self._channels.items() if g not in seen and np.isin(mine, table).any()]
            seen.update(fresh)
            moments = self._moments(work, stop, anew=bool(fresh))
            for group in fresh:
                if floors[group] < len(self._channels[group]):
                    self._scores[group] = self._survival(work, stop, moments, group)
        plan = self._allocate(self._scores)
        self._settled = plan.masks
        work.widths = plan.widths

    def _look_ahead(self, work: Work) -> dict[str, Slopes]:
        """Gradients of the losses further on, at every layer of the whole network; none where passes tell them."""
        s = self.settings
        if s.exact or not s.weight:
            return {}
        pairs = list(zip(work.shown, work.targets, strict=True))
        behind = {name: self._behind([name]) for name in self._tables}
        found = loss_slopes(
            work.case.dense, pairs, behind, lambda *pair: finite(work.loss(*pair)), work.sampler, MEMORY
        )
        if found is None:
            self._say(
                f"Gradients of all layers would take more than {MEMORY / 2**30:g} GiB: the loss is asked round by "
                "round, as with exact: true; fewer images or positions are faster."
            )
        return found or {}

    def _moments(self, work: Work, stop: Stop, *, anew: bool) -> PatchSums:
        """Where channels are chosen, those of the losses together."""
        if not anew or stop.layer not in self._slopes:
            return super()._moments(work, stop, anew=anew)
        case, norm, constant = work.case, self._norms.get(stop.layer), self._has_constant(stop.layer)
        blocks = samples(case.model, stop.layer, stop.batches(), work.sampler, norm)
        self._joint = self._slopes[stop.layer].joint(blocks, self.settings.weight, constant=constant)
        return self._joint.moments

    def _goal(self, stop: Stop, moments: PatchSums) -> Reconstruction:
        """What the layer's weights are to bring to its least."""
        if self._joint is not None and self._joint.moments is moments:
            return self._joint
        return Reconstruction(moments, constant=self._has_constant(stop.layer))

    def _ahead(self, work: Work, layer: str) -> Reconstruction | None:
        """What the loss further on makes of the weights of a layer that has its turn later."""
        if layer not in self._slopes:
            return None
        if layer not in self._others:
            blocks = dense_blocks(work.case.dense, work.shown, layer, work.sampler)
            self._others[layer] = self._slopes[layer].joint(blocks, self.settings.weight, constant=False, alone=True)
        return self._others[layer]

    def _survival(self, work: Work, stop: Stop, moments: PatchSums, group: str) -> FloatArray:
        """Up to which tolerance every channel stays, with all layers before as they were; nothing is changed."""
        selection = self._of_group(work, stop, moments, group)
        before = [part.layer.weight.clone() for part in selection.parts]
        width = len(self._channels[group])
        selection.run(width, self._per_round(width))
        selection.restore(before)
        return survival(selection.losses, selection.added, selection.order)

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
            goal = self._goal(stop, moments) if name == stop.layer else self._ahead(work, name)
            parts.append(Part(name, layer, units, layer.weight.clone(), goal))
        first = parts[0].goal
        assert first is not None
        return self._selection(work, parts, len(mine), first, self.settings.norm, whole=bool(self._slopes))

    def _check_reach(self) -> None:
        if self.settings.stop == "tolerance":
            self._allocate({g.name: np.ones(g.width) for g in self.graph.groups})
        else:
            super()._check_reach()


def columns_of(layer: nn.Module, table: IntArray, mine: IntArray, gone: BoolArray) -> torch.Tensor:
    """The unit of every kernel [outputs, inputs] where units are channels.

    table: the channel at each input, -1: of none. mine: numbers of those to choose from. gone: inputs that went.
    """
    local = torch.from_numpy(np.where(np.isin(table, mine), table - mine[0], np.where(gone, -2, -1)))
    weight: Any = layer.weight
    groups = int(getattr(layer, "groups", 1))
    return local.view(groups, -1).repeat_interleave(len(weight) // groups, 0).to(weight.device)


ROW = MethodRow(
    name="dcp",
    summary="inputs added one after the other by reconstruction error and the loss of auxiliary classifiers",
    paper="Discrimination-aware Network Pruning for Deep Model Compression",
    year=2021,
    arxiv="2001.01050",
    needs="calibration",
    acts="after training",
    granularity="channel",
    fidelity="written from the conference paper, its supplement and the official code; for speed, classifiers are "
    "trained on the fixed network, several channels are added per round and an exact fit precedes SGD; added here: "
    "channel counts from a budget, or from one tolerance that meets it",
    factory=DCP,
    settings=DCPSettings,
    labels=True,
    variants=(
        {"rounds": None, "norm": "frobenius", "streams": True, "weight": 0.0},
        {"stop": "tolerance", "shortcuts": True, "weight": 0.0},
    ),
)
