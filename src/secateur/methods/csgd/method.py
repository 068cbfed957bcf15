"""Filters that are trained to become equal, and then merged: Centripetal SGD.

Ding, Ding, Guo, Han: Centripetal SGD for Pruning Very Deep Convolutional Networks with Complicated Structure, CVPR
2019 (arXiv:1904.03837); Ding, Hao, Han, Guo, Ding: Manipulating Identical Filter Redundancy, 2021 (arXiv:2107.14444).
The filters of every group are divided into as many clusters as are to stay. From then on each filter F_j follows

    F_j <- F_j + tau (- mean of dL/dF over its cluster H  -  eta F_j  +  eps (mean of F over H - F_j)),

and with it its bias and its norm's scale and shift. What differs in a cluster dies out by 1 - tau (eta + eps) a step,
whatever the loss. In the end one filter of each stays, and its readers get the sum of their weights for the cluster:
the network computes what it did, and needs no fine-tuning.

Sources: matrices, trim, multi-round, groups, vectors and hyper-parameters from the official code read; update formula,
chi, kept set and clustering in words from a public reading note of the CVPR paper, consistent with the code; abstracts
of both papers read, full paper text not available; the squeeze experiment's exact widths and epochs are recalled only.

With an optimiser: `after_backward` turns the gradient G into Γ G + eps (W - Γ W) (`centripetal.py`). The optimiser adds
its own weight decay, which is the paper's eta, and then applies momentum: torch.optim.SGD so takes exactly the paper's
step, Nesterov's included. The `weight_decay` of this method is for optimisers without one; both together decay twice.
An adaptive optimiser rescales the pull, and the law above no longer holds: watch `deviation`. Give the stage a fresh
optimiser (the engine does): old momentum would keep filters of a cluster different.

Where this differs from the paper, and why:
    The optimiser's decay acts on scales, shifts and biases too, unless it leaves them out; the authors leave them out.
    The engine clips after `after_backward`, so the pull counts in the norm; the authors do not clip.
    strength null: so that strength times steps is what it was in the paper's training on CIFAR-10, as short trainings
        would end before filters are equal. The mean of a cluster does not depend on it. Where it ends at 1 and that is
        not enough, `vectors` null raises the vectors' share, so that theirs times steps is what it was, up to 1.
    The authors use Nesterov momentum, which is `nesterov: true` of a recipe's stage, and twice the learning rate for
        biases, which is possible in a training loop of one's own alone.
    The paper does not train after the cut. Fine-tuning in a recipe comes on top.
    Widths are chosen for a budget; the paper gives them. By default all groups keep the same share, as in the paper.
    With several rounds clusters are clustered again between rounds, but all is cut once, in the end.
    Groups in which merging is not exact, at a layer norm say, stay whole; this is tried on random weights.
    Before the cut the filters of a cluster get their mean: what is merged is equal, whatever is left of differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._distributed import global_sum, rank, world
from secateur._hints import few
from secateur._protocols import FloatArray, IntArray
from secateur.errors import VerificationError
from secateur.graph.modules import named_tensors
from secateur.methods.contract import Method, Settings
from secateur.methods.csgd.centripetal import Centripetal, clustered_rows
from secateur.methods.csgd.cluster_counts import alike, by_spread, squeezed, unmergeable
from secateur.methods.csgd.pacesetters import Makers
from secateur.methods.csgd.partitions import CLUSTERINGS
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.clustering import ordered
from secateur.methods.kit.loss_share import LossShare
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair.merging import collapse, difference, kept, merge, outputs, representatives
from secateur.surgery import Result

#: The paper's strength on CIFAR-10, and for how many steps: 600 epochs of 782 batches.
_STRENGTH, _STEPS = 3e-3, 600 * 782
#: What vectors get of it in the authors' PyTorch code.
_VECTORS = 0.1


class CSGDSettings(Settings):
    """Defaults are the paper's and, for vectors, the authors' PyTorch code's, where the training is as long."""

    clustering: Literal["kmeans", "even", "biased"] = Field(
        "kmeans", description="clusters by k-means, of neighbours, or one large one (for comparison)"
    )
    features: Literal["pacesetter", "all"] = Field(
        "pacesetter", description="filters that are compared: of a group's first layer, or of all its layers"
    )
    restarts: int = Field(10, ge=1, le=100, description="starts of k-means, of which the best is taken")
    strength: float | None = Field(
        None,
        gt=0,
        le=10,
        description="centripetal strength eps; null: 0.003, and more (up to 1) in a training shorter than the paper's",
    )
    vectors: float | None = Field(
        None,
        ge=0,
        le=1,
        description="strength for biases, scales and shifts, as a share of the kernels'; null: 0.1, and more (up to 1, "
        "as in the CVPR code) in a training in which that would leave them unequal",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decay of clustered kernels beside the optimiser's own, which is the paper's eta"
    )
    widths: Literal["uniform", "spread"] = Field(
        "uniform",
        description="the same share of every group, or by the allocator (without normalise): more where filters differ",
    )
    squeeze: float | None = Field(
        None, gt=1, description="train wide, then squeeze: every group ends at its width divided by this"
    )
    rounds: int = Field(1, ge=1, le=20, description="clusters are clustered again, coarser, so many times in all")


