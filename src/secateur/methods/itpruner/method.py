"""ITPruner: layers that depend least on the others stay widest, by normalised HSIC and a program for the widths.

Zheng, Ma, Xi, Zhang, Ding, Li, Chen, Tian, Ji: An Information Theory-inspired Strategy for Automatic Network Pruning
(arXiv:2108.08532), later in IJCV. Without a search and without training: with H the normalised HSIC of the activations
of all layers (`dependence.py`), and F the cost at shares p of all widths,

    h_l = sum_{m ≠ l} H_lm        alpha_l = exp(-beta h_l / sum h)
    max sum_l alpha_l p_l     such that F(p) <= T,  0 <= p <= 1                                  (`solvers.py`)

Within a layer the filters with the largest L1 norm stay, front to back, summed over the inputs that stay.

The published widths do not depend on H. With the authors' coefficients for VGG-16, alpha = 0, alpha = 1e-8 and random
alpha of that size all give exactly the published vector, and with the published beta alpha is 1e-8 or less, where the
solver's tolerance is 1e-6. With alpha of order 1 the same program sets whole layers to nothing. `solver: official` does
what the authors' code does; the default, `projection`, takes the steps that this amounts to in a metric in which alpha
counts, with beta such that the largest alpha is `spread` times the smallest.

Where else this differs from the paper, and why:
    The body of the paper was not obtained; its code was read and parts of it run. Images are calibration images, where
    the code takes the first batch of the test set.
    A variable is a group of channels, so that a residual stream is one; the code measures some networks' layers shifted
    by one against the widths. A group that several layers make is ranked by the sum of their norms.
    Every group keeps `r_min` of its channels; the code's bound is 0. F is the cost model's, in the budget's own terms.
    What the widths leave of the budget, or exceed it by, when they are rounded is made up for as in `kit/widths.py`.
    The unbiased HSIC and the RBF kernel are in no published run; the latter is an unused helper of the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._hints import few
from secateur._protocols import FloatArray
from secateur.errors import ConfigError
from secateur.graph import Graph, Group
from secateur.graph.channels import module_of
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.itpruner.dependence import (
    Estimator,
    Grams,
    Kernel,
    alphas,
    beta_for,
    first_images,
    nhsic,
    sights,
    totals,
)
from secateur.methods.itpruner.solvers import SOLVERS, Program
from secateur.methods.kit.floors import leave
from secateur.methods.kit.widths import fitted_plan
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.statistics.gather import gather

#: The published beta of VGG-16; others are 243 (MobileNetV1), 246 (ResNet-20), 500 (ResNet-56), 2000 (ResNet-50).
_BETA = 231.0
#: SLSQP's tolerance: an objective that changes by less is not looked at.
_SEEN = 1e-6
#: The biased HSIC of few images is near 1 whatever the layers do.
_ENOUGH = 100


class ITPrunerSettings(Settings):
    """The authors' values, save for the solver: see the module."""

    images: int = Field(100, ge=4, description="calibration images whose activations are compared (VGG-16: 1024)")
    kernel: Kernel = Field("linear", description="of the HSIC: linear, or rbf with the median distance as its width")
    estimator: Estimator = Field("biased", description="HSIC biased, as in the code, or unbiased")
    solver: Literal["projection", "linear", "official", "scaled"] = Field(
        "projection",
        description="widths: steps onto the budget weighed by importance; the program with alpha of mean 1 and many "
        "starts; as the authors' code runs it; or shares in proportion to importance",
    )
    beta: float | None = Field(
        None, ge=0, description="how sharply importance falls with dependence; null: as `spread` says (official: 231)"
    )
    spread: float = Field(6.0, ge=1, le=1e6, description="largest importance over the smallest, with beta: null")
    r_min: float = Field(0.1, gt=0, le=1, description="share of every group that stays")


