"""`prune`: the whole way from a model and a budget to a smaller, verified model, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from secateur.allocate import Constraints, allocate
from secateur.budget import Budget
from secateur.errors import ModelError
from secateur.graph import Graph, trace
from secateur.graph.modules import clone_module, named_tensors
from secateur.latency import Watcher, align_of, price
from secateur.methods.criteria import CRITERIA, score
from secateur.plan import Plan
from secateur.repair import Repair, mend, repairs
from secateur.surgery import Result, apply, check_weights, nothing_to_prune, remember, settled_plan

__all__ = ["Result", "apply", "prune"]


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
    align: int | str = 1,
    ignore: Iterable[str] | str = (),
    min_channels: int = 1,
    max_ratio: float = 1.0,
    attention: Literal["heads", "head_dim"] = "heads",
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    repair: str | Repair | Iterable[str | Repair] = (),
    verify: bool = True,
    seed: int = 0,
    inplace: bool = False,
    watch: Watcher | None = None,
) -> Result:
    """Remove the least important channels until the budget is met, and prove the result.

    Args:
        model: any `torch.nn.Module`; DataParallel, DistributedDataParallel and compiled wrappers are taken off.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords with which `model` runs.
        budget: what may remain, such as "flops=0.5", "params=2e6", {"flops": 0.5, "peak": 0.8} or
            "latency=0.6@onnxruntime"; see `Budget`.
        criterion: a name of `secateur.criteria()`, or a function from the graph to scores {group: [width]}.
        allocator: "global", "uniform", "per_cost" or "ratios" (with `ratios`: {layer pattern: share removed}).
        normalise: how scores become comparable between groups. reduce: how a group's members are combined.
        align: kept widths are multiples of this, or of what suits a processor: a name of
            `secateur.latency.PRESETS`, or "auto" for this one. ignore: patterns of layers whose outputs stay whole.
        min_channels: channels that stay in every group. max_ratio: largest share of a group that may go.
        attention: prune whole "heads" or the features of every head ("head_dim").
        data, loss: batches (inputs, target) and loss(output, target), for criteria and repairs that need them.
        repair: names of `secateur.repair.REPAIRS`, or such objects: what is done to the surviving weights.
        verify: compare the result with the masked original. seed: of random scores and of the verification.
        inplace: narrow `model` itself instead of a copy.
        watch: told (done, total, runtime) while layer shapes are measured for a latency budget.

    Raises:
        SecateurError: one sentence that names the cause and the remedy; `model` is then as it was.
    """
    graph = trace(model, example_inputs, attention=attention)
    check_weights(graph)
    if not graph.groups:
        raise ModelError(nothing_to_prune(graph))
    patterns = tuple([ignore] if isinstance(ignore, str) else ignore)
    bounds = None if budget is None else Budget.parse(budget)
    constraints = price(graph, bounds, Constraints(patterns, min_channels, max_ratio, align_of(align)), watch)
    before = graph.cost()
    mending = repairs(repair)
    needs_data = bool(mending) or any(row.name == criterion and row.needs_data for row in CRITERIA)
    batches = list(data) if data is not None and needs_data else None  # a plan made again scores again

    def planned(graph: Graph) -> Plan:
        scores = criterion(graph) if callable(criterion) else _score(graph, criterion, reduce, seed, batches, loss)
        return allocate(scores, graph, bounds, constraints, allocator=allocator, normalise=normalise, ratios=ratios)

    plan, made = settled_plan(graph, planned, inplace=inplace and not verify and not mending)
    plan.provenance.update({"criterion": getattr(criterion, "__name__", criterion), "seed": seed})
    remember(graph, plan)
    if mending:
        return _mended(graph, plan, mending, batches or (), verify=verify, inplace=inplace)
    proof = graph.verify(made, plan, seed=seed) if verify else None
    after = graph.cost(plan)
    if inplace and verify:  # only now that everything has worked out
        made = graph.cut(plan, inplace=True)
    settled = tuple(str(conflict) for conflict in graph.settled)
    return Result(made.model, plan, before, after, proof, graph, made, settled)


def _mended(
    graph: Graph, plan: Plan, mending: list[Repair], batches: Iterable[Any], *, verify: bool, inplace: bool
) -> Result:
    """Cut a copy whose surviving weights have been repaired."""

    def copied() -> nn.Module:
        return clone_module(graph.model, lambda tensor: tensor.detach().clone())

    plain = copied()
    notes = mend(plain, copied, graph, plan, mending, batches)
    result = apply(plain, graph.example_inputs, plan, verify=verify, timing=graph.timing)
    if notes:
        plan.provenance["notes"] = [*plan.provenance.get("notes", ()), *notes]
    if not inplace:
        return result
    repaired = named_tensors(plain)
    with torch.no_grad():
        for name, tensor in graph.tensors().items():
            tensor.copy_(repaired[name])
    made = graph.cut(plan, inplace=True)
    return replace(result, model=made.model, cut=made)


def _score(
    graph: Graph,
    criterion: str,
    reduce: str,
    seed: int,
    data: list[Any] | None,
    loss: Callable[[Any, Any], torch.Tensor] | None,
) -> Mapping[str, Any]:
    return score(criterion, graph, reduce=reduce, seed=seed, data=data, loss=loss)
