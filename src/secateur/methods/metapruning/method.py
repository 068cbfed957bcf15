"""MetaPruning: a network that makes weights for any widths, an evolution over widths with it, and a new training.

Liu, Mu, Zhang, Guo, Yang, Cheng, Sun: MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning (ICCV
2019, arXiv:1903.10258). In three stages:

    train    PruningNet (generator.py): every step draws genes i for all widths, c' = c (10 + 3 i) / 100, and trains
             the generators through the network whose weights they make; norms have no scale and shift
    search   evolution (genes.py) over genes within the budget; a candidate has generated weights and statistics of
             its norms measured anew; fitness is its accuracy on held-out images, without training
    finish   the best widths, first channels of each; the weights are new, and `finetune` trains them

Where this differs from the paper, and why:
    A gene belongs to a group of coupled channels; the encoding of a layer is the shares of the groups it reads and
        makes, one a layer and not one a block. Layers whose outputs are in no group (the last one) keep weights of
        their own; the weights of all others are generated.
    Networks are computed at full width with zeros where channels are missing, which is the same and no faster.
    Where no batch norm follows a layer its weights are divided by the root of its fan-in, and its bias is its own.
    Statistics of norms are chosen channel by channel, as a norm may read several groups. All are measured anew for
        every candidate, by the plain average over `images` training images; before that they say little, and so does
        the accuracy shown while training, which is the whole network's.
    Candidates need no more than the budget, as for the paper's MobileNets; the best one is scaled to use 99% of it.
    hidden, population and iterations are smaller than in the paper (32, 50 and 20), for small data and memory: the
        generators have hidden + 1 parameters for each weight.
    weights generated starts the last training from what the generators make, a warm start of our own.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.func import functional_call

from secateur._hints import few
from secateur._protocols import BoolArray, FloatArray
from secateur.errors import ConfigError
from secateur.graph import SizeConflict
from secateur.graph.cut import take
from secateur.graph.modules import named_tensors
from secateur.methods.contract import Method, Settings
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.candidates import Candidate, tried
from secateur.methods.kit.widths import fitted_plan
from secateur.methods.metapruning.generator import PruningNet
from secateur.methods.metapruning.genes import OPTIONS, WHOLE, Evolution, Genes, width_of
from secateur.methods.row import MethodRow
from secateur.methods.trials import Trials
from secateur.plan import Plan
from secateur.repair import fresh, remeasure, renew


class MetaPruningSettings(Settings):
    """The paper's search has 50 candidates in each of 20 generations; the defaults suit small data."""

    hidden: int = Field(8, ge=1, le=1024, description="length of the hidden layer of every generator (the paper: 32)")
    population: int = Field(8, ge=1, le=10_000, description="candidates in a generation (the paper: 50)")
    iterations: int = Field(3, ge=1, le=10_000, description="generations (the paper: 20)")
    mutants: int = Field(4, ge=0, le=10_000, description="of them made by mutation (the paper: 25)")
    crossovers: int = Field(4, ge=0, le=10_000, description="of them made by crossover (the paper: 25)")
    parents: int = Field(4, ge=1, le=10_000, description="best candidates so far, of which those are made (10)")
    probability: float = Field(0.1, ge=0, le=1, description="of every gene to mutate")
    images: int = Field(512, ge=2, description="training images for statistics of norms, for every candidate")
    weights: Literal["fresh", "generated"] = Field(
        "fresh", description="what the last training begins with: new weights, as in the paper, or generated ones"
    )


