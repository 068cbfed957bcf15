"""Scores that are comparable between groups because removal was measured: by how much the network's answers change.

For each group alone, with the channels that score least removed and the layers that read it compensated in closed form,

    e_g(k) = |y' - y|² / |y|²          y: answers of the whole network on held-out images, y': with k channels removed

at a few k. The j-th channel to go is worth the slope of the lower convex hull of e_g there, so that an allocator that
divides by cost lowers the sum of all e_g, as far as errors of groups add up. Within a group the order stays as scored.
Where this is CaP's, by what the others can reconstruct, orders and trials are of one mind: both count on compensation.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from secateur._hints import few
from secateur._progress import follow
from secateur._protocols import FloatArray, IntArray
from secateur.allocate import MEASURED, Constraints, allocate, fitting_scores
from secateur.batches import Batches
from secateur.budget import Budget
from secateur.errors import ConfigError, ModelError
from secateur.graph import Graph
from secateur.graph.channels import Group, module_of
from secateur.graph.modules import clone_module
from secateur.graph.nests import output_tensors
from secateur.methods.kit.scores import Scores
from secateur.plan import Plan, fingerprint
from secateur.repair.base import LAYERS, Case, norms_of
from secateur.repair.compensation import compensate
from secateur.repair.distillation import relative_error
from secateur.repair.least_squares import limited
from secateur.statistics.gather import gather, untouched
from secateur.statistics.held_out import HeldOut
from secateur.statistics.moments import Moments

#: Shares of a group that are removed for a trial.
SHARES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
#: Images held out to measure on, at most; output positions of the others that statistics are made of.
_HELD, _POSITIONS = 64, 49
#: Images without which nothing can be measured.
LEAST = 8
#: Columns of a layer's weight beyond which it is not compensated in trials: their covariance would take 200 MB.
_COLUMNS = 5000
#: The error of a network whose answers are no numbers.
_USELESS = 1e6


def passes(groups: int) -> int:
    """How many images run forward, about, where so many groups are measured."""
    return groups * len(SHARES) * _HELD


class Measured:
    """What makes scores of one network comparable by measuring, on one set of images; no trial is made twice."""

    name: ClassVar[str] = MEASURED

    def __init__(self, data: Iterable[Any], seed: int = 0) -> None:
        """Look at nothing yet.

        data: batches in any form that `Batches` reads, targets are not looked at. seed: of the positions that
        statistics are made of.
        """
        self._data, self._seed = data, seed
        self._known: dict[tuple[Any, ...], tuple[list[int], list[float]]] = {}
        self._network: tuple[float, ...] = ()
        self.images = 0
        self.notes: list[str] = []

    def plan(
        self, graph: Graph, scores: Mapping[str, Any], budget: Budget | None, constraints: Constraints
    ) -> Plan:  # fmt: skip
        """The widths that change the answers least within a budget; see `allocate`, and below for the rest."""
        worth = self(graph, scores, constraints)
        plan = allocate(worth, graph, budget, constraints, allocator="per_cost", normalise="none")
        plan.provenance["allocator"] = MEASURED
        if self.notes:
            plan.provenance["notes"] = [*plan.provenance.get("notes", ()), *self.notes]
        return plan

    def __call__(self, graph: Graph, scores: Mapping[str, Any], constraints: Constraints) -> Scores:
        """Scores in the order of the given ones within each group, worth what the answers change by without them.

        graph: of the same network every time. constraints: of the plan; groups that stay whole are not tried.

        Raises:
            ConfigError: scores do not fit the graph, fewer than eight images, or another network than before.
            ModelError: the network's answers are not finite, or no numbers.
        """
        network = tuple(float(tensor.detach().double().sum()) for tensor in graph.model.parameters())
        if self._known and network != self._network:
            raise ConfigError("A Measured knows one network, and this is another: make a Measured for each.")
        self._network = network
        floors = dict(zip((group.name for group in graph.groups), constraints.floors(graph).tolist(), strict=True))
        values = zip(graph.groups, fitting_scores(scores, graph, "none"), strict=True)
        orders = {group.name: np.argsort(-score, kind="stable") for group, score in values}
        keys = {
            group.name: (group.name, tuple(member.name for member in group.members), orders[group.name].tobytes())
            for group in graph.groups
        }
        left = [g for g in graph.groups if floors[g.name] < g.width and keys[g.name] not in self._known]
        if left:
            trials = GroupTrials(graph, Batches(self._data, graph.example_inputs), self._seed)
            self.images, self.notes = trials.images, trials.notes
            for group in follow("groups", left, len(left)):
                self._known[keys[group.name]] = trials.errors(group, orders[group.name])
        found, story = {}, {}
        for group in graph.groups:
            removed, errors = self._known.get(keys[group.name], ([0], [0.0]))
            tried = sum(count <= group.width - floors[group.name] for count in removed)
            removed, errors = removed[:tried], errors[:tried]
            found[group.name] = np.empty(group.width)
            found[group.name][orders[group.name][::-1]] = marginal(removed, errors, group.width)
            story[group.name] = {"removed": removed, "errors": [round(error, 6) for error in errors]}
        given = getattr(scores, "provenance", {})
        return Scores(found, {**given, "measured": {"images": self.images, "groups": story}})


def marginal(removed: list[int], errors: list[float], width: int) -> FloatArray:
    """What the 1st, 2nd, ... channel to go is worth [width]: slopes of the lower convex hull, rising.

    removed, errors: of the trials, both beginning with 0. Behind the last trial the last slope goes on, doubled.
    """
    points = [(0.0, 0.0)]
    for k, error in zip(removed[1:], np.maximum.accumulate(errors)[1:].tolist(), strict=True):
        while len(points) > 1 and _slope(points[-2], points[-1]) >= _slope(points[-2], (k, error)):
            points.pop()
        points.append((float(k), error))
    result = np.zeros(width)
    slope = 0.0
    for first, second in itertools.pairwise(points):
        slope = _slope(first, second)
        result[int(first[0]) : int(second[0])] = slope
    result[int(points[-1][0]) :] = 2 * slope
    # those that cost nothing, and those of one slope, keep their order
    return result + 1e-9 * (float(result.max(initial=0.0)) or 1.0) * np.arange(1, width + 1) / width


def _slope(first: tuple[float, float], second: tuple[float, float]) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


class GroupTrials:
    """The whole network's answers and the moments of what its layers read, and trials that lose a part of one group."""

    def __init__(self, graph: Graph, batches: Iterable[tuple[Any, Any]], seed: int) -> None:
        """One pass over the images; see `Measured`."""
        self._graph, self._model = graph, clone_module(graph.model, lambda tensor: tensor.detach().clone()).eval()
        self._norms = norms_of(graph)
        modules = dict(self._model.named_modules())
        reading = dict.fromkeys(module_of(member.name) for group in graph.groups for member in group.consumers())
        columns = {name: layer.weight[0].numel() for name in reading if isinstance(layer := modules.get(name), LAYERS)}
        wide = [name for name, count in columns.items() if count > _COLUMNS]
        said = f"Groups were measured without compensating {few(wide)}: more than {_COLUMNS:,} weights an output."
        self.notes = [said] if wide else []
        self._moments = Moments([name for name in columns if name not in wide], positions=_POSITIONS, seed=seed)
        device = next(self._model.parameters()).device
        self._held = HeldOut(_HELD, _no_loss)
        gather(self._model, self._held.rest(limited(batches, sys.maxsize, self._model), device), [self._moments])
        self._held.require()
        self.images = len(self._held)
        self._whole = self._answers(self._model)
        if not self._whole:
            raise ModelError("The network answers with no floating-point numbers, whose change could be measured.")
        if not all(bool(answer.isfinite().all()) for answer in self._whole):
            raise ModelError("The network's answers are not finite: give sound weights and images.")

    def errors(self, group: Group, order: IntArray) -> tuple[list[int], list[float]]:
        """Channels removed, and e of each trial; both begin with 0."""
        counts = sorted({min(round(share * group.width), group.width - 1) for share in SHARES} - {0})
        return [0, *counts], [0.0, *(self._error(group, order, group.width - count) for count in counts)]

    @torch.no_grad()
    def _error(self, group: Group, order: IntArray, kept: int) -> float:
        masks = {other.name: np.ones(other.width, dtype=np.bool_) for other in self._graph.groups}
        masks[group.name][order[kept:]] = False
        trial = clone_module(self._model, lambda tensor: tensor.detach().clone()).eval()
        plan = Plan(masks, {}, fingerprint(self._graph))
        case = Case(trial, lambda: self._model, self._graph, plan, self._norms)
        compensate(case, self._moments)
        case.clear()
        pairs = zip(self._answers(trial), self._whole, strict=True)
        errors = [relative_error(now, before) for now, before in pairs]
        error = float(torch.stack(errors).mean())
        return error if np.isfinite(error) else _USELESS

    def _answers(self, model: nn.Module) -> list[torch.Tensor]:
        """All floating-point answers on the held images."""
        with untouched(model):
            outputs = [output for output, _ in self._held.answers(model)]
        return [t for output in outputs for t in output_tensors(output) if t.is_floating_point()]


def _no_loss(output: Any, target: Any) -> torch.Tensor:
    raise ConfigError("Networks are measured by their answers here, without a loss.")