class ITPruner(Method):
    """Widths by how little a layer depends on the others."""

    name = "itpruner"
    Config = ITPrunerSettings
    settings: ITPrunerSettings
    comparable = "none"

    def prepare(self) -> None:
        """See where groups can be looked at; say which options have no use here."""
        if self.allocator != self.usual_allocator() or self.normalise != "none":
            self.notes.append(
                "Widths follow from how much layers depend on each other, so allocator and normalise were not applied."
            )
        leave(self, self.settings.r_min, "r_min")
        self._sights = sights(self.graph)
        hidden = [group.name for group in self.graph.groups if group.name not in self._sights]
        if hidden:
            self.notes.append(f"Nowhere in a forward pass do these groups show, so they get the mean: {few(hidden)}.")
        self.dependence: FloatArray | None = None

    @torch.no_grad()
    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Measure how much all layers depend on each other, in one pass; targets and loss are not looked at."""
        images, seen = first_images(batches, self.settings.images, self.device)
        if seen < 4:
            raise ConfigError(f"ITPruner was shown {seen} images, and dependence needs 4 at least: show more.")
        if seen < min(_ENOUGH, self.settings.images):
            self._note([f"Dependence was measured on {seen} images: of fewer than {_ENOUGH} it tends to 1 everywhere."])
        grams = Grams(self._sights, seen, self.device)
        gather(self.model, [(images, None)], [grams])
        kernels = [*grams.kernels.values()]
        if not all(bool(kernel.isfinite().all()) for kernel in kernels):
            raise ConfigError("Activations of the calibration images are not finite: check the network and the images.")
        self.dependence = nhsic(kernels, self.settings.kernel, self.settings.estimator)

    def importance(self) -> tuple[dict[str, float], float]:
        """alpha of every group, and the beta it was made with; ConfigError before `collect`."""
        if self.dependence is None:
            raise ConfigError("The method 'itpruner' has seen no data: call collect(batches, loss) before finish().")
        s, h = self.settings, totals(self.dependence)
        usual = _BETA if s.solver == "official" else beta_for(h, s.spread)
        beta = usual if s.beta is None else s.beta
        alpha = dict(zip(self._sights, alphas(h, beta).tolist(), strict=True))
        mean = float(np.mean([*alpha.values()])) if alpha else 1.0
        return {group.name: alpha.get(group.name, mean) for group in self.graph.groups}, beta

    def shares(self) -> dict[str, float]:
        """The share of every group that the solver keeps, before it is rounded."""
        alpha, _ = self.importance()
        program = self._program(np.array([*alpha.values()]))
        found = SOLVERS[self.settings.solver](program, self.seed)
        return dict(zip(alpha, found.tolist(), strict=True))

    def _program(self, alpha: FloatArray) -> Program:
        widths = self.graph.widths().astype(np.float64)
        limits = self.budget.limits(self.graph.cost())

        def cost(p: FloatArray) -> FloatArray:
            found = self.graph.costs.evaluate(p * widths)
            return np.stack([np.asarray(found[key], dtype=np.float64) for key in limits], axis=1)

        return Program(alpha, self.constraints.floors(self.graph) / widths, cost, np.array([*limits.values()]))

    def plan(self) -> Plan:
        """The filters of the largest norm, in the widths of the solver."""
        (alpha, beta), shares = self.importance(), self.shares()
        wanted = {group.name: float(np.around(group.width * shares[group.name])) for group in self.graph.groups}
        plan = fitted_plan(
            self.graph, self.budget, self.constraints, wanted, lambda widths: restricted_norms(self.graph, widths)
        )
        told = {"criterion": self.name, "solver": self.settings.solver, "beta": beta, "importance": alpha}
        plan.provenance |= told | {"notes": [*plan.provenance.get("notes", ()), *self._said(alpha, beta)]}
        return plan

    def _said(self, alpha: Mapping[str, float], beta: float) -> list[str]:
        low, high = min(alpha.values()), max(alpha.values())
        said = [f"With beta={beta:.4g} importance lies between {low:.3g} and {high:.3g}."]
        if self.settings.solver == "official" and high < _SEEN:
            said.append(
                "That is below the solver's tolerance, so that these widths do not depend on the layers' importance, "
                "as the published ones do not."
            )
        return said


def restricted_norms(graph: Graph, widths: Mapping[str, int]) -> dict[str, FloatArray]:
    """L1 norms of all groups' filters, front to back, each over the inputs that stay at these widths."""
    first, weights = graph.recording.first_use, {}
    makers = {group.name: _makers(graph, group) for group in graph.groups}
    for name, tensor in graph.tensors().items():
        if tensor.ndim > 1:
            weights[name] = tensor.detach().abs().double().cpu()
    order = sorted(graph.groups, key=lambda group: min((first.get(m, 0) for m in makers[group.name]), default=0))
    norms: dict[str, FloatArray] = {}
    for group in order:
        total = np.zeros(group.width)
        for member in group.producers():
            if member.name in makers[group.name]:
                each = weights[member.name].movedim(member.dim, 0).flatten(1).sum(1).numpy()
                total += each[member.index].sum(1)
        norms[group.name] = total
        gone = np.argsort(-total, kind="stable")[widths[group.name] :]
        for member in group.consumers():
            if member.name in weights:
                weights[member.name].index_fill_(member.dim, torch.from_numpy(member.index[gone].reshape(-1)), 0.0)
    return norms


def _makers(graph: Graph, group: Group) -> set[str]:
    """The weights whose filters make a group; depthwise ones, which follow their input, only if there is no other."""
    modules, tensors = dict(graph.model.named_modules()), graph.tensors()
    names = {member.name for member in group.producers() if tensors[member.name].ndim > 1}
    return {name for name in names if not _depthwise(modules.get(module_of(name)))} or names


def _depthwise(layer: nn.Module | None) -> bool:
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "in_channels", 0)


ROW = MethodRow(
    name="itpruner",
    summary="widths by how little layers depend on each other (normalised HSIC), filters by L1 norm",
    paper="An Information Theory-inspired Strategy for Automatic Network Pruning",
    year=2021,
    arxiv="2108.08532",
    needs="calibration",
    acts="after training",
    granularity="channel",
    fidelity="written from the abstract and the authors' code, parts of which were run: dependence, importance, "
    "optimisation and filters are theirs. The published widths do not depend on the scores: alpha = 0, 1e-8 and "
    "random alpha of that size give exactly the published VGG-16; added here: the default solver, in which scores "
    "count, its beta, and groups of coupled channels",
    factory=ITPruner,
    settings=ITPrunerSettings,
    variants=(
        {"solver": "linear", "estimator": "unbiased", "kernel": "rbf"},
        {"solver": "scaled", "spread": 2.0},
        {"solver": "official"},
    ),
)