class MetaPruning(Method):
    """Train generators of weights with random widths, search widths with them, begin anew with the best."""

    name = "metapruning"
    Config = MetaPruningSettings
    settings: MetaPruningSettings

    def prepare(self) -> None:
        """Make the generators; the model itself stays as it is, and runs with other tensors."""
        self.net = PruningNet(self.graph, self.settings.hidden, self.seed, OPTIONS)
        self.aim = Aim(self.graph, self.budget)
        floors = self.constraints.floors(self.graph)
        self._free = [g.name for g, floor in zip(self.graph.groups, floors.tolist(), strict=True) if floor < g.width]
        self._found: Plan | None = None
        self._warm: dict[str, torch.Tensor] = {}  # generated weights of the narrow network

    # ---------------------------------------------------------------------------------------------------- training

    def drawn(self, step: int) -> dict[str, int]:
        """The genes of a step, by group: the same for all its micro-batches and in all processes."""
        draw = np.random.default_rng([self.seed, step])
        genes = dict(zip(self._free, draw.integers(0, OPTIONS, len(self._free)).tolist(), strict=True))
        return {group.name: genes.get(group.name, WHOLE) for group in self.graph.groups}

    def _whole(self) -> dict[str, int]:
        return dict.fromkeys((group.name for group in self.graph.groups), WHOLE)

    def _widths(self, genes: dict[str, int]) -> dict[str, int]:
        return {group.name: width_of(group.width, genes[group.name]) for group in self.graph.groups}

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model with generated weights: of the widths drawn for this step, or whole in evaluation."""
        genes = self.drawn(self.step) if self.training else self._whole()
        tensors = self._tensors(genes)
        banks = self._statistics(genes)
        output = functional_call(self.model, {**tensors, **banks}, args, keywords)
        if self.training:
            self._keep(banks, genes)
        return output

    def _tensors(self, genes: dict[str, int]) -> dict[str, torch.Tensor]:
        """Parameters that the model has with these genes, zero where channels are missing."""
        widths = self._widths(genes)
        own = dict(self.model.named_parameters()) | self.net.weights(_ratios(genes))
        found = {name: self.net.masked(name, own[name], widths) for name in self.net.touched if name in own}
        for norm in self.net.norms:
            module: Any = self.model.get_submodule(norm)
            if module.weight is not None:  # without scale and shift, as long as weights are generated
                found[f"{norm}.weight"] = torch.ones_like(module.weight)
                found[f"{norm}.bias"] = torch.zeros_like(module.bias)
        return found

    def _banked(self) -> list[tuple[int, str]]:
        """Norms with statistics, by their numbers."""
        return [(k, norm) for k, norm in enumerate(self.net.norms) if hasattr(self.net, f"bank{k}")]

    def _rows(self, number: int, genes: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Places in a bank; options that give equal widths share one."""
        shared = {
            g.name: next(i for i in range(OPTIONS) if width_of(g.width, i) == width_of(g.width, genes[g.name]))
            for g in self.graph.groups
        }
        rows = self.net.rows(number, shared, WHOLE)
        return rows, torch.arange(len(rows), device=rows.device)

    def _statistics(self, genes: dict[str, int]) -> dict[str, torch.Tensor]:
        """Running means and variances of norms with these genes; copies, which a forward pass in training changes."""
        found: dict[str, torch.Tensor] = {}
        for number, norm in self._banked():
            rows, columns = self._rows(number, genes)
            mean, variance = self.net.get_buffer(f"bank{number}")[rows, :, columns].T.clone()
            found |= {f"{norm}.running_mean": mean, f"{norm}.running_var": variance}
        return found

    @torch.no_grad()
    def _keep(self, banks: dict[str, torch.Tensor], genes: dict[str, int]) -> None:
        for number, norm in self._banked():
            rows, columns = self._rows(number, genes)
            both = torch.stack([banks[f"{norm}.running_mean"], banks[f"{norm}.running_var"]], 1)
            self.net.get_buffer(f"bank{number}")[rows, :, columns] = both

    def metrics(self) -> dict[str, float]:
        """What is left of the whole network in the widths of this step."""
        return {"flops": self.aim.cost(self._widths(self.drawn(self.step)))["macs"] / max(self.aim.full["macs"], 1.0)}

    # ------------------------------------------------------------------------------------------------------ search

    def search(self, trials: Trials) -> None:
        """Evolve genes, and take the widths of the best; equal widths are tried once."""
        s = self.settings
        self._trials = trials
        trials.begin(s.population * s.iterations)
        evolution = Evolution(
            len(self._free), self._feasible, s.population, s.mutants, s.crossovers, s.parents, s.probability, self.seed
        )
        self._known: dict[str, float] = {}
        best, tops = evolution.run(s.iterations, self._errors)
        widths = self._widths(self._named(best))
        plan = fitted_plan(self.graph, self.budget, self.constraints, widths, self._order())
        plan.provenance |= {
            "criterion": "metapruning", "genes": self._named(best), "trials": len(self._known),
            "accuracy": [-top if np.isfinite(top) else None for top in tops],
        }  # fmt: skip
        self._found, self._warm = plan, {}
        if s.weights == "generated":
            ratios = {group.name: plan.widths[group.name] / group.width for group in self.graph.groups}
            try:
                self._warm = self._generated(self.graph.cut(plan).model, plan, ratios).state_dict()
            except SizeConflict as conflict:
                self._note([f"Generated weights are not used: {conflict}"])
        if not self._known:
            self._note(["Sizes in the network's code kept all widths from being tried: the first ones drawn count."])
            return
        first, last = (trials.shown(-top) for top in (tops[0], tops[-1]))
        said = f"The evolution tried {len(self._known)} widths: with generated weights"
        self._note([f"{said} {first} after one generation, {last} after {len(tops)}."])

    def _named(self, genes: Genes) -> dict[str, int]:
        return self._whole() | dict(zip(self._free, genes, strict=True))

    def _order(self) -> dict[str, FloatArray]:
        """First channels first."""
        return {group.name: -np.arange(group.width, dtype=np.float64) for group in self.graph.groups}

    def _feasible(self, genes: Genes) -> bool:
        return self.aim.met(self._widths(self._named(genes)))

    def _plan_of(self, widths: dict[str, int]) -> Plan:
        masks: dict[str, BoolArray] = {g.name: np.arange(g.width) < widths[g.name] for g in self.graph.groups}
        return Plan(masks)

    def _errors(self, tested: list[Genes]) -> list[float]:
        """Accuracies of networks with generated weights, less being better; inf where they cannot be cut."""
        widths = [self._widths(self._named(genes)) for genes in tested]
        keys = [repr(sorted(each.items())) for each in widths]
        new = {key: k for k, key in reversed(list(enumerate(keys))) if key not in self._known}  # the first of each
        order = sorted(new.values())
        found = tried(self._trials, self.graph, (self._candidate(tested[k], widths[k]) for k in order))
        self._known |= {keys[k]: -each for k, each in zip(order, found, strict=True) if each is not None}
        return [self._known.get(key, np.inf) for key in keys]

    def _candidate(self, genes: Genes, widths: dict[str, int]) -> Candidate:
        plan, ratios = self._plan_of(widths), _ratios(self._named(genes))
        return Candidate(plan, lambda cut: self._generated(cut, plan, ratios), {"widths": widths})

    @torch.no_grad()
    def _generated(self, narrow: nn.Module, plan: Plan, ratios: dict[str, float]) -> nn.Module:
        """The network cut by a plan of first channels, with generated weights and statistics measured anew."""
        narrow.eval()
        tensors, slices = named_tensors(narrow), self.graph.slices(plan)
        for name, weight in self.net.weights(ratios).items():
            tensors[name].copy_(take(weight, slices.get(name, ())))
        for norm in self.net.norms:
            module: Any = narrow.get_submodule(norm)
            if module.weight is not None:
                module.weight.fill_(1.0)
                module.bias.zero_()
        if self._banked():
            remeasure(narrow, self._trials.images(self.settings.images))
        return narrow

    # ------------------------------------------------------------------------------------------------------ result

    def plan(self) -> Plan:
        """First channels of the best widths."""
        if self._found is None:
            raise ConfigError(
                "The method 'metapruning' has tried nothing: call collect(batches, loss) before finish()."
            )
        return Plan(dict(self._found.masks), dict(self._found.provenance))

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """The model with weights generated for its whole widths."""
        model, genes = super().plain(), self._whole()
        tensors = named_tensors(model)
        for name, value in {**self._tensors(genes), **self._statistics(genes)}.items():
            tensors[name].copy_(value)
        return model

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Give what stays new weights, or generated ones."""
        if self._warm and self._same(plan):
            renew(model, self.graph, plan, self._warm)
            return
        try:
            narrow = self.graph.cut(plan).model
        except SizeConflict:  # which the cut will settle; the network is as wide as it was, and so are the draws
            kept = fresh(model, self.seed)
        else:
            kept = fresh(narrow, self.seed)
            renew(model, self.graph, plan, narrow.state_dict())
        said = [f"Parts that cannot be initialised anew keep their weights: {few(kept)}."] if kept else []
        self._note(["The narrow network has new weights, and its accuracy is chance until it is trained.", *said])

    def _same(self, plan: Plan) -> bool:
        assert self._found is not None
        return all(bool((plan.masks[name] == mask).all()) for name, mask in self._found.masks.items())


def _ratios(genes: dict[str, int]) -> dict[str, float]:
    return {name: (10 + 3 * gene) / 100 for name, gene in genes.items()}


ROW = MethodRow(
    name="metapruning",
    summary="a network that generates weights for any widths, and an evolutionary search of widths with it",
    paper="MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning",
    year=2019,
    arxiv="1903.10258",
    needs="calibration",
    labels=True,
    acts="while training",
    granularity="channel",
    fidelity="written from the authors' code for training, search and evaluation, whose blocks were run, without the "
    "paper's text: its latency tables and 20,000 images are from memory; added here: groups of coupled channels as "
    "genes, masks in place of crops, statistics per channel, scaling where there are no norms, and small defaults",
    factory=MetaPruning,
    settings=MetaPruningSettings,
    begins="new",
    acting=0.2,  # 32 epochs of PruningNet and 128 of the final network, or 64 and 256
    variants=({"weights": "generated", "population": 3, "iterations": 2, "mutants": 1, "crossovers": 1},),
    chance="the first channels of every width stay",
)
