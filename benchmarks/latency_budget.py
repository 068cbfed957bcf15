"""Latency as a budget: how well it is predicted, and what aligned and latency-budgeted pruning make of fewer MACs.

    python benchmarks/latency_budget.py                            # all networks and runtimes, one thread, batch 1
    python benchmarks/latency_budget.py --models resnet50 --runtimes onnxruntime
    python benchmarks/latency_budget.py --staircase                # one layer at every width, on every runtime

For each network and runtime: the table of layer times is measured (or taken from the cache), the prediction fitted,
the network pruned by L1 to several budgets, and every pruned network timed in turn with the dense one. Weights are
random: nothing here depends on them but which channels go. How noisy the machine is, is measured too: the dense network
is timed against itself in the same rounds, and what it took then is put beside what it took minutes earlier, when the
prediction was fitted (its drift). Measurements in the result file already are kept, unless --again.

Without trained weights, "equal quality" is the score that is kept: the latency budget is set so that at least as much
L1 score (each group's mean is 1) stays as in the aligned network at half the MACs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import _record
import _shim
import numpy as np
import torch
from torch import nn

import secateur
from secateur.allocate import Constraints, allocate
from secateur.budget import Target
from secateur.graph import Graph
from secateur.latency import Prediction, Table, predict, staircase
from secateur.latency.prediction import cuts_of
from secateur.plan import Plan
from secateur.runtime.engines import ENGINES, copied, threads_set

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0")
RUNTIMES = ("onnxruntime", "pytorch", "openvino")
FILE = "latency_budget.json"
STAIRS_FILE = "staircase.json"
STAIRS_LAYER = "layer2.1.conv2"  # 3x3 on 28x28, 128 to 128
BAR = 0.8  # of the MACs' ratio, as time
Row = dict[str, Any]


def plans(graph: Graph, target: Target, align: int) -> dict[str, Plan]:
    """What is pruned, by name; the last one keeps as much score as the aligned network at half the MACs."""
    scores = secateur.score("l1", graph)
    made = {}
    for name, budget, multiple in (
        ("flops=0.5", "flops=0.5", 1),
        ("flops=0.5, aligned", "flops=0.5", align),
        ("flops=0.7, aligned", "flops=0.7", align),
        ("flops=0.3, aligned", "flops=0.3", align),
        ("latency=0.7", f"latency=0.7@{target}", align),
        ("latency=0.5", f"latency=0.5@{target}", align),
    ):
        made[name] = allocate(scores, graph, budget, Constraints(align=multiple))
    wanted = kept_score(graph, scores, made["flops=0.5, aligned"])
    for name, allocator in (("latency, as much score", "global"), ("latency per cost, as much score", "per_cost")):
        low, high = 0.2, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            budget = f"latency={middle:.4f}@{target}"
            plan = allocate(scores, graph, budget, Constraints(align=align), allocator=allocator)
            if kept_score(graph, scores, plan) >= wanted:
                made[name], high = plan, middle
            else:
                low = middle
    return made


def kept_score(graph: Graph, scores: Any, plan: Plan) -> float:
    """The sum of what stays, each group's mean being 1."""
    total = 0.0
    for group in graph.groups:
        score = np.asarray(scores[group.name], dtype=np.float64)
        total += float((score / score.mean())[plan.masks[group.name]].sum())
    return total


def rounds_of(models: list[nn.Module], inputs: Any, target: Target, rounds: int) -> np.ndarray:
    """Milliseconds [models, rounds]; all take turns, forwards and backwards."""
    engine = ENGINES[target.runtime]
    with threads_set(target.threads), torch.no_grad():
        calls = [engine.prepare(copied(model), inputs, target.threads) for model in models]
        times: list[list[float]] = [[] for _ in calls]
        for turn in range(3 + rounds):
            for k in range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls))):
                start = time.perf_counter()
                calls[k]()
                times[k].append(1e3 * (time.perf_counter() - start))
    return np.array(times)[:, 3:]


