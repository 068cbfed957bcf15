"""Pruning with compensation: channels go whose part the others can take over, and the others take it over.

Xie, Fu, Tian, Zhou, Chen: Pruning with Compensation: Efficient Channel Pruning for Deep Convolutional Neural Networks
(arXiv:2108.13728). No retraining. With the mean mu and the covariance Sigma of a layer's input patches, S the columns
that stay:

    W' = W Sigma_{*S} Sigma_SS^-1        b' = b + W mu - W' mu_S                                         (compensation)
    loss(S) = tr(W Sigma W^T) - tr((W Sigma_{*S}) Sigma_SS^-1 (W Sigma_{*S})^T)                        (what it leaves)

    ranking:  S = {}; again and again the channel joins that lowers loss(S) most; never-changing ones come last
    search:   unit by unit in order of execution, bar -= step; the largest share of the ranking's tail is found by
              halving at which the network, with all units before already cut, reaches the bar on images held out

Where this differs from the paper, and why:
    A unit is a group of channels and not the inputs of one layer: a channel that no layer reads any more can be
        removed. Of several layers
        that read a group the gains are summed, each divided by its tr(W Sigma W^T); layers that read several groups
        at once (a concatenation) tie them into one unit. This is our choice.
    The step follows from the budget: it is bisected until the search just does not meet the budget, and the rest goes
        along the ranking, first where the loss of the whole tail, as a share, is least. `drop` gives the search its
        own tolerance, as in the paper; the budget then decides how far the ranking is followed from there.
    Sigma_SS gets a small ridge, and of large maps only `positions` are looked at. Only a part of the images shown is
        held out, and `check` bounds it, so that the search ends in seconds.
    Statistics are made of what is shown, in a run the calibration images without those held out: 2048 of them are 4% of
        CIFAR-10, where the authors' script takes 20% of the training set. The images held out are none that statistics
        were made of, and yet training images of the network: where the network has memorised them, their accuracy says
        little.
    Where outputs are no class scores, or targets no class numbers, the search uses the loss instead of accuracy.
    The paper does not fine-tune; a run and a comparison do, as after every other method.
    Repairing layers on their inputs in the pruned network is left to the repair (`recollect`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur.errors import BudgetError, ConfigError
from secateur.methods.cap.ranking import Ranked
from secateur.methods.cap.structural_search import StructuralSearch
from secateur.methods.cap.trial_networks import TrialNetworks
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.reading import Family, families, unread
from secateur.methods.kit.scores import Scores
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair.base import Case
from secateur.repair.compensation import compensate
from secateur.repair.least_squares import limited
from secateur.statistics.gather import gather, untouched
from secateur.statistics.held_out import HeldOut
from secateur.statistics.moments import Moments


class CapSettings(Settings):
    """The search of the paper has no fixed values; `check` and `positions` are ours, for speed."""

    max_sparsity: float = Field(0.9, gt=0, lt=1, description="largest share of a unit that may go")
    halvings: int = Field(5, ge=1, le=20, description="binary search steps for every unit")
    drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="accuracy the search may lose in all (of a loss: 1 less old over new); null: as "
        "much as the budget asks for",
    )
    rounds: int = Field(5, ge=1, le=30, description="searches until the step fits the budget, with drop: null")
    check: int = Field(256, ge=1, description="one image in eight is held out to measure networks, at most so many")
    rescale: Literal["norm", "always", "never"] = Field(
        "norm", description="outputs get their variance back in front of a batch norm, everywhere, or never"
    )
    positions: int | None = Field(
        256, ge=1, description="output positions of an image looked at, at most (the paper: all, null)"
    )
    ridge: float = Field(1e-6, ge=0, le=1, description="relative to each input's variance")


class Cap(Method):
    """Rank by what the rest cannot take over, search widths by measured accuracy, compensate."""

    name = "cap"
    Config = CapSettings
    settings: CapSettings
    comparable = "none"

    def prepare(self) -> None:
        """Keep whole what no layer weighs, and say which options have no use here."""
        self._moments: Moments | None = None
        self._scores: Scores | None = None
        if self.normalise != "none":
            self.notes.append(f"CaP's scores are shares of one loss, so normalise={self.normalise!r} was not applied.")
            self.normalise = "none"
        whole = unread(self.graph)
        if whole:
            self.notes.append(
                f"Read by something else than convolutions and linear layers, and so kept whole: {', '.join(whole)}."
            )
            self.constraints = self.constraints.keeping(whole)
        if self.settings.max_sparsity < self.constraints.max_ratio:
            self.constraints = replace(self.constraints, max_ratio=self.settings.max_sparsity)
            try:
                self._check_reach()
            except BudgetError as error:
                said = str(error).removeprefix("T")
                raise BudgetError(f"With max_sparsity={self.settings.max_sparsity:g}, t{said}") from None

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Moments of what layers read, ranking and search; targets are looked at to measure networks only."""
        found = self._families()
        held = HeldOut(self.settings.check, loss)
        moments = Moments([reading.layer for family in found for reading in family.readings],
                          positions=self.settings.positions, seed=self.seed)  # fmt: skip
        gather(self.model, held.rest(limited(batches, sys.maxsize, self.model), self.device), [moments])
        held.require()
        with untouched(self.model), torch.no_grad():
            self._scores = self._search(found, moments, held)
        self._moments = moments

    def _families(self) -> list[Family]:
        floors = dict(zip(self.graph.groups, self.constraints.floors(self.graph).tolist(), strict=True))
        return families(self.graph, {group.name for group, floor in floors.items() if floor == group.width})

    def _search(self, found: Sequence[Family], moments: Moments, held: HeldOut) -> Scores:
        groups, s = self.graph.groups, self.settings
        floors = dict(zip((g.name for g in groups), self.constraints.floors(self.graph).tolist(), strict=True))
        ranked = [
            Ranked(
                family, self.model, moments, [floors[name] for name in family.groups], rescale=s.rescale, ridge=s.ridge
            )
            for family in found
        ]
        scores = {group.name: np.full(group.width, 2.0) for group in groups}
        for unit in ranked:
            scores.update(unit.family.split(unit.tails()))
        story: dict[str, Any] = {"criterion": "cap"}
        if self.allocator == "global":
            trials = TrialNetworks(self.model, ranked, held)
            shares, story["search"] = self._shares(trials, held, len(ranked))
            for unit, count in zip(ranked, trials.removed(shares), strict=True):
                kept = np.zeros(unit.family.width)
                kept[unit.order[: unit.family.width - count]] = 1.0
                for name, more in unit.family.split(kept).items():
                    scores[name] = scores[name] + more  # what the search keeps, before all it lets go
        return Scores(scores, story)

    def _shares(self, trials: TrialNetworks, held: HeldOut, units: int) -> tuple[Sequence[float], dict[str, Any]]:
        aim, start, s = Aim(self.graph, self.budget), held.begin(self.model), self.settings
        search = StructuralSearch(units, trials.reaches, start, s.max_sparsity, s.halvings)
        if s.drop is not None:
            step = s.drop / max(units, 1)
            shares = search.run(step)
        else:
            shares, step = search.toward(lambda shares: aim.met(trials.widths(shares)), s.rounds)
        after, kind = trials.quality(shares), "accuracy" if held.by_accuracy else "loss"
        note = f"The search uses {kind} on {len(held)} images held out of those shown."
        if not held.by_accuracy:
            note = note[:-1] + ", for outputs and targets are no class scores and class numbers."
        self.notes += [note] if note not in self.notes else []
        return shares, {
            "images": len(held),
            kind: held.whole,
            "step": step,
            f"{kind}_after": after if held.by_accuracy else held.whole / max(after, 1e-12),
            "shares": [float(share) for share in shares],
        }

    def score(self) -> Scores:
        """What is lost with a channel and all behind it in the ranking; 1 more if the search keeps it."""
        if self._scores is None:
            raise ConfigError("The method 'cap' has seen no data: call collect(batches, loss) before finish().")
        return self._scores

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Compensate every layer that loses inputs."""
        if self._moments is None:
            raise ConfigError("The method 'cap' has seen no data: call collect(batches, loss) before finish().")
        case = Case(model, self.plain, self.graph, plan)
        compensate(case, self._moments, rescale=self.settings.rescale, ridge=self.settings.ridge)
        case.clear()
        self.notes += [note for note in case.notes if note not in self.notes]


ROW = MethodRow(
    name="cap",
    summary="channels that the others can reconstruct, ranked and compensated in closed form",
    paper="Pruning with Compensation: Efficient Channel Pruning for Deep Convolutional Neural Networks",
    year=2021,
    arxiv="2108.13728",
    needs="calibration",
    labels=True,
    acts="after training",
    granularity="channel",
    fidelity="written from the abstract and the authors' two repositories (statistics, compensation, ranking, "
    "search), without the paper's text; added here: groups of coupled channels, with summed gains, in place of one "
    "layer's inputs, and a step size from the budget; for speed, at most 256 positions per image and 256 images to "
    "measure",
    factory=Cap,
    settings=CapSettings,
    finetunes=False,
    variants=({"rescale": "always", "drop": 0.1},),
)
