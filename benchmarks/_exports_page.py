"""docs/exports.md below its hand-written head: every network in every format, and accuracy in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _record
from _markdown import Row, circumstances, percent, table

MARK = "<!-- results -->"
FORMATS = {"onnx": "ONNX", "pt2": "torch.export", "openvino": "OpenVINO", "executorch": "ExecuTorch"}
QUANTISERS = {"onnxruntime": "ONNX Runtime", "openvino": "NNCF, for OpenVINO"}
TOLERANCE = 1e-4

NETWORKS = """\
Each network was pruned to half its FLOPs (l1) and exported. The figure is the largest difference between the outputs of
the file, run by its runtime, and those of the network in PyTorch, over the largest output: with batches of one and
three where the batch size is open. A file that differs by more than {tolerance:.0e} is not written, unless the network
itself, in single precision, differs as much from what it is in double. Weights are random, with the norms' statistics
measured on noise; inputs are small where the architecture allows. *Graph* is what all formats begin with, and OpenVINO
begins with the ONNX file, which is not counted again. Seconds are of one thread beside other work."""

INT8 = """\
`{reference}`, trained in the recipe `{run}`, as it is, and pruned with l1 and repaired with least squares, without any
training after the cut; quantised with {calibration:,} training images, without labels, tested on {images:,} test images
(`--int8 runs/hour`)."""


def pages(docs: Path) -> dict[Path, str]:
    """The page, if there are results."""
    path = _record.RESULTS / "exports.json"
    page = docs / "exports.md"
    if not path.exists() or not page.exists():
        return {}
    result = _record.read(path)
    head = page.read_text(encoding="utf-8").partition(MARK)[0].rstrip()
    exports = [row for row in result["rows"] if "format" in row]
    int8 = [row for row in result["rows"] if "quantiser" in row]
    parts = [
        head,
        MARK,
        "## Measured",
        circumstances(result),
    ]
    if exports:
        parts += ["### Every network in every format", NETWORKS.format(tolerance=TOLERANCE), *_exports(exports)]
    if int8:
        parts += ["### Accuracy in 8 bits", *_int8(int8)]
    return {page: "\n\n".join(parts) + "\n"}


def _exports(rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(row["network"] for row in rows))
    cells = {(row["network"], row["format"]): row for row in rows}
    formats = [name for name in FORMATS if any(row["format"] == name for row in rows)]
    lines = []
    for name in names:
        found = [cells.get((name, each)) for each in formats]
        about: dict[str, Any] = next((row for row in found if row and "flops" in row), {})
        lines.append(
            [
                f"`{name}`",
                "x".join(map(str, about["input"][2:])) if about else "-",
                percent(about["flops"], 1) if about else "-",
                *(_error(row) for row in found),
                about.get("graph_s", "-"),
                *(row["seconds"] if row and "seconds" in row else "-" for row in found),
            ]
        )
    head = ["network", "pixels", "FLOPs left", *(FORMATS[name] for name in formats), "graph, s"]
    shortfalls = [[f"`{row['network']}`", FORMATS[row["format"]], _said(row)] for row in rows if _said(row)]
    return [
        " ".join(_summary(name, [row for row in rows if row["format"] == name]) for name in formats),
        table([*head, *(f"{FORMATS[name]}, s" for name in formats)], lines),
        table(["network", "format", "what is not as it should be"], shortfalls, words=True)
        if shortfalls
        else "No file has a fixed batch size, and nothing failed.",
    ]


def _summary(name: str, rows: list[Row]) -> str:
    right = [row for row in rows if "max_relative_error" in row]
    close = sum(row["max_relative_error"] <= TOLERANCE for row in right)
    worst = max((row["max_relative_error"] for row in right), default=0.0)
    opsets = sorted({row["opset"] for row in right if "opset" in row})
    shown = f"{opsets[0]}" if len(opsets) == 1 else f"{opsets[0]} to {opsets[-1]}" if opsets else ""
    opset = f", opset {shown}" if opsets else ""
    most = {row["largest_batch"] for row in right if "largest_batch" in row}
    largest = f" up to {max(most)}" if most else ""
    dynamic = sum(bool(row["dynamic_batch"]) for row in right)
    return (
        f"**{FORMATS[name]}**: {len(right)} of {len(rows)} networks, {close} of them to {TOLERANCE:.0e} (largest "
        f"difference {worst:.1e}{opset}), "
        f"{dynamic} of them with any batch size{largest}."
    )


def _error(row: Row | None) -> str:
    if row is None:
        return "not tried"
    if "error" in row:
        return "failed"
    fixed = "" if row["dynamic_batch"] else ", fixed batch"
    return f"{row['max_relative_error']:.0e}{fixed}" if row["max_relative_error"] else f"0{fixed}"


def _said(row: Row) -> str:
    if row.get("max_relative_error", 0.0) > TOLERANCE:
        return (
            f"differs by {row['max_relative_error']:.1e}; allowed is {row['tolerance']:.1e}, three times what the "
            "network itself in single precision differs from double"
        )
    return str(row.get("error") or row.get("reason") or row.get("not_loaded") or "")


def _int8(rows: list[Row]) -> list[str]:
    lines = [
        [
            "dense" if row["left"] == 1 else f"{100 * row['left']:.0f}% of the FLOPs",
            QUANTISERS[row["quantiser"]],
            percent(row["float"], 1),
            percent(row["int8"], 1),
            f"{100 * (row['int8'] - row['float']):+.2f}",
            f"{row['bytes'] / 1000:,.0f} kB",
            row["seconds"],
        ]
        for row in rows
    ]
    first = rows[0]
    about = INT8.format(
        reference=first["network"], run=first["run"], images=first["tested"], calibration=first["calibration_images"]
    )
    lost = max(row["float"] - row["int8"] for row in rows)
    deviation = 100 * (0.25 / first["tested"]) ** 0.5
    summary = (
        f"The largest loss is {100 * lost:.2f} points; with so few test images a single accuracy has a standard error "
        f"of up to {deviation:.1f} points."
    )
    head = ["network", "quantiser", "float", "8 bits", "points", "file", "seconds"]
    return [about, summary, table(head, lines)]