def measured(name: str, runtime: str, rounds: int, size: int) -> list[Row]:
    """All plans of one network on one runtime."""
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    inputs = torch.randn(1, 3, size, size)
    graph = secateur.trace(model, inputs)
    target = Target(runtime)
    table = Table(target)
    cuts_of(graph, table.step)
    known, began = len(table.times), time.perf_counter()
    prediction = predict(graph, target, table=table)
    built = {"seconds": round(time.perf_counter() - began, 1), "shapes": len(table.times) - known}
    graph.attach(prediction)
    made = plans(graph, target, prediction.step)
    scores = secateur.score("l1", graph)
    networks = [model, *(graph.cut(plan).model for plan in made.values()), model]
    times = rounds_of(networks, inputs, target, rounds)
    dense, noise = float(np.median(times[0])), abs(float(np.median(times[-1]) / np.median(times[0])) - 1)
    drift = 1e3 * dense / prediction.trials[0].measured - 1
    about = {"model": name, "runtime": runtime, "dense_ms": round(dense, 3), **built}
    about |= {"noise": round(noise, 4), "drift": round(drift, 4)}
    rows = []
    for k, (plan_name, plan) in enumerate(made.items(), start=1):
        rows.append(about | {"plan": plan_name} | of_plan(graph, prediction, scores, plan, times[0], times[k]))
        print(rows[-1], flush=True)
    return rows


def of_plan(
    graph: Graph, prediction: Prediction, scores: Any, plan: Plan, dense: np.ndarray, pruned: np.ndarray
) -> Row:
    """One plan: MACs and time, predicted and measured."""
    whole, expected = (float(prediction.expect(graph, graph.widths(each))) / 1e3 for each in (None, plan))
    median = float(np.median(pruned))
    low, high = np.percentile(pruned, (10, 90))
    macs = graph.cost().macs / graph.cost(plan).macs
    ratio = float(np.median(dense) / median)
    full = sum(group.width for group in graph.groups)
    return {
        "macs_x": round(macs, 3),
        "kept_score": round(kept_score(graph, scores, plan) / full, 4),
        "predicted_ms": round(expected, 3),
        "measured_ms": round(median, 3),
        "p10_ms": round(float(low), 3),
        "p90_ms": round(float(high), 3),
        "error": round(expected / median - 1, 4),
        "ratio_error": round(expected / whole * ratio - 1, 4),
        "faster_x": round(ratio, 3),
        "realised": round(ratio / macs, 3),
    }


def stairs(runtimes: list[str]) -> list[Row]:
    """One layer of a ResNet-50 at every width from 96 to 128, and what step fits best."""
    import torchvision

    graph = secateur.trace(torchvision.models.resnet50(weights=None), torch.zeros(1, 3, 224, 224))
    rows = []
    for runtime in runtimes:
        found = staircase(graph, Target(runtime), STAIRS_LAYER)
        for side, said in found.as_json()["sides"].items():
            rows.append({"runtime": runtime, "layer": found.layer, "form": str(found.form), "side": side, **said})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--staircase", action="store_true", help="time one layer at every width; nothing else is done")
    parser.add_argument("--again", action="store_true", help="also what has been measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _shim.install()
    runtimes = arguments.runtimes.split(",")
    if arguments.staircase:
        _record.save(_record.RESULTS / STAIRS_FILE, {**_record.environment(), "rows": stairs(runtimes)})
        return
    file = _record.RESULTS / FILE
    rows: list[Row] = _record.read(file)["rows"] if file.exists() else []
    for name in arguments.models.split(","):
        for runtime in runtimes:
            before = [row for row in rows if (row["model"], row["runtime"]) == (name, runtime)]
            if before and not arguments.again:
                continue
            rows = [row for row in rows if row not in before]
            rows += measured(name, runtime, arguments.rounds, arguments.size)
            keys = ("rounds", "size")
            about = {**_record.environment(), **{key: getattr(arguments, key) for key in keys}, "bar": BAR}
            _record.save(file, {**about, "rows": rows})


if __name__ == "__main__":
    main()
