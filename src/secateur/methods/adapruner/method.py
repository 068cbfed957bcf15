"""AdaPruner: one ratio a block from the scales of its norms, and the rule of inheritance that suits the network best.

Liu, Cao, Yao, Sun, Zhang: AdaPruner: Adaptive Channel Pruning and Effective Weights Inheritance (arXiv:2109.06397).

    I_b = mean |gamma| of a block's norms     c' = clip(floor(c min(1, I_b / tau) + 1/2), c_min, c)     (`ratios.py`)
    the smallest tau within the budget; of several rules of inheritance (`inheritance.py`), all of the same widths, the
    one whose network is best on images held out, once its norms are measured anew

Only the abstract was read. The mean of scaling parameters as a block's importance, bisection, and the choice among
several criteria are stated there. The map from importance to width, the list of criteria, how they are judged, what a
block is and all values are a reconstruction, unverified.

What this adds to the reconstruction, or leaves out:
    Residual streams stay whole unless the budget is out of reach, or `streams` asks for them.
    Budget left over by rounding widths is used up along the same path, then by exchanging channels (`kit/widths.py`).
    Candidates are evaluated as the full network with removed channels set to zero: it computes what the narrow one
    does.
    One calibration image in eight is held out, `check` at most; statistics of norms are measured on the others.
    Sparse pre-training with a penalty on scales, off in the reconstruction too, is left to whoever trains the network.
    Where outputs are no class scores the loss decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from secateur._hints import few
from secateur._protocols import IntArray
from secateur.allocate.blocks import Bounds
from secateur.errors import ConfigError
from secateur.graph.modules import call_with_copies
from secateur.graph.norms import sources
from secateur.methods.adapruner.inheritance import Rule, ranked
from secateur.methods.adapruner.ratios import Ratios, Shape, branches, path_of, scales
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.kit.floors import keep_streams, leave
from secateur.methods.kit.widths import fitted_plan
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair.base import Case
from secateur.repair.batchnorm import BatchNorm
from secateur.statistics.gather import untouched
from secateur.statistics.held_out import HeldOut

#: Rules of inheritance that are tried if nobody says.
_USUAL: tuple[Rule, ...] = ("l1", "l2", "gm", "bn")
#: Accuracies that differ by less are alike, and the loss decides.
_ALIKE = 0.001
#: Scales of norms whose blocks differ by more say little, for a norm that another follows may have any scale.
_UNEVEN = 10.0
#: Learning rate and momentum of the probes.
_RATE, _MOMENTUM = 0.01, 0.9


class AdaPrunerSettings(Settings):
    """The paper's values are not known: defaults are the reconstruction's."""

    map: Shape = Field("linear", description="how a share follows from importance over tau")
    power: float = Field(0.5, gt=0, le=10, description="the exponent, with map: power")
    blocks: Literal["group", "branch"] = Field(
        "group", description="what has one ratio: every group of channels, or all inside one residual branch"
    )
    c_min: float = Field(0.1, gt=0, le=1, description="share of every group that stays")
    criteria: list[Rule] = Field(
        default_factory=lambda: list(_USUAL),
        min_length=1,
        description="rules of inheritance that are tried; first and random are controls",
    )
    batches: int = Field(50, ge=1, description="batches on which a candidate's norms are measured anew")
    check: int = Field(5000, ge=1, description="one image in eight is held out to judge candidates, at most so many")
    probe_steps: int = Field(0, ge=0, description="steps each candidate is trained before it is judged")
    streams: bool = Field(False, description="prune residual streams too; else only if the budget is out of reach")

    @field_validator("criteria")
    @classmethod
    def _once(cls, given: list[Rule]) -> list[Rule]:
        if len(set(given)) < len(given):
            raise ValueError("each criterion once")
        return given


class AdaPruner(Method):
    """Widths from scales of norms; the rule of inheritance by trying several."""

    name = "adapruner"
    Config = AdaPrunerSettings
    settings: AdaPrunerSettings
    comparable = "none"

    def prepare(self) -> None:
        """Keep streams and least widths; say which options have no use here."""
        if self.allocator != self.usual_allocator() or self.normalise != "none":
            self.notes.append("Widths follow from the scales of norms, so allocator and normalise were not applied.")
        leave(self, self.settings.c_min, "c_min")
        if not self.settings.streams:
            keep_streams(self)
        self._known = sources(self.graph)
        self.judged: dict[str, tuple[float, float | None]] = {}
        self.chosen: Rule | None = None

    # ------------------------------------------------------------------------------------------------------- widths

    def path(self) -> tuple[Ratios, float]:
        """The widths for every tau, and the smallest tau within the budget."""
        s, groups = self.settings, self.graph.groups
        blocks = branches(self.graph) if s.blocks == "branch" else [*range(len(groups))]
        full, floors = self.graph.widths(), self.constraints.floors(self.graph)
        path, bare = path_of(scales(self.graph, self._known), blocks, full, floors, s.map, s.power)
        if bare:
            self._note([f"No norm follows these groups, so that they get their neighbours' importance: {few(bare)}."])
        free = path.importance[path.floors < path.full]
        if len(free) and free.max() > _UNEVEN * free.min():
            between = f"Importance of blocks lies between {free.min():.3g} and {free.max():.3g}"
            self._note([f"{between}: scales that differ so much may mean little; train with a penalty on them first."])
        bounds = Bounds(self.graph.costs, self.budget.limits(self.graph.cost()))

        def fits(widths: IntArray) -> bool:
            return bool(bounds.fit(widths[None])[0])

        return path, path.smallest(fits)

    def _plan_by(self, path: Ratios, tau: float, rule: Rule) -> Plan:
        """The plan that keeps what one rule of inheritance ranks first."""
        wanted = {g.name: float(w) for g, w in zip(self.graph.groups, path.full * path.shares(tau), strict=True)}
        order = ranked(self.graph, rule, self.seed, self._known)
        return fitted_plan(self.graph, self.budget, self.constraints, wanted, order)

    # ---------------------------------------------------------------------------------------------------- candidates

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Judge every rule of inheritance on images held out; targets measure them, and train probes."""
        held = HeldOut(self.settings.check, loss)
        shown = [*held.rest(batches, self.device)]
        held.require()
        path, tau = self.path()
        with untouched(self.model):
            held.begin(self.model)
            judge = self._judge(held, shown, loss, path, tau)
            self.chosen, self.judged = winner(self.settings.criteria, judge, by_accuracy=held.by_accuracy)

    def _judge(
        self, held: HeldOut, shown: list[tuple[Any, Any]], loss: Loss, path: Ratios, tau: float
    ) -> Callable[[Rule, bool], float]:
        """What gives a candidate's accuracy, or its loss."""
        cases: dict[Rule, Case] = {}

        def judge(rule: Rule, by_loss: bool) -> float:
            if rule not in cases:
                cases[rule] = self._candidate(self._plan_by(path, tau, rule), shown, loss)
            model = cases[rule].model
            return held.mean_loss(model) if by_loss else held.measure(model)

        return judge

    def _candidate(self, plan: Plan, shown: list[tuple[Any, Any]], loss: Loss) -> Case:
        """The network with everything zero that goes, probed if asked, its norms measured anew without targets."""
        case = Case(self.plain(), self.plain, self.graph, plan)
        if self.settings.probe_steps:
            with torch.enable_grad():
                _train(case, itertools.islice(itertools.cycle(shown), self.settings.probe_steps), loss)
        case.model.eval()
        with torch.no_grad():
            BatchNorm(batches=self.settings.batches).apply(case, shown)
        return case

    # ----------------------------------------------------------------------------------------------------- the result

    def plan(self) -> Plan:
        """What the chosen rule inherits."""
        if self.chosen is None:
            raise ConfigError("The method 'adapruner' has seen no data: call collect(batches, loss) before finish().")
        path, tau = self.path()
        plan = self._plan_by(path, tau, self.chosen)
        names = [group.name for group in self.graph.groups]
        plan.provenance |= {
            "criterion": f"adapruner: {self.chosen}",
            "tau": tau,
            "importance": dict(zip(names, path.importance.tolist(), strict=True)),
            "judged": {rule: {"quality": quality, "loss": loss} for rule, (quality, loss) in self.judged.items()},
        }
        told = ", ".join(f"{rule} {quality:.4f}" for rule, (quality, _) in self.judged.items())
        note = f"Of the rules of inheritance {self.chosen} was best on images held out: {told}."
        plan.provenance["notes"] = [*plan.provenance.get("notes", ()), note]
        return plan


