"""Latency as a cost: a table of layer times of this machine, predictions from it, and alignment to what it computes in.

    graph = secateur.trace(model, example_inputs)
    graph.attach(secateur.latency.predict(graph, Target("onnxruntime")))     # budgets may now bound "latency"

Below methods and above the graph: allocators see one more cost and know nothing of runtimes.
"""

from __future__ import annotations

from dataclasses import replace

from secateur._distributed import from_first
from secateur.allocate.constraints import Constraints
from secateur.allocate.presets import AUTO, PRESETS, align_of, this_machine
from secateur.budget import Budget, Target
from secateur.graph import Graph
from secateur.latency.benches import BENCHES
from secateur.latency.prediction import Prediction, cuts_of, predict
from secateur.latency.stairs import Staircase, staircase
from secateur.latency.table import Table, Watcher, cache_folder

__all__ = [
    "AUTO", "BENCHES", "PRESETS", "Prediction", "Staircase", "Table", "Target", "Watcher", "align_of", "cache_folder",
    "predict", "price", "staircase", "this_machine",
]  # fmt: skip


def price(graph: Graph, budget: Budget | None, constraints: Constraints, watch: Watcher | None = None) -> Constraints:
    """Where the budget bounds a latency, make it one of the graph's costs, and widths multiples of what pays there.

    The first process measures for all. Widths that are no multiple of a runtime's block cost what the next multiple
    costs, so `align` of 1, the default, becomes that block; any other stays as it is.

    watch: told of layer shapes that are measured, in the process that does it.

    Returns:
        the constraints to plan with.
    """
    target = None if budget is None else budget.target
    if target is None:
        return constraints
    cuts_of(graph, PRESETS[this_machine()])  # all processes see the same groups
    prediction = from_first(lambda: predict(graph, target, watch))
    graph.attach(prediction)
    return replace(constraints, align=prediction.step) if constraints.align == 1 else constraints
