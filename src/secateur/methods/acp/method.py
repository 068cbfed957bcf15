"""ACP: widths from density clustering of feature maps, improved by a swarm that trains each candidate for a moment.

Chang, Lu, Xue, Xu, Wei: Automatic Channel Pruning via Clustering and Swarm Intelligence Optimization for CNN (Applied
Intelligence 2022, arXiv:2101.06407). With X_c the mean over images of what channel c is before its norm:

    d(c,e) = 1 - cos(X_c, X_e)                                                       (distance of channels)
    c_j = clusters + noise of DBSCAN in layer j, at eps, 5 points a core             (first width)
    the swarm moves widths x around c; fitness of x: accuracy after a short training of a network of these widths,
    which inherits x_j filters of every layer, drawn at random                       (swarm.py has the equations)

Where this differs from the paper, and why:
    The method has no budget: eps decides. Here eps null is the least one whose widths are within the budget. Each
        vector of widths is scaled to the budget before it is tried, so that a network does not win by being larger; the
        swarm itself moves with unscaled vectors.
    A dimension is a group of coupled channels, X_c the maps of all its layers side by side, each of length 1. As in the
        authors' networks residual streams stay whole, unless the budget is out of reach then.
    Layers whose maps are a single number (linear ones) are not clustered: their widths begin as they are.
    Vectors that are the same network once scaled are tried once. Candidates are measured on images held out of
        training, where the authors' script uses the test set, for clustering as well.
    particles, cycles and epochs are smaller than in the paper (10, 8 and 3), for small data; rate and batch of the
        short trainings are the run's (`search` in recipes; the paper: 0.1 and 64).
    Candidates keep the norms of the trained network. In the authors' scripts these are new (`norms: new`), and three
        epochs on all images, then 150, teach them anew. An epoch on the few images of a search does not, and the best
        candidate's weights are what fine-tuning begins with. The page of the method has both, on held-out images.
    With `fitness: recalibrate` candidates are not trained: statistics of norms are measured again, all weights are
    inherited. This is a cheap approximation.
    Not copied from the released script: velocities of other dimensions than those that moved, a last layer that never
        moves, a largest width and a last filter that are never reached, inputs drawn apart from the layer before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur._hints import few
from secateur._protocols import FloatArray, IntArray
from secateur.errors import BudgetError, ConfigError
from secateur.graph import Group
from secateur.graph.channels import Seen
from secateur.graph.modules import named_tensors
from secateur.methods.acp.density import MeanMaps, cosine_distances, fitting_eps, kinds
from secateur.methods.acp.swarm import fly
from secateur.methods.contract import Method, Settings
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.candidates import Candidate, tried
from secateur.methods.kit.widths import fitted_plan, fitted_widths
from secateur.methods.row import MethodRow
from secateur.methods.trials import Trials
from secateur.plan import Plan
from secateur.repair import remeasure, renew
from secateur.statistics import gather

#: Images whose maps are averaged, as in the paper.
_IMAGES = 200

#: Wanted widths, and those that fit the budget.
_Widths: TypeAlias = "tuple[dict[str, float], dict[str, int]]"


class AcpSettings(Settings):
    """The paper has 10 particles, 8 cycles and 3 epochs; the defaults suit small data."""

    particles: int = Field(5, ge=1, le=1000, description="vectors of widths in the swarm (the paper: 10)")
    cycles: int = Field(3, ge=0, le=1000, description="how often the swarm moves (the paper: 8)")
    epochs: int = Field(1, ge=1, le=1000, description="of a candidate's training (the paper: 3)")
    eps: float | None = Field(
        None, gt=0, le=2, description="largest distance within a cluster; null: the least that meets the budget"
    )
    inherit: Literal["random", "l1"] = Field(
        "random", description="filters a candidate inherits: drawn, or those of the largest L1 norm"
    )
    fitness: Literal["train", "recalibrate"] = Field(
        "train", description="accuracy after a short training, or after measuring norms anew (cheap, our own)"
    )
    norms: Literal["new", "kept"] = Field(
        "kept", description="a candidate's batch norms before its training: as they were, or new, as for the authors"
    )

    @model_validator(mode="after")
    def _no_idle_setting(self) -> AcpSettings:
        if self.fitness == "recalibrate" and "norms" in self.model_fields_set:
            raise ValueError("fitness: recalibrate keeps trained norms and measures them anew: leave norms out")
        return self


class Acp(Method):
    """Cluster for first widths, let a swarm improve them, keep the best candidate with its weights."""

    name = "acp"
    Config = AcpSettings
    settings: AcpSettings

    def prepare(self) -> None:
        """Keep residual streams whole where the budget allows it."""
        self._found: Plan | None = None
        trunks = [group.name for group in self.graph.groups if len(_makers(self.graph.model, group)) > 1]
        free, self.constraints = self.constraints, self.constraints.keeping(trunks)
        try:
            self._check_reach()
            said = "stay whole"
        except BudgetError:
            self.constraints, said = free, "are searched too, as the budget is out of reach otherwise"
        if trunks:
            self.notes.append(f"Widths that several layers make (residual streams) {said}: {few(trunks)}.")

    # -------------------------------------------------------------------------------------------------- the search

    def search(self, trials: Trials) -> None:
        """Cluster, fly, and take the best candidate's widths, filters and weights."""
        s, groups = self.settings, self.graph.groups
        floors, most = self.constraints.floors(self.graph), np.array([g.width for g in groups], dtype=np.int64)
        free = np.flatnonzero(floors < most)
        self._trials, self._bad = trials, 0
        self._known, self._plans, self._numbers = dict[str, float](), dict[int, Plan](), dict[int, float]()
        eps, first = self._clustered(trials)
        trials.begin(s.particles * (s.cycles + 1))

        def fitness(places: list[IntArray]) -> list[float]:
            codes = [most.copy() for _ in places]
            for code, x in zip(codes, places, strict=True):
                code[free] = x
            return self._fitness(codes)

        _, tops = fly(first[free], most[free], fitness, particles=s.particles, cycles=s.cycles, seed=self.seed)
        if self._plans:
            best = max(self._numbers.items(), key=lambda item: (item[1], -item[0]))[0]
            self._found, self._weights = self._plans[best], trials.weights(best)
        else:
            wanted = {g.name: float(width) for g, width in zip(groups, first, strict=True)}
            self._found = fitted_plan(self.graph, self.budget, self.constraints, wanted, self._order(0))
            self._weights = {}
            self._note(["Sizes in the network's code kept every candidate from being cut: the clusters' widths count."])
        self._found.provenance |= {
            "criterion": "acp", "eps": eps, "kinds": dict(zip((g.name for g in groups), first.tolist(), strict=True)),
            "trials": len(self._plans), "accuracy": [top if np.isfinite(top) else None for top in tops],
        }  # fmt: skip
        if self._plans:
            self._note([self._told(eps, tops)])

    def _told(self, eps: float, tops: list[float]) -> str:
        asked = self.settings.particles * (self.settings.cycles + 1)
        bad = f"; {self._bad} could not be cut" if self._bad else ""
        return (
            f"The swarm (eps {eps:.3g}) asked for {asked} candidates, of which {len(self._plans)} were distinct within "
            f"the budget{bad}: {self._trials.shown(tops[0])} at first, {self._trials.shown(tops[-1])} in the end."
        )

    def _clustered(self, trials: Trials) -> tuple[float, IntArray]:
        """eps, and the first widths of all groups, in order."""
        maps = MeanMaps({group.name: self._taps(group) for group in self.graph.groups})
        gather(self.model, trials.images(_IMAGES), [maps])
        rows = {group.name: maps.rows(group.name) for group in self.graph.groups}
        if whole := [name for name, found in rows.items() if found is None]:
            self._note([f"Without feature maps, and so not clustered: {few(whole)}."])
        distances = {name: cosine_distances(found) for name, found in rows.items() if found is not None}
        kept = {g.name for g, floor in zip(self.graph.groups, self.constraints.floors(self.graph), strict=True)
                if floor == g.width}  # fmt: skip
        aim = Aim(self.graph, self.budget)

        def widths(eps: float) -> dict[str, float]:
            return {name: float(kinds(each, eps)) for name, each in distances.items() if name not in kept}

        eps = fitting_eps(lambda tried: aim.met(widths(tried))) if self.settings.eps is None else self.settings.eps
        found = widths(eps)
        return eps, np.array([int(found.get(g.name, g.width)) for g in self.graph.groups], dtype=np.int64)

    def _taps(self, group: Group) -> list[Seen]:
        """Outputs of the layers that make a group's channels."""
        makers = {member.name for member in group.producers()}
        return [tap for tap in self.graph.taps(group) if f"{tap.module}.weight" in makers and self._weighs(tap.module)]

    def _weighs(self, module: str) -> bool:
        weight = getattr(self.model.get_submodule(module), "weight", None)
        return weight is not None and weight.ndim > 1

    # ----------------------------------------------------------------------------------------------- one candidate

    def _fitness(self, codes: list[IntArray]) -> list[float]:
        """Accuracies of networks of these widths, scaled to the budget; -inf where they cannot be cut."""
        wanted, keys = dict[str, _Widths](), list[str]()
        for code in codes:
            asked = {g.name: float(width) for g, width in zip(self.graph.groups, code, strict=True)}
            widths = fitted_widths(self.graph, self.budget, self.constraints, asked)
            keys.append(repr(sorted(widths.items())))
            if keys[-1] not in self._known:
                wanted.setdefault(keys[-1], (asked, widths))
        self._known |= self._tried(wanted)
        return [self._known[key] for key in keys]

    def _tried(self, wanted: dict[str, _Widths]) -> dict[str, float]:
        plans, numbers = list[Plan](), list[int]()

        def candidates() -> Iterator[Candidate]:
            epochs = self.settings.epochs if self.settings.fitness == "train" else 0
            for asked, widths in wanted.values():
                numbers.append(self._trials.number)
                plans.append(fitted_plan(self.graph, self.budget, self.constraints, asked, self._order(numbers[-1])))
                yield Candidate(plans[-1], self._prepared, {"widths": widths}, epochs)

        found = tried(self._trials, self.graph, candidates())
        self._bad += found.count(None)
        for plan, number, accuracy in zip(plans, numbers, found, strict=True):
            if accuracy is not None:
                self._plans[number], self._numbers[number] = plan, accuracy
        return {key: -np.inf if each is None else each for key, each in zip(wanted, found, strict=True)}

    def _order(self, number: int) -> dict[str, FloatArray]:
        """Which filters a candidate inherits first."""
        draw = np.random.default_rng([self.seed, number])
        if self.settings.inherit == "random":
            return {group.name: draw.random(group.width) for group in self.graph.groups}
        return {group.name: _l1(self.model, group) for group in self.graph.groups}

    def _prepared(self, network: nn.Module) -> nn.Module:
        """W'[out] = W[sel_out][:, sel_prev], as the cut leaves it; norms begin anew, or are measured anew."""
        if self.settings.fitness == "recalibrate":
            remeasure(network.eval(), self._trials.images(_IMAGES))
            return network
        for module in network.modules():
            if isinstance(module, _BatchNorm) and self.settings.norms == "new":
                module.reset_parameters()
        return network

    # -------------------------------------------------------------------------------------------------- the result

    def plan(self) -> Plan:
        """The best candidate's channels."""
        if self._found is None:
            raise ConfigError("The method 'acp' has tried nothing: call collect(batches, loss) before finish().")
        return Plan(dict(self._found.masks), dict(self._found.provenance))

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Give what stays the weights that the best candidate was trained to."""
        if self._found is None or any((plan.masks[name] != mask).any() for name, mask in self._found.masks.items()):
            self._note(["The cut keeps other channels than the best candidate, so its trained weights are not used."])
            return
        if self._weights:
            renew(model, self.graph, plan, self._weights)


def _makers(model: nn.Module, group: Group) -> list[str]:
    """Layers that make a group's channels out of others; depthwise ones pass them on."""
    tensors = named_tensors(model)
    names = dict.fromkeys(m.name for m in group.producers() if m.dim == 0 and tensors[m.name].ndim > 1)
    return [name for name in names if not _depthwise(model, name)]