def winner(
    rules: Iterable[Rule], judge: Callable[[Rule, bool], float], *, by_accuracy: bool = True
) -> tuple[Rule, dict[str, tuple[float, float | None]]]:
    """The rule of the best network, and quality and loss of all, loss where it was asked for.

    Accuracies within a thousandth of the best are alike: of these the lower loss wins, then the earlier rule.

    Args:
        judge: of a rule, the quality, or (True) the loss, of its network.
    """
    quality = {rule: judge(rule, False) for rule in rules}
    best = max(quality.values())
    alike = [rule for rule, value in quality.items() if value >= best - (_ALIKE + 1e-12 if by_accuracy else 0.0)]
    losses = {rule: judge(rule, True) for rule in alike} if by_accuracy and len(alike) > 1 else {}
    chosen = min(alike, key=lambda rule: losses.get(rule, 0.0))
    return chosen, {rule: (value, losses.get(rule)) for rule, value in quality.items()}


def _train(case: Case, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
    """A few plain steps; what goes stays zero."""
    case.model.requires_grad_().train()
    optimiser = torch.optim.SGD(case.model.parameters(), lr=_RATE, momentum=_MOMENTUM)
    for inputs, target in batches:
        args, keywords = call_with_copies(inputs)
        optimiser.zero_grad()
        loss(case.model(*args, **keywords), target).backward()
        optimiser.step()
        case.clear()
    case.model.requires_grad_(False)


ROW = MethodRow(
    name="adapruner",
    summary="widths from the mean scale of each block's norms; the best of several rules for inheriting weights",
    paper="AdaPruner: Adaptive Channel Pruning and Effective Weights Inheritance",
    year=2021,
    arxiv="2109.06397",
    needs="calibration",
    labels=True,
    acts="after training",
    granularity="channel",
    fidelity="written from the abstract alone: the importance of a block as the mean scale of its norms, bisection "
    "and a choice among rules for inheriting weights are stated there; the map from importance to width, the rules, "
    "how they are evaluated, what a block is and all constants are a reconstruction, unverified",
    factory=AdaPruner,
    settings=AdaPrunerSettings,
    variants=(
        {"map": "power", "blocks": "branch", "streams": True, "probe_steps": 1},
        {"map": "threshold", "criteria": ["gm", "bn"]},
    ),
)
