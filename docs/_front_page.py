"""The figures on the front page and in README.md, each with the command and the date of its result file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from _markdown import folded

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
Table = Callable[[Iterable[str], Iterable[Iterable[str]]], str]


def numbers(table: Table) -> str:
    """What was measured, in one table; below it, folded away, the command and the date of each figure."""
    found = [(*row(result), result) for name, row in ROWS.items() if (result := _read(name))]
    commands = [f"- {figure}: {_when(result)}" for figure, _, result in found]
    rows = table(("measured", "of what"), [(figure, what) for figure, what, _ in found])
    return f"{rows}\n\n{folded('The commands, and when they ran', chr(10).join(commands))}"


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _when(result: dict[str, Any]) -> str:
    return f"{result['date'][:10]}, `{result['command']}`"


def _census(result: dict[str, Any]) -> tuple[str, str]:
    rows = result["rows"]
    cut = sum(row["status"] in ("exact", "inexact") for row in rows)
    return f"{cut} of {len(rows)}", "models of torchvision and families of timm [cut and verified](census.md)"


def _latency(result: dict[str, Any]) -> tuple[str, str]:
    row = next(
        row
        for row in result["rows"]
        if (row["model"], row["runtime"], row["plan"]) == ("resnet50", "onnxruntime", "flops=0.5, aligned")
    )
    what = "a ResNet-50 with [half of its MACs, in aligned widths](latency.md), on ONNX Runtime, one CPU thread"
    return f"{row['faster_x']:.2f} times faster", what


def _one_shot(result: dict[str, Any]) -> tuple[str, str]:
    dense = statistics.mean(result["dense"].values())
    rows = [row for row in result["rows"] if row["left"] == 0.5 and "top1" in row]
    best = max(rows, key=lambda row: row["top1"])
    repair = "" if best["repair"] == "none" else f" and `{best['repair']}`"
    what = "accuracy of a ResNet-20 on CIFAR-10 without half of its FLOPs, [nothing trained](one_shot.md) after the cut"
    return f"{100 * dense:.1f}% to {100 * best['top1']:.1f}%", f"{what} by `{best['method']}`{repair}"


def _pretrained(result: dict[str, Any]) -> tuple[str, str]:
    dense = statistics.mean(result["dense"].values())
    best = max((row for row in result["rows"] if "top1" in row), key=lambda row: row["top1"])
    what = (
        f"accuracy of a trained EfficientNet-Lite0 without {100 * (1 - best['left']):.0f}% of its FLOPs, from "
        f"{result['images']} photographs and [no labels](one_shot.md); tested on {result['tested']} others, which were "
        "probably among those it was trained on"
    )
    return f"{100 * dense:.1f}% to {100 * best['top1']:.1f}%", what


def _speed(result: dict[str, Any]) -> tuple[str, str]:
    times = [row["times_faster"] for row in result["rows"] if "times_faster" in row]
    what = f"trace, score and cut than [Torch-Pruning](graph_speed.md): median of {len(times)} networks, and range"
    return f"{statistics.median(times):.1f} times faster ({min(times):.1f} to {max(times):.0f})", what


ROWS: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "census": _census,
    "latency_budget": _latency,
    "one_shot_cifar10": _one_shot,
    "one_shot_efficientnet_lite0": _pretrained,
    "graph_speed": _speed,
}