def _depthwise(model: nn.Module, weight: str) -> bool:
    layer: Any = model.get_submodule(weight.rpartition(".")[0])
    return getattr(layer, "groups", 1) > 1 and layer.groups == getattr(layer, "in_channels", 0)


def _l1(model: nn.Module, group: Group) -> FloatArray:
    """The L1 norm of what makes every channel."""
    tensors, total = named_tensors(model), np.zeros(group.width)
    for member in group.producers():
        if tensors[member.name].ndim > 1:
            each = tensors[member.name].detach().abs().double().movedim(member.dim, 0).flatten(1).sum(1).cpu().numpy()
            total += each[member.index].sum(1)
    return total


ROW = MethodRow(
    name="acp",
    summary="widths from clustered feature maps, improved by a particle swarm that trains candidates",
    paper="Automatic Channel Pruning via Clustering and Swarm Intelligence Optimization for CNN",
    year=2022,
    arxiv="2101.06407",
    needs="calibration",
    labels=True,
    acts="after training",
    granularity="channel",
    fidelity="written from the authors' scripts, networks and tables, without the paper's text; the particle swarm "
    "is the one they describe, not the one their release runs; added here: the budget (eps by bisection, candidates "
    "scaled to it, equal ones evaluated once) and groups of coupled channels; fewer particles, cycles and epochs by "
    "default",
    factory=Acp,
    settings=AcpSettings,
    chance="the filters that a candidate inherits are drawn by their numbers",
    variants=({"particles": 2, "cycles": 1, "inherit": "l1", "fitness": "recalibrate"},),
)
