"""docs/latency.md, and the tables of latencies in other pages: predicted and measured, aligned and not, staircases."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import _record
from _markdown import Row, circumstances, folded, percent, table

FILE, STAIRS_FILE = "latency_budget.json", "staircase.json"
HEAD = """\
How well a latency is predicted, and what pruning to fewer MACs, to aligned widths and to a latency makes of a
network's time. torchvision's networks at {size} pixels with random weights, batch 1, one thread, channels chosen by L1;
median of {rounds} rounds in which all pruned networks and the dense one take turns. *Noise* is how far two medians of
the same dense network lie apart in the same rounds; *drift*, how much longer it took in them than minutes earlier, when
the prediction was fitted: no prediction can be closer than that in milliseconds. What a fraction of the original asks
for is the *ratio* to the dense network, predicted and measured, which drift leaves alone."""
SIDE = ("flops=0.5", "flops=0.5, aligned", "latency, as much score", "latency per cost, as much score")


def pages(docs: Path) -> dict[Path, str]:
    """The page, if there are results."""
    path = _record.RESULTS / FILE
    if not path.exists():
        return {}
    result = _record.read(path)
    parts = [
        "# Latencies, predicted and measured",
        HEAD.format(**result),
    ]
    parts += [circumstances(result), "## Predicted against measured", _errors(result["rows"])]
    parts += ["## MACs against time", *_sides(result)]
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == model]
        parts += [f"## {model}", folded(f"All {len(rows)} plans and runtimes", _all(rows))]
    parts += staircases()
    return {docs / "latency.md": "\n\n".join(parts) + "\n"}


def _errors(rows: list[Row]) -> str:
    lines = []
    for model, runtime in dict.fromkeys((row["model"], row["runtime"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["runtime"]) == (model, runtime)]
        first = mine[0]
        found = []
        for kind in ("ratio_error", "error"):
            aligned = [abs(row[kind]) for row in mine if row["plan"] != "flops=0.5"]
            found += [percent(statistics.median(aligned), 1), percent(max(aligned), 1)]
        odd = next(abs(row["ratio_error"]) for row in mine if row["plan"] == "flops=0.5")
        noise = [percent(first["noise"], 1), f"{100 * first['drift']:+.1f}%"]
        lines.append([model, runtime, *found, percent(odd, 1), *noise, first["shapes"], first["seconds"]])
    head = ["network", "runtime", "ratio: median error", "largest", "ms: median error", "largest"]
    head += ["ratio, unaligned plan", "noise", "drift", "shapes measured", "s"]
    return table(head, lines)


def _sides(result: dict[str, Any]) -> list[str]:
    said = (
        f"The bar for aligned pruning on ONNX Runtime is {100 * result['bar']:.0f}% of the MACs' ratio as time. The "
        "networks have random weights, so quality is the L1 score that stays (each group's mean is 1; as a share of "
        "all): the latency budget is set so that it keeps at least as much as the aligned network, with one threshold "
        "for all groups as in the others, and with score weighed against time (the allocator `per_cost`)."
    )
    return [said, side_by_side()]


def side_by_side() -> str:
    """ResNet-50 at half the MACs: unaligned, aligned, and by latency, as far as it was measured."""
    path = _record.RESULTS / FILE
    rows = _record.read(path)["rows"] if path.exists() else []
    return side_table([row for row in rows if row["model"] == "resnet50" and row["plan"] in SIDE])


def side_table(rows: list[Row]) -> str:
    """MACs and times of plans, side by side."""
    head = ["runtime", "plan", "score kept", "MACs, times fewer", "times faster", "realised", "ms", "10% to 90%"]
    lines = [
        [
            row["runtime"],
            row["plan"],
            percent(row["kept_score"], 1),
            f"{row['macs_x']:.2f}",
            f"{row['faster_x']:.2f}",
            f"{100 * row['realised']:.0f}%",
            row["measured_ms"],
            f"{row['p10_ms']} to {row['p90_ms']}",
        ]
        for row in rows
    ]
    return table(head, lines)


def _all(rows: list[Row]) -> str:
    head = [
        "runtime",
        "plan",
        "MACs, times fewer",
        "times faster",
        "dense, ms",
        "predicted, ms",
        "measured, ms",
        "error",
    ]
    lines = [
        [
            row["runtime"],
            row["plan"],
            f"{row['macs_x']:.2f}",
            f"{row['faster_x']:.2f}",
            row["dense_ms"],
            row["predicted_ms"],
            row["measured_ms"],
            f"{100 * row['error']:+.1f}%",
        ]
        for row in rows
    ]
    return table(head, lines)


def staircases() -> list[str]:
    """The times of one layer at every width."""
    path = _record.RESULTS / STAIRS_FILE
    if not path.exists():
        return []
    result = _record.read(path)
    rows = result["rows"]
    told = (
        f"`{rows[0]['layer']}` of a ResNet-50 ({rows[0]['form']}) with one side narrowed a channel at a time, the "
        "other whole, in microseconds; the step is the one whose staircase fits best."
    )
    head = ["channels", *(f"{row['runtime']}, {row['side']}" for row in rows)]
    lines: list[list[Any]] = [["**step**", *(f"**{row['step']}**" for row in rows)]]
    downwards = range(len(rows[0]["widths"]) - 1, -1, -1)
    lines += [[rows[0]["widths"][k], *(f"{row['us'][k]:.0f}" for row in rows)] for k in downwards]
    return ["## A staircase", told, circumstances(result), folded("All widths", table(head, lines))]