class CSGD(Method):
    """Train filters into clusters of equal ones; one of each stays, and the others are merged into it."""

    name = "csgd"
    Config = CSGDSettings
    settings: CSGDSettings

    def prepare(self) -> None:
        """Decide how many clusters every group gets, and which channels are in which."""
        self.aim = Aim(self.graph, self.budget)
        self._keep_unmergeable()
        self._plan = self._counted()
        s, short = self.settings, _STRENGTH * _STEPS * self.settings.rounds / self.steps
        self.strength = s.strength or min(max(_STRENGTH, short), 1.0)
        self.vectors = min(_VECTORS * max(1.0, short / self.strength), 1.0) if s.vectors is None else s.vectors
        self.round = 0
        self.clusters: dict[str, IntArray] = {g.name: np.arange(g.width) for g in self.graph.groups}
        self._cluster()
        self._loss = LossShare()
        self._share: torch.Tensor | float = 0.0
        self.agreement = self.merging = float("nan")

    # ------------------------------------------------------------------------------------------------ the clusters

    def _keep_unmergeable(self) -> None:
        """Keep groups whole in which equal channels cannot become one."""
        bad = unmergeable(self.graph, self.seed)
        if bad:
            self.notes.append(f"Groups in which merging equal channels is not exact stay whole: {few(bad)}.")
            self.constraints = self.constraints.keeping(bad)

    def _counted(self) -> Plan:
        """How many clusters every group gets in the end, as a plan."""
        s = self.settings
        if s.squeeze is not None:
            plan = squeezed(self.graph, self.aim, self.constraints, s.squeeze)
            plan.provenance["budget"] = self.budget.as_dict()
            return plan
        if s.widths == "spread":
            return by_spread(self.graph, self.budget, self.constraints, self.allocator, s.features)
        return alike(self.graph, self.budget, self.constraints)

    def _target(self, group: str, width: int) -> int:
        """How many clusters a group has in this round: from round to round a step of equal size."""
        final, left = self._plan.widths[group], self.settings.rounds - 1 - self.round
        return final + (width - final) * left // self.settings.rounds

    def _cluster(self) -> None:
        """Cluster what the last round left of every group: at first its channels, later its clusters."""
        s, makers = self.settings, Makers(self.graph)
        for number, group in enumerate(self.graph.groups):
            old, target = self.clusters[group.name], self._target(group.name, group.width)
            first = representatives(old)
            if target < len(first):
                rows = makers.rows(group.name, s.features)
                means = np.stack([rows[old == k].mean(0) for k in range(len(first))])
                seed = (self.seed * 1009 + number) % 2**32
                found = CLUSTERINGS[s.clustering](means, target, seed=seed, restarts=s.restarts)
                self.clusters[group.name] = ordered(found[old])
        if world() > 1:  # k-means may round otherwise elsewhere, and clusters that differ would diverge in silence
            self._agree()
        self._follow()

    def _follow(self) -> None:
        rows = clustered_rows(self.graph, self.clusters)
        self.update = Centripetal(rows, dict(self.model.named_parameters()))

    def _agree(self) -> None:
        flat = torch.from_numpy(np.concatenate(list(self.clusters.values()))).to(self.device)
        flat = global_sum(flat * (rank() == 0)).cpu()
        parts = flat.split([len(labels) for labels in self.clusters.values()])
        self.clusters = {name: part.numpy() for name, part in zip(self.clusters, parts, strict=True)}

    # ---------------------------------------------------------------------------------------------------- training

    def loss(self) -> torch.Tensor:
        """Zero, with a gradient that tells which share of the step's loss went backward, in whatever scale.

        The pull is added in the same share: so it comes out right with several micro-batches, several processes and
        losses scaled for half precision.
        """
        return self._loss.zero(self.device)

    def after_backward(self) -> None:
        """Average gradients over clusters and add the pull."""
        self._share = self._share + self._loss.taken(self.name)
        # averaging once more what was averaged changes nothing, and takes the pull of earlier micro-batches away
        self.update.transform(
            strength=self.strength,
            vectors=self.vectors * self.strength,
            decay=self.settings.weight_decay,
            share=self._share,
        )

    def after_step(self) -> None:
        """Begin the next round when it is time."""
        super().after_step()
        self._share = 0.0
        if self.round + 1 < self.settings.rounds and self.step * self.settings.rounds >= self.steps * (self.round + 1):
            self.round += 1
            self._cluster()

    def metrics(self) -> dict[str, float]:
        """How far filters are from their clusters' means: chi as the paper has it, and relative to their size."""
        found, widths = self.update.deviations(), {name: len(np.unique(x)) for name, x in self.clusters.items()}
        return {
            "flops": self.aim.cost(widths)["macs"] / max(self.aim.full["macs"], 1.0),
            "channels": sum(widths.values()) / sum(self.aim.groups.values()),
            "chi": found["kernels"],
            "chi_vectors": found["vectors"],
            "deviation": (found["kernels"] / max(found["size"], 1e-30)) ** 0.5,
            "strength": self.strength,
        }

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """As trained, and with every filter replaced by its cluster's mean, which is what the cut network computes."""
        return {"soft": nullcontext(), "hard": self._collapsed()}

    @contextmanager
    def _collapsed(self) -> Iterator[None]:
        tensors = named_tensors(self.model)
        names = {member.name for group in self.graph.groups for member in group.producers()}
        before = {name: tensors[name].detach().clone() for name in names}
        try:
            collapse(tensors, self.graph, self._final())
            yield
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    tensors[name].copy_(tensor)

    # ---------------------------------------------------------------------------------------------------- the result

    def _final(self) -> dict[str, IntArray]:
        """The clusters of the last round; before it, those that would be made now."""
        if self.round + 1 == self.settings.rounds:
            return self.clusters
        clusters, number, update = dict(self.clusters), self.round, self.update
        try:
            self.round = self.settings.rounds - 1
            self._cluster()
            return self.clusters
        finally:
            self.clusters, self.round, self.update = clusters, number, update

    def score(self) -> dict[str, FloatArray]:
        """1 for the channel that stays of every cluster, 0 for those that are merged into it."""
        return {name: kept(labels).astype(np.float64) for name, labels in self._final().items()}

    def plan(self) -> Plan:
        """The first channel of every cluster; the provenance says who merges with whom."""
        final = self._final()
        merged = {n: labels.tolist() for n, labels in final.items() if len(np.unique(labels)) < len(labels)}
        provenance = {**self._plan.provenance, "criterion": "csgd", "clusters": merged}
        return Plan({name: kept(labels) for name, labels in final.items()}, provenance)

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Make the members of every cluster equal, and merge what reads them."""
        tensors, final = named_tensors(model), self._final()
        collapse(tensors, self.graph, final)
        merge(tensors, self.graph, final)

    def check(self, result: Result) -> None:
        """Compare what was cut with the network as trained (`agreement`) and with equal clusters (`merging`)."""
        trained, given = outputs(self.model, self.example_inputs), outputs(result.model, self.example_inputs)
        with self._collapsed():
            equal = outputs(self.model, self.example_inputs)
        self.agreement, self.merging = difference(trained, given), difference(equal, given)
        if not self.merging <= 1e-4:
            raise VerificationError(
                f"The merged network differs from the one with equal clusters by {self.merging:.1e} of the largest "
                "output. This is a defect of csgd for this network; please report it, and choose another method."
            )
        if not self.agreement <= 1e-4:
            self.notes.append(
                f"Filters had not become equal: merging changed the output by {self.agreement:.1e} of the largest "
                f"(strength {self.strength:.3g}; vectors {self.vectors:.3g}, of which 1 is the most). Train longer, or "
                + ("raise `vectors`, then `strength`." if self.vectors < 1 else "raise `strength`.")
            )

    def state(self) -> dict[str, Any]:
        """The step, the round and the clusters."""
        clusters = {name: labels.tolist() for name, labels in self.clusters.items()}
        return super().state() | {"round": self.round, "clusters": clusters}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self.round = int(state["round"])
        self.clusters = {g.name: np.array(state["clusters"][g.name], dtype=np.int64) for g in self.graph.groups}
        self._follow()


ROW = MethodRow(
    name="csgd",
    summary="filters trained to become equal in clusters, then merged without loss",
    paper="Centripetal SGD for Pruning Very Deep Convolutional Networks with Complicated Structure",
    year=2019,
    arxiv="1904.03837",
    needs="training",
    acts="while training",
    granularity="channel",
    fidelity="matrices, trimming, several rounds, groups, vectors and hyper-parameters from the official code; "
    "update formula, chi, which filters are kept and the clustering from a public reading note of the CVPR paper, "
    "consistent with the code; of both papers only the abstracts were available; widths and epochs of the squeeze "
    "experiment from memory",
    factory=CSGD,
    settings=CSGDSettings,
    finetunes=False,
    acting=1.0,
    chance="k-means begins with filters that are drawn, and clusters are filled in the order of the filters",
    variants=({"clustering": "even", "rounds": 2},),
)
