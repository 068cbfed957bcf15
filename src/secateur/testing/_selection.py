"""What holds of scores and plans: every channel has one, the budget is used, the constraints are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._protocols import IntArray
from secateur.allocate import Constraints
from secateur.budget import Budget
from secateur.errors import BudgetError, PlanError
from secateur.graph import Graph, trace
from secateur.graph.modules import named_tensors
from secateur.methods.contract import Method
from secateur.plan import Plan
from secateur.testing._promises import Broken, refuses, require
from secateur.testing._subject import Subject, planned, require_same_plan

#: Budgets that the fine network can meet within 1%.
BUDGETS = ("flops=0.5", "params=0.6", "flops=0.8,params=0.4")
#: The same for methods whose costs are means over images.
AVERAGES = ("flops=0.5", "flops=0.8")
CLOSE = 0.99


def scores_cover_every_channel(subject: Subject) -> None:
    """score() gives every channel of every group a finite number"""
    method = subject.trained
    if type(method).score is Method.score:
        require(type(method).plan is not Method.plan, "it has neither score() nor a plan() of its own")
        return
    scores = method.score()
    groups = {group.name: group.width for group in method.graph.groups}
    missing = [name for name in groups if name not in scores]
    require(not missing, f"score() says nothing about the group {missing[0] if missing else ''}")
    unknown = [name for name in scores if name not in groups]
    require(not unknown, f"score() has the group {unknown[0] if unknown else ''}, which the network has not")
    for name, width in groups.items():
        values = np.asarray(scores[name])
        require(values.shape == (width,), f"score() gives {name} the shape {values.shape}, and it has {width} channels")
        require(np.isfinite(values.astype(np.float64)).all(), f"score() gives {name} values that are not finite")


def plan_is_sound(subject: Subject) -> None:
    """plan() speaks of all groups, comes out the same when asked again, and changes nothing"""
    method = subject.trained
    plan = method.plan()
    require(isinstance(plan, Plan), f"plan() gives {type(plan).__name__} and not a secateur.Plan")
    _fits(method, plan)
    require_same_plan("plan() gives another plan when asked again", plan, method.plan())


def _fits(method: Method, plan: Plan) -> None:
    try:
        plan.check(method.graph)
    except PlanError as error:
        raise Broken(f"plan() does not fit the network: {str(error).rstrip('.')}") from error


def plan_meets_the_budget(subject: Subject) -> None:
    """The plan keeps within the budget; it uses 99% of it where channels are small enough, or says why not"""
    if "budget" in subject.settings:  # a method of single weights: see weights_meet_the_budget
        return
    asked: tuple[str, ...] = BUDGETS if subject.network.fine else BUDGETS[:1]
    if subject.row is not None and subject.row.result == "per input":  # these save computing, and nothing else
        asked = AVERAGES
        for budget in ("params=0.6", "peak=0.7", "activations=0.8", "flops=0.8,params=0.9"):
            refuses(f"the budget {budget}", lambda b=budget: subject.make(budget=b), "flops")  # type: ignore[misc]
    for budget in asked:
        method = _ready(subject, budget=budget)
        if method is None:
            continue
        plan, cost = planned(method)
        _fits(method, plan)
        limits = Budget.parse(budget).limits(method.graph.cost())
        used = {key: getattr(cost, key) / limit for key, limit in limits.items()}
        for key, share in used.items():
            require(share <= 1 + 1e-9, f"for {budget} the plan costs {share:.1%} of the {key} allowed")
        if subject.network.fine:
            most, why = max(used.values()), plan.provenance.get("unspent")
            require(
                most >= CLOSE or (isinstance(why, str) and why.endswith(".")),
                f"for {budget} the plan uses {most:.1%} of what is allowed, and not 99%, and its provenance has no "
                "sentence 'unspent' that says why",
            )


def plan_keeps_constraints(subject: Subject) -> None:
    """The plan keeps to ignore, min_channels, max_ratio and align"""
    if "budget" in subject.settings:
        return
    widths = {group.name: group.width for group in subject.make().graph.groups}
    whole = next(iter(widths))
    for constraints in (
        Constraints(ignore=(whole.partition("#")[0],)),
        Constraints(min_channels=6, align=2),
        Constraints(max_ratio=0.5),
        Constraints(align=4),
    ):
        method = _ready(subject, budget="flops=0.75", constraints=constraints)
        if method is None:
            continue
        kept = method.plan().widths
        if constraints.ignore:
            require(kept[whole] == widths[whole], f"the plan cuts {whole}, which constraints.ignore names")
        steps = constraints.steps(method.graph)
        for name, width in widths.items():
            _legal(name, width, kept[name], constraints, steps[name])


def plan_follows_its_channels(subject: Subject) -> None:
    """Where nothing is drawn, a network whose channels stand in another order keeps the same channels"""
    row = subject.row
    if row is None or row.chance or "budget" in subject.settings:
        return
    with _double():  # in single precision the rounding of sums in another order would decide between near ties
        model, moved = (_uneven(subject.network.make()) for _ in range(2))
        graph, generator = trace(model, subject.network.inputs()), np.random.default_rng(0)
        orders = {group.name: generator.permutation(group.width) for group in graph.groups}
        permute(moved, graph, orders)
        here, there = (subject.work(subject.make(each)).plan() for each in (model, moved))
    for name, order in orders.items():
        require(
            bool((here.masks[name][order] == there.masks[name]).all()),
            f"the channels of {name} were put into another order, and the plan keeps others of them: something is "
            "chosen by its number (if that is meant, say in the row's `chance` what is drawn)",
        )


@contextmanager
def _double() -> Iterator[None]:
    """New tensors are of double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def _uneven(model: nn.Module) -> nn.Module:
    """The model with no two channels alike, where a new one has the same scale everywhere."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def permute(model: nn.Module, graph: Graph, orders: Mapping[str, IntArray]) -> None:
    """Put the channels of every group of `model` into another order, wherever they are; it computes the same."""
    tensors = named_tensors(model)
    for group in graph.groups:
        for member in group.members:
            tensor = tensors[member.name]
            index = np.arange(tensor.shape[member.dim])
            index[member.index] = member.index[orders[group.name]]
            tensor.copy_(tensor.index_select(member.dim, torch.from_numpy(index)))


def _legal(name: str, width: int, kept: int, constraints: Constraints, step: int) -> None:
    where = f"of {width} channels of {name} the plan keeps {kept}, and constraints"
    least, most = min(constraints.min_channels, width), constraints.max_ratio * width + 1e-9
    require(kept >= least, f"{where}.min_channels is {constraints.min_channels}")
    require(width - kept <= most, f"{where}.max_ratio is {constraints.max_ratio}")
    require(kept % step == 0 or kept == width, f"{where}.align is {constraints.align}")


def _ready(subject: Subject, **options: Any) -> Method | None:
    """A method just before the cut; None where the network is too coarse for these options."""
    try:
        method = subject.make(**options)
    except BudgetError:
        if subject.network.fine:
            raise
        return None
    return subject.work(method)
