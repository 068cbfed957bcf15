"""Surgery: a plan applied to a model, with the proof; what every way of pruning ends in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.budget import KEYS
from secateur.errors import BudgetError, PlanError, WeightsError
from secateur.graph import Cost, Cut, Graph, SizeConflict, Timing, Verification, trace
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
    notes: tuple[str, ...] = ()  # sentences about what was done

    def reached(self, bound: str) -> float:
        """The fraction of the original that remains: of "flops", "params", "activations", "peak" or "latency"."""
        key = KEYS.get(bound, bound)
        whole = getattr(self.before, key)
        return getattr(self.after, key) / whole if whole else 1.0


def apply(
    model: nn.Module,
    example_inputs: Any,
    plan: Plan,
    *,
    verify: bool = True,
    inplace: bool = False,
    timing: Timing | None = None,
) -> Result:
    """Cut `model` as a (loaded) plan says; the model must have the architecture the plan was made for.

    timing: predicts latencies, which then are among the costs before and after.

    Args:
        model: the whole network. example_inputs: as in `secateur.trace`. plan: which channels stay.
        verify: compare the cut with the masked original, and refuse a cut that is not the same.
        inplace: cut `model` itself; else it stays as it is.

    Raises:
        PlanError: the plan does not fit this network.
    """
    attention = plan.provenance.get("attention", "heads")
    graph = trace(model, example_inputs, attention=attention if attention == "head_dim" else "heads")
    check_weights(graph)
    for conflict in _settled(plan, graph):
        graph.settle(conflict)
    plan.check(graph)
    if timing is not None:
        graph.attach(timing)
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
            case [int(call), str(module), str(operator), str(detail), str(done)] if 0 <= call < len(calls):
                if calls[call].module == module and calls[call].name.removeprefix("aten::") == operator:
                    found.append(SizeConflict(call, module, operator, detail, done))
                    continue
        raise PlanError(
            f"The plan was made around a size in code ({str(entry)[:80]}) that this network does not have there; "
            "make the plan again for this network."
        )
    return found


def settled_plan(
    graph: Graph, make_plan: Callable[[Graph], Plan], *, inplace: bool = False, notes: list[str] | None = None
) -> tuple[Plan, Cut]:
    """The plan that `make_plan` makes of a graph, and its cut; sizes in the model's code that stand against it settle.

    A plan meets such a size only at some widths. The graph then ties or freezes channels, its groups are others, and
    the plan is made again, until one can be cut; every time fewer channels are free, so there is an end.

    Args:
        graph: of the network; it is solved again where something settles.
        make_plan: called once, and again each time something has settled.
        inplace: narrow the network itself.
        notes: takes one sentence for each size that settled.

    Raises:
        BudgetError: nothing is left that can be pruned. Whatever `make_plan` raises: a budget may be out of reach now.
    """
    while True:
        plan = make_plan(graph)
        try:
            return plan, graph.cut(plan, inplace=inplace)
        except SizeConflict as conflict:
            said = graph.settle(conflict)
        if notes is not None:
            notes.append(said)
        if not graph.groups:
            raise BudgetError(nothing_to_prune(graph))


def remember(graph: Graph, plan: Plan) -> list[str]:
    """Note in the plan what a fresh trace must be told to have the same groups, and what its latency was taken for.

    Returns:
        sentences to tell the user.
    """
    plan.provenance["attention"] = graph.attention
    plan.provenance["settled"] = [conflict.as_json() for conflict in graph.settled]
    notes: list[str] = list(plan.provenance.get("notes", ()))
    if graph.timing is not None:
        said = plan.provenance["latency"] = graph.timing.about(graph, plan)
        notes += [said["note"]] if "note" in said else []
    return notes


def check_weights(graph: Graph) -> None:
    """Refuse weights that are not numbers."""
    for name, tensor in graph.tensors().items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue  # one pass; only a sum that overflows needs the second
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{name} holds NaN or infinite values; load sound weights before pruning.")


def nothing_to_prune(graph: Graph) -> str:
    """The sentence for a network without a single group."""
    why = "; ".join(f"{f.name}: {f.reason}" for f in graph.frozen[:3])
    return f"Nothing in {type(graph.model).__name__} can be pruned ({why or 'it has no layer with channels'})."
