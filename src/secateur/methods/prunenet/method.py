"""PruneNet: a convex problem for every layer says which channels it needs; one lambda for the whole network.

Khetan, Karnin: PruneNet: Channel Pruning via Global Importance (arXiv:2005.11282). With X the input patches of a layer,
Sigma their covariance, C_i its block for channel i, and sigma_l^2 = tr(W Sigma W^T):

    v_i = tr(W_i C_i W_i^T)        s_i = sqrt(v_i) / sigma_l                                             (importance)
    min_U 1/2 tr((U - W) Sigma (U - W)^T) + lambda sigma_l sum_i sqrt(tr(U_i C_i U_i^T))               (optimisation)
    s_i(lambda) = sqrt(tr(U_i C_i U_i^T)) / sigma_l; a channel goes where this is zero; lambda is bisected to the budget
    W_new = W Sigma_{*K} Sigma_KK^-1, and the bias changes by W mu - W_new mu_K                               (refit)

Of the paper only the title and the abstract were read: a data-driven optimisation finds the widths, controlled by one
global parameter. That the importance is the variance of a layer's input after filtering is a third party's note. The
objective, the normalisation, the selection and the refit are a reconstruction, not the paper's text.

Where this differs from the reconstruction, and why:
    After the bisection a channel's score is the largest lambda at which it stays, then its s there; the allocator of
        the library fills the budget in that order, which amounts to dropping and restoring single channels.
    Several layers that read a channel share one norm, each divided by its sigma_l; channels that layers read side by
        side are solved for together.
    Rows are scaled by what the batch norm behind them does to outputs (our choice).
    Between sweeps the remaining channels are updated together, to the minimum of a quadratic upper bound, because
        updates of one channel at a time converge slowly where inputs are similar. Iteration stops at a relative change
        of `tolerance`.
    Patches are those of a lattice of `positions` places in every image, the same in all, and not of random ones.
    The refit sees the inputs of the whole network in every layer, and not those of the pruned layers in front of it:
        one pass over the images instead of one for each layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._protocols import FloatArray
from secateur.errors import BudgetError, ConfigError
from secateur.graph.readers import summed
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.reading import Family, Reading, families, unread
from secateur.methods.kit.scores import Scores
from secateur.methods.prunenet.group_lasso import GroupLasso, Problem
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair.base import Case
from secateur.repair.compensation import compensate
from secateur.statistics.gather import gather
from secateur.statistics.moments import Moments

#: Two lambdas, one above the budget and one below, between which no further one is tried.
_NEAR = 1e-3


class PruneNetSettings(Settings):
    """The paper's values are not known: defaults are the reconstruction's."""

    mode: Literal["optimise", "score"] = Field(
        "optimise", description="solve the convex problem, or only threshold s_i of the network as it is"
    )
    weights: Literal["refit", "select"] = Field("refit", description="least squares on what stays, or left as they are")
    units: Literal["inside", "all"] = Field(
        "inside", description="inside: channels that several layers make together (residual streams) stay whole"
    )
    after_norm: bool = Field(True, description="weigh outputs as the batch norm behind them scales them")
    floor: float = Field(0.1, ge=0, lt=1, description="share of every group that stays")
    tau: float = Field(1e-6, ge=0, description="importance up to which a channel counts as gone")
    rounds: int = Field(25, ge=1, le=100, description="bisections of lambda, at most")
    sweeps: int = Field(200, ge=1, description="sweeps over the channels for one lambda, at most")
    tolerance: float = Field(
        1e-7, gt=0, lt=1, description="relative change of the objective at which a solution is done"
    )
    positions: int | None = Field(64, ge=1, description="output positions of an image looked at, at most; null: all")
    ridge: float = Field(1e-6, ge=0, le=1, description="on variances, relative to them")


class PruneNet(Method):
    """Solve for the channels that layers need, with one lambda, and refit what stays."""

    name = "prunenet"
    Config = PruneNetSettings
    settings: PruneNetSettings
    comparable = "none"

    def prepare(self) -> None:
        """Settle what stays whatever its score, and say which options have no use here."""
        self._moments: Moments | None = None
        self._scores: Scores | None = None
        if self.normalise != "none":
            self.notes.append(
                "PruneNet's importance is relative to each layer's output already, so "
                f"normalise={self.normalise!r} was not applied."
            )
            self.normalise = "none"
        whole = unread(self.graph)
        if whole:
            self.notes.append(
                f"Read by something else than convolutions and linear layers, and so kept whole: {', '.join(whole)}."
            )
        streams = [
            group.name
            for group, several in zip(self.graph.groups, summed(self.graph), strict=True)
            if several and self.settings.units == "inside"
        ]
        if streams:
            self.notes.append(f"Channels that several layers make together stay whole: {', '.join(streams)}.")
        self.constraints = self.constraints.keeping([*whole, *streams])
        if 1.0 - self.settings.floor < self.constraints.max_ratio:
            self.constraints = replace(self.constraints, max_ratio=1.0 - self.settings.floor)
        try:
            self._check_reach()
        except BudgetError as error:
            said = (
                f"With units={self.settings.units} and floor={self.settings.floor:g}, t{str(error).removeprefix('T')}"
            )
            raise BudgetError(said) from None

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Moments of what layers read, in one pass, and the optimisation; targets and loss are not looked at."""
        floors = dict(zip(self.graph.groups, self.constraints.floors(self.graph).tolist(), strict=True))
        found = families(self.graph, {group.name for group, floor in floors.items() if floor == group.width})
        names = [reading.layer for family in found for reading in family.readings]
        moments = Moments(names, positions=self.settings.positions, seed=self.seed)
        gather(self.model, batches, [moments])
        with torch.no_grad():
            self._scores = self._solved(found, moments)
        self._moments = moments

    def _solved(self, found: Sequence[Family], moments: Moments) -> Scores:
        """For every channel, the largest lambda at which it stays, as its place among those tried, then its s there."""
        path = Path(found, [self._lasso(family, moments) for family in found], self.settings)
        if self.settings.mode == "optimise":
            aim, floors = Aim(self.graph, self.budget), self.constraints.floors(self.graph).tolist()
            least = {group.name: floor for group, floor in zip(self.graph.groups, floors, strict=True)}
            path.bisect(aim, least)
            path.widths = {name: int(width) for name, width in path.alive(path.strength).items()}
        highest = float(len(path.tried))
        scores = {group.name: np.full(group.width, highest + 1.0) for group in self.graph.groups}
        scores.update(path.scores())
        story = {"criterion": "prunenet", "lambda": path.strength, "tried": len(path.tried), "widths": path.widths}
        return Scores(scores, story | self.settings.model_dump(mode="json"))

    def _lasso(self, family: Family, moments: Moments) -> GroupLasso:
        problems = []
        for reading in family.readings:
            if reading.layer in moments:
                moment = moments[reading.layer]
                weight = reading.matrix(self.model).to(moment.mean)
                if self.settings.after_norm:
                    weight = weight * _growth(self.model, reading).to(weight)[:, None]
                problems.append(Problem(weight, moment.covariance[reading.block], reading.parts, reading.fixed))
        return GroupLasso(problems, family.width, ridge=self.settings.ridge)

    def score(self) -> Scores:
        """When a channel goes as lambda grows, the later the better."""
        if self._scores is None:
            raise ConfigError("The method 'prunenet' has seen no data: call collect(batches, loss) before finish().")
        return self._scores

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Refit the weights that stay, for the solution of the lasso is shrunk."""
        if self._moments is None or self.settings.weights == "select":
            return
        case = Case(model, self.plain, self.graph, plan)
        compensate(case, self._moments, rescale="never", ridge=self.settings.ridge)
        case.clear()
        self.notes += [note for note in case.notes if note not in self.notes]


class Path:
    """Solutions of all families for one lambda after another, each from that of the largest smaller one."""

    def __init__(self, found: Sequence[Family], lassos: Sequence[GroupLasso], s: PruneNetSettings) -> None:
        """Begin at lambda = 0, where U = W."""
        self._families, self._lassos, self._s = found, lassos, s
        self.tried: dict[float, list[FloatArray]] = {0.0: [lasso.norms() for lasso in lassos]}
        self.strength = 0.0  # the largest lambda that does not meet the budget
        self.widths: dict[str, int] = {}  # what it leaves, whatever floors say

    def bisect(self, aim: Aim, least: dict[str, int]) -> None:
        """Down to the budget, within 1% of it, or until nearly the same lambda does and does not meet it."""
        low, high = 0.0, max((lasso.largest() for lasso in self._lassos), default=0.0)
        if aim.met(self._widths(0.0, least)):
            return
        start = [lasso.save() for lasso in self._lassos]
        for _ in range(self._s.rounds):
            strength = ((low**0.5 + high**0.5) / 2) ** 2  # small ones matter most
            for lasso, saved in zip(self._lassos, start, strict=True):
                lasso.load(saved)
            self.tried[strength] = [
                lasso.solve(strength, sweeps=self._s.sweeps, tolerance=self._s.tolerance) for lasso in self._lassos
            ]
            widths = self._widths(strength, least)
            if aim.met(widths):
                high = strength
                if aim.close(widths):
                    break
            else:
                low, start = strength, [lasso.save() for lasso in self._lassos]
            if high - low <= _NEAR * high:
                break
        self.strength = low

    def alive(self, strength: float) -> dict[str, float]:
        """How many channels of every group are there at a lambda that was tried."""
        result: dict[str, float] = {}
        for family, norms in zip(self._families, self.tried[strength], strict=True):
            result.update({name: float(alive.sum()) for name, alive in family.split(norms > self._s.tau).items()})
        return result

    def _widths(self, strength: float, least: dict[str, int]) -> dict[str, float]:
        return {name: max(width, least[name]) for name, width in self.alive(strength).items()}

    def scores(self) -> dict[str, FloatArray]:
        """The place of the largest lambda at which a channel is there, and s / (1 + s) at that lambda."""
        result: dict[str, FloatArray] = {}
        for number, family in enumerate(self._families):
            found = np.zeros(family.width)
            for place, strength in enumerate(sorted(self.tried)):
                norms = self.tried[strength][number]
                found = np.where(norms > self._s.tau, place + norms / (1.0 + norms), found)
            result.update(family.split(found))
        return result


def _growth(model: nn.Module, reading: Reading) -> torch.Tensor:
    """What the batch norm behind a layer multiplies each of its outputs with; ones where there is none."""
    norm: Any = None if reading.norm is None else model.get_submodule(reading.norm)
    if norm is None or norm.running_var is None:
        return torch.ones(reading.rows.stop - reading.rows.start)
    scale = (norm.running_var.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    found: torch.Tensor = scale[reading.rows]
    return found


ROW = MethodRow(
    name="prunenet",
    summary="one convex problem per layer, one strength for all: channels whose share of the variance becomes zero",
    paper="PruneNet: Channel Pruning via Global Importance",
    year=2020,
    arxiv="2005.11282",
    needs="calibration",
    acts="after training",
    granularity="channel",
    fidelity="written from title and abstract (a data-driven optimisation finds the widths, one global parameter, "
    "then fine-tuning without penalty) and a third party's note (importance is the variance after filtering); "
    "objective, normalisation, selection and refit are a reconstruction, unverified",
    factory=PruneNet,
    settings=PruneNetSettings,
    variants=({"units": "all", "weights": "select", "after_norm": False, "rounds": 6}, {"mode": "score"}),
)
