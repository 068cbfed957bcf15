"""Tables of results that stand on pages written by hand: the demo's in README.md, a YOLO's in docs/integrations.md."""

from __future__ import annotations

import statistics

import _record
from _markdown import circumstances, folded, table


def demo() -> str:
    """What the demo's network has gained in every run, and what a run takes."""
    result = _record.read(_record.RESULTS / "demo.json")
    rows = result["rows"]
    first = rows[0]
    accuracy, left = first["accuracy"], first["remaining"]
    lines = [
        [
            f"{number}",
            *(_interval(row["faster"][runtime]) for runtime in ("pytorch", "onnxruntime")),
            f"{row['setup']['cpu_seconds']:.0f} + {row['demo']['cpu_seconds']:.0f} s",
            f"{row['seconds']:.0f} s",
            f"{row['load']:g}",
        ]
        for number, row in enumerate(rows, 1)
    ]
    notes = (
        f"{circumstances(result)} Each run is a fresh clone. *Load* is how many programs wanted the "
        f"{_cores(result)} when it began; the processor's time, of one thread, is about what a machine without other "
        f"work takes (median {statistics.median(row['cpu_seconds'] for row in rows):.0f} s)."
    )
    head = [
        "run", "times faster, PyTorch (95%)", "times faster, ONNX Runtime (95%)",
        "processor: set-up + demo", "clock, all", "load",
    ]  # fmt: skip
    faster = {runtime: [row["faster"][runtime]["median"] for row in rows] for runtime in ("pytorch", "onnxruntime")}
    return "\n\n".join([
        f"In {len(rows)} runs the pruned network was {_range(faster['pytorch'])} times faster than the dense one on "
        f"PyTorch and {_range(faster['onnxruntime'])} times on ONNX Runtime. Of {accuracy['images']} test images it "
        f"answers {accuracy['final']:.1%} rightly, and the dense network, trained as long, {accuracy['longer']:.1%} "
        f"({accuracy['dense']:.1%} when it is cut). It is a wide ResNet-8 for 8x8 digits, of which "
        f"{left['macs']:.1%} of the multiply-accumulates and {left['params']:.1%} of the parameters stay.",
        folded("Each run, and how long it took", table(head, lines), notes),
    ])  # fmt: skip


def _range(figures: list[float]) -> str:
    least, most = f"{min(figures):.1f}", f"{max(figures):.1f}"
    return least if least == most else f"{least} to {most}"


def ultralytics() -> str:
    """Dense and narrow detector: costs, epochs, mAP."""
    result = _record.read(_record.RESULTS / "ultralytics.json")
    lines = [
        [
            row["network"], f"{row['macs'] / 1e6:.1f}M", f"{row['params'] / 1e6:.2f}M", row["epochs"],
            f"{row['map50']:.3f}", f"{row['map50_95']:.3f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    options, narrow = result["options"], result["rows"][-1]
    return "\n\n".join([
        f"Tried on {options['images']} made images of {options['size']}x{options['size']} pixels with a square or a "
        f"bar in each: {options['network']} from its yaml, trained by Ultralytics, pruned by `{options['method']}` to "
        f"`{options['budget']}`, trained on by Ultralytics, saved and loaded by it. The cut is "
        f"{'exact' if narrow['exact'] else 'structural'} (largest relative difference "
        f"{narrow['max_relative_error']:.0e}). That it comes through is what is shown; accuracies on so few images "
        "mean little.",
        table(["network", "MACs", "parameters", "epochs by Ultralytics' trainer", "mAP50", "mAP50-95"], lines),
        circumstances(result),
    ])  # fmt: skip


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _cores(result: dict[str, str]) -> str:
    return result["device"].rpartition(", ")[2]
