"""Functionality-oriented filter pruning: of filters that look for the same, some are enough.

Qin, Yu, Liu, Chen: Functionality-Oriented Convolutional Filter Pruning, BMVC 2019 (arXiv:1810.07322). The image V_i
that excites channel i most, found by gradient ascent on the image, shows its function. Channels of a group whose images
are alike are clustered; in each cluster those go on which the output hangs least, and the last one of a cluster stays:

    X <- X + η g / ‖g‖,  g = d mean(A_i) / dX                                 (activation maximisation)
    d(i, j) = ‖v_i - v_j‖²,  v = V - mean, of length 1                        (clusters S_1..S_K by k-means)
    γ_i = mean over samples and positions of |dZ / dA_i|                      (contribution; Z the true class's logit)
    n = floor(r c) channels go, in proportion to |S_k| - 1 by largest remainder, the smallest γ of each first

Only the abstracts were read; γ and the ascent are stated in public reports on a sister method (CAPTOR) of the group.
K-means on pixels, K between c/3 and c/2 and the larger share for larger clusters are recalled, unverified.

Where this differs from that, or is our own, and why:
    K is the number of the best mean silhouette, of eight between c/3 and c/2; the smaller one where they are equal.
    r = ρ (c - K) / c with one ρ for all groups, set by the budget; layers have no shares of their own. What is left of
        the budget goes to the channels that
        would have been next. At ρ = 1 one channel of every function is left. Below that functions become coarser:
        the group is clustered again, into as many clusters as channels may stay.
    All images start from the same noise and stay within the pixels of the calibration images, whose sides they have, or
        64 pixels where the network takes those; not the side of what a channel sees. With `ascent: constant` all steps
        are as long, as in the reports (200 to 1000 of them). By default steps have momentum and get shorter: 40 then
        reach what 200 of one length reach (97 to 104% in three layers of a ResNet-8 on small digits; 40 of one length:
        69 to 80%). Clusters have not settled: from another noise they agreed by an adjusted Rand index of 0.3 to 0.5.
    That clusters of functions can be cut without retraining, as the paper says, we could not reproduce. The control are
        random clusters of the same sizes: on a ResNet-20 with 98.7% on small digits, at 0.7 of the operations and
        straight after the cut, they keep 26, 14 and 52% (three draws), and the clusters of images 19, 41 and 22%.
    γ is taken from at most `images` images, of every class as many where there are more; K is found with three starts
        of k-means, and the clusters with `restarts`.
    A map is what the first layer that reads it is given, behind a pooling, too; where layers make channels together,
        one image shows what all of them make, and not one for each.
    Residual streams stay whole, as in the paper, unless the budget cannot be met so.
    `wrt: weight` (a remark in the reports; they give no formula): γ from the weights that make a channel, the mean of
        |dZ_n / dW| over the samples and the channel's weights in a kernel. Where several layers make it, a sum or a
        depthwise convolution behind another, theirs are added. Biases and norms do not count. One backward a sample.
    `merge` (ours, as is its measure): what reads a channel that goes is added, s times, to what reads the one of its
        cluster with the largest γ that stays. s = <A_i, A_k> / <A_k, A_k> over the calibration images, in front of
        every reader: nothing is lost where filters are equal. What a layer norm looks at together is not merged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._distributed import global_sum, rank, world
from secateur._hints import few
from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.allocate import allocate
from secateur.errors import ConfigError, ModelError
from secateur.graph import Group
from secateur.graph.channels import module_of
from secateur.graph.modules import call_with_copies, named_tensors
from secateur.graph.norms import sources
from secateur.graph.readers import readers
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.functionality.images import (
    Ascent,
    Contribution,
    Extremes,
    Gamma,
    Maps,
    View,
    WeightContribution,
    directions,
    maximise,
    singly,
    true_logit,
)
from secateur.methods.functionality.merge import Likeness, absorb, heirs, inexact, read_places
from secateur.methods.functionality.quicker import quicker
from secateur.methods.functionality.redundancy import going, removed
from secateur.methods.kit.classes import class_numbers, few_of
from secateur.methods.kit.clustering import kmeans
from secateur.methods.kit.floors import keep_streams
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair.base import Repair
from secateur.statistics.gather import count, gather, replayable

#: Numbers of clusters that are tried for a group.
_TRIED = 8
#: Starts of k-means while their number is looked for.
_STARTS = 3
#: Largest side of the synthetic images if nobody says.
_SIDE = 64
_MOMENTUM = 0.9


class FunctionalitySettings(Settings):
    """Defaults are for small networks on one core; the reports have 200 to 1000 steps of one length."""

    ascent_steps: int = Field(40, ge=1, le=10_000, description="ascent steps of every image")
    ascent: Literal["momentum", "constant"] = Field(
        "momentum", description="steps with momentum that get shorter, or of one length as in the reports"
    )
    rate: float = Field(1.0, gt=0, description="η, length of a step on images of 32x32; larger ones take more")
    blur: float = Field(0.4, ge=0, le=3, description="σ of the blur after each step, in pixels; 0: none")
    size: int | None = Field(None, ge=4, description="side of the images; null: as the example inputs, 64 at most")
    anywhere: bool = Field(False, description="compare spectra, which are the same wherever a texture lies")
    contribution: Literal["gradient", "taylor"] = Field(
        "gradient",
        description="γ from |dZ/dA|, or from |A dZ/dA| where scales within a group differ (A: what `wrt` says)",
    )
    wrt: Literal["map", "weight"] = Field(
        "map", description="γ from gradients with respect to a channel's map, or to the weights that make it"
    )
    images: int = Field(1000, ge=1, description="calibration images for γ")
    restarts: int = Field(10, ge=1, le=1000, description="starts of k-means, of which the best counts")
    chunk: int = Field(64, ge=1, description="channels whose images climb together; bounds memory")
    merge: bool = Field(
        False, description="add what reads a channel that goes to what reads the strongest of its cluster that stays"
    )


class Functionality(Method):
    """Cluster channels by what excites them; of each cluster the weakest go."""

    name = "functionality"
    Config = FunctionalitySettings
    settings: FunctionalitySettings
    comparable = "none"

    def prepare(self) -> None:
        """See where channels are read, and which groups stay whole."""
        args, keywords = call_with_copies(self.example_inputs)
        if keywords or len(args) != 1 or not isinstance(args[0], torch.Tensor) or args[0].dim() != 4:
            raise ModelError(
                f"functionality draws images, and {type(self.model).__name__} does not take one tensor [samples, "
                "colours, height, width] and nothing else: choose another method."
            )
        self._shape = tuple(args[0].shape[1:])
        self._views, unseen = self._look()
        if not self._views:
            raise ModelError(
                f"No channel of {type(self.model).__name__} is read by convolutions and linear layers alone, so that "
                "there is no map to look at: choose another method."
            )
        if unseen:
            self.notes.append(f"Groups that other layers read stay whole: {', '.join(unseen[:3])}.")
            self.constraints = self.constraints.keeping(unseen)
        if self.settings.wrt == "weight":
            self._keep_without_kernels()
        keep_streams(self)
        self._likeness: Likeness | None = None
        self._merged: list[str] = self._mergers() if self.settings.merge else []
        if self.normalise != "none":
            self.notes.append(f"Ranks of redundancy are compared, so normalise={self.normalise!r} was not applied.")
        self._rows: dict[str, FloatArray] = {}  # what is clustered
        self._labels: dict[str, IntArray] = {}  # the cluster of every channel
        self._coarser: dict[tuple[str, int], IntArray] = {}  # by group and number, clusters that plans asked for
        self._gamma: dict[str, FloatArray] = {}

    def _look(self) -> tuple[dict[str, View], list[str]]:
        """Where each group is seen, by name; and the groups that are seen nowhere."""
        tables, others = readers(self.graph)
        first_use, modules = self.graph.recording.first_use, dict(self.graph.model.named_modules())
        order = sorted(tables, key=lambda name: first_use.get(f"{name}.weight", 0))
        views, first = dict[str, View](), 0
        for group in self.graph.groups:
            inside = [name for name in order if ((tables[name] >= first) & (tables[name] < first + group.width)).any()]
            before = self._before(group, first_use.get(f"{inside[0]}.weight", 0), modules) if inside else None
            if before is not None and group.name not in others:
                table = tables[inside[0]]
                own = np.flatnonzero((table >= first) & (table < first + group.width))
                index = own[np.argsort(table[own], kind="stable")].reshape(group.width, -1)
                views[group.name] = View(inside[0], index, *before)
            first += group.width
        return views, [g.name for g in self.graph.groups if g.name not in views]

    def _before(self, group: Group, until: int, modules: dict[str, nn.Module]) -> tuple[str, int, IntArray] | None:
        """The last layer or norm that shows the group before it is read."""
        first_use = self.graph.recording.first_use
        owners = {module_of(m.name): first_use.get(m.name, 0) for m in group.producers()}
        seen = [tap for tap in self.graph.taps(group) if tap.module in owners and tap.position == 0]
        early = [
            tap for tap in seen if owners[tap.module] < until and any(True for _ in modules[tap.module].parameters())
        ]
        if not early:
            return None
        last = max(early, key=lambda tap: owners[tap.module])
        return last.module, last.dim, last.index

    def _keep_without_kernels(self) -> None:
        """Find the weights of every group, and keep those whole that have none."""
        own = dict(self.graph.model.named_parameters(remove_duplicate=False))
        self._kernels = {
            group.name: [m for m in group.producers() if m.name in own and own[m.name].dim() > 1]
            for group in self.graph.groups
            if group.name in self._views
        }
        bare = [name for name, members in self._kernels.items() if not members]
        if len(bare) == len(self._kernels):
            raise ModelError(
                f"No layer of {type(self.model).__name__} makes channels with a kernel, so that wrt=weight has no "
                "weights to look at: set wrt: map."
            )
        if bare:
            self.notes.append(f"Groups that no kernel makes stay whole: {few(bare)}.")
            self.constraints = self.constraints.keeping(bare)

    def _mergers(self) -> list[str]:
        """The groups whose channels can be merged; ConfigError if there are none."""
        names = self._cut_groups()
        bad = inexact(self.graph, names, self.seed)
        if len(bad) == len(names):
            raise ConfigError(
                f"Merging equal channels changes what {type(self.model).__name__} computes: set merge: false."
            )
        if bad:
            self.notes.append(f"Groups in which merging equal channels is not exact are not merged: {few(bad)}.")
        return [name for name in names if name not in bad]

    # ------------------------------------------------------------------------------------------------- from data

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """γ of all channels in one pass over at most `images` images; then the images of every channel, and clusters.

        The loss is not needed: what is differentiated is the logit.
        """
        names = self._cut_groups()
        shown, extremes, contribution = _balanced(batches, self.settings.images), Extremes(), self._contribution(names)
        self._coarser = {}
        if self.settings.wrt == "weight":
            shown = singly(shown)
        self._likeness = Likeness(read_places(self.graph, self._merged)) if self._merged else None
        gather(self.model, shown, [contribution, extremes, *([self._likeness] if self._likeness else [])], true_logit)
        looked_at = {view.before for view in self._views.values()}
        image = torch.zeros(1, *self._shape, dtype=next(self.model.parameters()).dtype, device=self.device)
        model, layout = quicker(self.model, sources(self.graph).of, image, shown=looked_at)
        for number, (name, gamma) in enumerate(zip(names, contribution.means(), strict=True)):
            found = gamma.cpu().numpy()
            self._gamma[name] = found / max(float(found.max()), 1e-300)
            self._rows[name] = self._functions(model, layout, self._views[name], extremes, number)
            self._labels[name] = self._clusters(self._rows[name])

    def _contribution(self, names: list[str]) -> Gamma:
        if self.settings.wrt == "weight":
            return WeightContribution([self._kernels[name] for name in names], self.settings.contribution)
        return Contribution([self._views[name] for name in names], self.settings.contribution)

    def _cut_groups(self) -> list[str]:
        floors = self.constraints.floors(self.graph).tolist()
        return [g.name for g, floor in zip(self.graph.groups, floors, strict=True) if floor < g.width]

    def _functions(
        self, model: nn.Module, layout: torch.memory_format, view: View, extremes: Extremes, number: int
    ) -> FloatArray:
        """The functions of a group's channels as rows [width, ...]; of several processes each draws its share."""
        s, side = self.settings, min(self.settings.size or _SIDE, *self._shape[1:])
        small = (self._shape[0], side, side)
        shape = small if side < min(self._shape[1:]) and self._fits(view, small) else self._shape
        device, dtype = self.device, next(self.model.parameters()).dtype
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float32)
        start = (0.1 * noise).to(device, dtype)
        rows = torch.zeros(len(view.index), start.numel(), dtype=dtype, device=device)
        if number % world() == rank():
            rate = s.rate * math.sqrt(start.numel()) / 55.0
            momentum = _MOMENTUM if s.ascent == "momentum" else 0.0
            ascent = Ascent(s.ascent_steps, rate, s.blur, extremes.low, extremes.high, momentum)
            found = maximise(model, view, start, ascent, chunk=s.chunk, layout=layout)
            rows = directions(found, anywhere=s.anywhere)
        points = global_sum(rows).double().cpu().numpy()
        if points.shape[1] <= points.shape[0]:
            return np.asarray(points)
        values, vectors = np.linalg.eigh(points @ points.T)  # the same distances in less space
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))

    def _fits(self, view: View, shape: tuple[int, ...]) -> bool:
        """Whether the network runs on images of this shape as far as this group, tried once.

        What reads a flattened map would see other positions, and not run.
        """
        if len(view.index[0]) > 1:
            return False
        image = torch.zeros(1, *shape, dtype=next(self.model.parameters()).dtype, device=self.device)
        try:
            with torch.no_grad(), Maps(self.model, view).open() as maps:
                maps.of(np.zeros(1, dtype=np.int64))(image)
        except RuntimeError:
            return False
        return True

    def _clusters(self, rows: FloatArray) -> IntArray:
        """The partition of the best mean silhouette, between a third and half as many clusters as channels."""
        from sklearn.metrics import silhouette_score

        low, high = math.ceil(len(rows) / 3), max(len(rows) // 2, 1)
        best, chosen = -math.inf, 1
        for clusters in np.unique(np.linspace(min(low, high), high, _TRIED).round().astype(np.int64)).tolist():
            labels = kmeans(rows, clusters, seed=self.seed, restarts=min(_STARTS, self.settings.restarts))
            score = float(silhouette_score(rows, labels)) if 2 <= clusters < len(rows) else -1.0
            if score > best:
                best, chosen = score, clusters
        return kmeans(rows, chosen, seed=self.seed, restarts=self.settings.restarts)

    # ------------------------------------------------------------------------------------------------ the result

    def score(self) -> dict[str, FloatArray]:
        """Minus the ρ at which a channel goes; above 1 where its function is the last of its kind."""
        if not self._labels:
            raise ConfigError(
                "The method 'functionality' has seen no data: call collect(batches, loss) before finish()."
            )
        scores = {group.name: np.zeros(group.width) for group in self.graph.groups}
        for name in self._labels:
            scores[name] = -going(self._labels[name], self._gamma[name])
        return scores

    def plan(self) -> Plan:
        """As many of every group as one ρ says within the budget: the weakest of what is there several times go."""
        plan = allocate(
            self.score(), self.graph, self.budget, self.constraints, allocator=self.allocator, normalise="none"
        )
        for name, labels in self._labels.items():
            plan.masks[name] = ~self._removed(name, len(labels) - plan.widths[name])
        plan.provenance.update(
            criterion=self.name, clusters={name: int(labels.max()) + 1 for name, labels in self._labels.items()}
        )
        if self.settings.merge:
            plan.provenance["merged"] = {n: [a.tolist(), b.tolist()] for n, (a, b) in self._heirs(plan).items()}
        return plan

    def _removed(self, name: str, number: int) -> BoolArray:
        return removed(self._partition(name, number), self._gamma[name], number)

    def _partition(self, name: str, number: int) -> IntArray:
        """The clusters of a group that loses so many channels."""
        labels = self._labels[name]
        kept = len(labels) - number
        if kept > labels.max():
            return labels
        if (name, kept) not in self._coarser:  # fewer channels than functions
            self._coarser[name, kept] = kmeans(self._rows[name], kept, seed=self.seed, restarts=self.settings.restarts)
        return self._coarser[name, kept]

    # ------------------------------------------------------------------------------------------------------ merging

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """With `merge`, let what reads the strongest of a cluster take over what the others of it did."""
        tensors, groups = named_tensors(model), {group.name: group for group in self.graph.groups}
        for name, (gone, stays) in self._heirs(plan).items():
            assert self._likeness is not None  # or nothing has been collected, and there is no plan
            absorb(tensors, groups[name], gone, stays, self._likeness)

    def _heirs(self, plan: Plan) -> dict[str, tuple[IntArray, IntArray]]:
        """By group, the channels that are merged, and into which."""
        result = {}
        for name in self._merged:
            mask = plan.masks[name]
            if not mask.all():
                result[name] = heirs(self._partition(name, int((~mask).sum())), self._gamma[name], mask)
        return result

    def check_repairs(self, repairs: Sequence[Repair]) -> None:
        """Compensation computes the same weights from those before the cut."""
        if self.settings.merge and any(repair.name == "compensation" for repair in repairs):
            raise ConfigError(
                "The repair 'compensation' would overwrite what merge=true has added: leave it out, or set merge: "
                "false."
            )


def _balanced(batches: Iterable[tuple[Any, Any]], images: int) -> Iterable[tuple[Any, Any]]:
    """At most so many images, of every class as many as there are or as all the others; the first where none tells."""
    shown = replayable(batches)
    found: Counter[int] = Counter()
    for batch in shown:
        numbers = class_numbers(batch)
        if numbers is None:
            return _first(shown, images)
        found.update(numbers.tolist())
    if found.total() <= images:
        return shown
    left, counts = images, {}
    for place, (label, there) in enumerate(sorted(found.items(), key=lambda item: item[1])):
        counts[label] = min(there, left // (len(found) - place))
        left -= counts[label]
    return few_of(shown, counts)


def _first(batches: Iterable[tuple[Any, Any]], images: int) -> Iterator[tuple[Any, Any]]:
    """Batches until there are so many images."""
    shown = 0
    for batch in batches:
        if shown >= images:
            return
        yield batch
        shown += count(batch[0])


ROW = MethodRow(
    name="functionality",
    summary="of channels that the same images activate, those that the output depends on least",
    paper="Functionality-Oriented Convolutional Filter Pruning",
    year=2019,
    arxiv="1810.07322",
    needs="calibration",
    acts="after training",
    asks="scores",
    granularity="channel",
    fidelity="written from abstracts alone: gradient ascent and contribution as stated for a sister method; k-means "
    "and the range of K from memory, unverified; added here: silhouette, split, one pruning ratio for all groups, the "
    "steps of the ascent, and what `wrt: weight` and `merge` compute",
    factory=Functionality,
    settings=FunctionalitySettings,
    variants=(
        {"merge": True, "ascent_steps": 2, "restarts": 2},
        {"wrt": "weight", "contribution": "taylor", "anywhere": True, "ascent": "constant", "ascent_steps": 2},
    ),
    chance="clustering begins with channels that are drawn",
)
