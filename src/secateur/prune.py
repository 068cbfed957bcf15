"""`prune`: the whole way from a model and a budget to a smaller, verified model, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from secateur.allocate import Constraints, allocate
from secateur.budget import Budget
from secateur.errors import BudgetError, ModelError, PlanError, WeightsError
from secateur.graph import Cost, Cut, Graph, SizeConflict, Verification, trace
from secateur.methods import CRITERIA, score
from secateur.plan import Plan


@dataclass(frozen=True)
class Result:
    """A smaller model, how it was found, what it saves, and the proof."""

    model: nn.Module
    plan: Plan
    before: Cost
    after: Cost
    verification: Verification | None  # None with verify=False
    graph: Graph
    cut: Cut
    settled: tuple[str, ...]  # sizes written in the model's code that kept channels from being cut freely

    def reached(self, bound: str) -> float:
        """The fraction of the original that remains: of "flops" (MACs), "params", "activations" or "peak"."""
        key = {"flops": "macs", "peak": "peak_activations"}.get(bound, bound)
        whole = getattr(self.before, key)
        return getattr(self.after, key) / whole if whole else 1.0


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: str | Mapping[str, float | str] | Budget | None = None,
    criterion: str | Callable[[Graph], Mapping[str, Any]] = "l1",
    allocator: str = "global",
    normalise: str = "mean",
    reduce: str = "sum",
    ratios: Mapping[str, float] | None = None,
    align: int = 1,
    ignore: Iterable[str] | str = (),
    min_channels: int = 1,
    max_ratio: float = 1.0,
    attention: Literal["heads", "head_dim"] = "heads",
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    verify: bool = True,
    seed: int = 0,
    inplace: bool = False,
) -> Result:
    """Remove the least important channels until the budget is met, and prove the result.

    Args:
        model: any `torch.nn.Module`; DataParallel, DistributedDataParallel and compiled wrappers are taken off.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords with which `model` runs.
        budget: what may remain, such as "flops=0.5", "params=2e6" or {"flops": 0.5, "peak": 0.8}; see `Budget`.
        criterion: a name of `secateur.criteria()`, or a function from the graph to scores {group: [width]}.
        allocator: "global", "uniform", "per_cost" or "ratios" (with `ratios`: {layer pattern: share removed}).
        normalise: how scores become comparable between groups. reduce: how a group's members are combined.
        align: kept widths are multiples of this. ignore: patterns of layers whose outputs stay whole.
        min_channels: channels that stay in every group. max_ratio: largest share of a group that may go.
        attention: prune whole "heads" or the features of every head ("head_dim").
        data, loss: batches (inputs, target) and loss(output, target), for criteria that need them.
        verify: compare the result with the masked original. seed: of random scores and of the verification.
        inplace: narrow `model` itself instead of a copy.

    Raises:
        SecateurError: one sentence that names the cause and the remedy; `model` is then as it was.
    """
    graph = trace(model, example_inputs, attention=attention)
    check_weights(graph)
    if not graph.groups:
        raise ModelError(_nothing(graph))
    constraints = Constraints(tuple([ignore] if isinstance(ignore, str) else ignore), min_channels, max_ratio, align)
    before, settled = graph.cost(), []
    needs_data = any(row.name == criterion and row.needs_data for row in CRITERIA)
    batches = list(data) if data is not None and needs_data else None  # a plan made again scores again
    while True:
        scores = criterion(graph) if callable(criterion) else _score(graph, criterion, reduce, seed, batches, loss)
        plan = allocate(scores, graph, budget, constraints, allocator=allocator, normalise=normalise, ratios=ratios)
        try:
            made = graph.cut(plan, inplace=inplace and not verify)
            break
        except SizeConflict as conflict:
            settled.append(graph.settle(conflict))
            if not graph.groups:
                raise BudgetError(_nothing(graph)) from None
    proof = graph.verify(made, plan, seed=seed) if verify else None
    plan.provenance.update({"criterion": getattr(criterion, "__name__", criterion), "seed": seed})
    _remember(graph, plan)
    after = graph.cost(plan)
    if inplace and verify:  # only now that everything has worked out
        made = graph.cut(plan, inplace=True)
    return Result(made.model, plan, before, after, proof, graph, made, tuple(settled))


def apply(model: nn.Module, example_inputs: Any, plan: Plan, *, verify: bool = True, inplace: bool = False) -> Result:
    """Cut `model` as a (loaded) plan says; the model must have the architecture the plan was made for.

    Raises:
        PlanError: the plan does not fit this network.
    """
    attention = plan.provenance.get("attention", "heads")
    graph = trace(model, example_inputs, attention=attention if attention == "head_dim" else "heads")
    check_weights(graph)
    for conflict in _settled(plan, graph):
        graph.settle(conflict)
    plan.check(graph)
    before, made = graph.cost(), graph.cut(plan)
    seed = plan.provenance.get("seed")
    proof = graph.verify(made, plan, seed=seed if isinstance(seed, int) else 0) if verify else None
    if inplace:
        made = graph.cut(plan, inplace=True)
    settled = tuple(str(conflict) for conflict in graph.settled)
    return Result(made.model, plan, before, graph.cost(plan), proof, graph, made, settled)


def _settled(plan: Plan, graph: Graph) -> list[SizeConflict]:
    """The size conflicts the plan was made around; PlanError where they are not this network's."""
    found = []
    noted: Any = plan.provenance.get("settled", [])
    calls = graph.recording.calls
    for entry in noted if isinstance(noted, list) else [noted]:
        match entry:
            case [int(call), str(module), str(operator), str(detail)] if 0 <= call < len(calls):
                if calls[call].module == module and calls[call].name.removeprefix("aten::") == operator:
                    found.append(SizeConflict(call, module, operator, detail))
                    continue
        raise PlanError(
            f"The plan was made around a size in code ({str(entry)[:80]}) that this network does not have there; "
            "make the plan again for this network."
        )
    return found


def _remember(graph: Graph, plan: Plan) -> None:
    """Note in the plan what a fresh trace must be told to have the same groups."""
    plan.provenance["attention"] = graph.attention
    plan.provenance["settled"] = [conflict.as_json() for conflict in graph.settled]


def check_weights(graph: Graph) -> None:
    """Refuse weights that are not numbers."""
    for name, tensor in graph.tensors().items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue  # one pass; only a sum that overflows needs the second
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{name} holds NaN or infinite values; load sound weights before pruning.")


def _score(
    graph: Graph,
    criterion: str,
    reduce: str,
    seed: int,
    data: list[Any] | None,
    loss: Callable[[Any, Any], torch.Tensor] | None,
) -> Mapping[str, Any]:
    return score(criterion, graph, reduce=reduce, seed=seed, data=data, loss=loss)


def _nothing(graph: Graph) -> str:
    why = "; ".join(f"{f.name}: {f.reason}" for f in graph.frozen[:3])
    return f"Nothing in {type(graph.model).__name__} can be pruned ({why or 'it has no layer with channels'})."
