"""docs/yolo.md: every method on detectors of Ultralytics."""

from __future__ import annotations

from pathlib import Path

import _record
from _markdown import Row, circumstances, folded, percent, table

INTRODUCTION = """\
YOLO11n, YOLOv8n, YOLO12n and RT-DETR-l of Ultralytics, built from their yaml with random weights (seed {seed}), at
{size} x {size} pixels, down to {share:.0%} of the MACs (of the weights for `dkp`, which sets kernels to zero). Methods
that train have {steps} steps of Ultralytics' own loss in a loop of one's own, with {batch} made images each; those that
look at images have as many. `dcpcac` is told class scores of each image, the best of all places, in place of the
output. Accuracies would mean nothing. What is shown is that a method works, or says why it does not; that the
cut is verified and the budget met within 1%; and that the narrow network runs in training and takes one step of
Ultralytics' own loss. *Settled* counts the sizes written in the network's code around which channels were tied or kept
in the plan. Seconds are of one thread beside other work; runs were made in several sessions; the last is named.

Secateur does not need the package: `pip install ultralytics` gets it for this script.
[A detector](detector.md) shows the calls."""


def pages(docs: Path) -> dict[Path, str]:
    """The page, if there are results."""
    path = _record.RESULTS / "yolo.json"
    if not path.exists():
        return {}
    result = _record.read(path)
    rows: list[Row] = sorted(result["rows"], key=lambda row: row["method"])
    done = [row for row in rows if "left" in row]
    refused, faults = ([row for row in rows if kind in row] for kind in ("refused", "fault"))
    parts = [
        "# Detectors of Ultralytics",
        INTRODUCTION.format(**result),
        circumstances(result),
        _summary(rows, done, faults, result["share"]),
        folded(f"All {len(done)} runs that succeeded", table(HEAD, [_line(row) for row in done])),
    ]
    if refused:
        said = ["## Those that cannot", "What each says, before or after it has looked at the network:"]
        parts += [*said, table(["method", "networks", "its sentence"], _together(refused, "refused"), words=True)]
    if faults:
        parts += ["## Faults", table(["method", "networks", "what came out"], _together(faults, "fault"), words=True)]
    return {docs / "yolo.md": "\n\n".join(parts) + "\n"}


HEAD = ["method", "network", "left of the budget's measure", "parameters left", "proof", "settled", "loss", "s"]


def _line(row: Row) -> list[str]:
    kind = "exact" if row["exact"] else "structural"
    return [
        f"`{row['method']}`",
        row["network"],
        f"{percent(row['left'], 1)}{' (unspent)' if row['unspent'] else ''}",
        percent(row["params"], 1),
        f"{kind}, {row['max_relative_error']:.0e}",
        str(row["settled"]),
        f"{row['loss_before']:.1f} → {row['loss_after']:.1f}",
        f"{row['seconds']:.0f}",
    ]


def _summary(rows: list[Row], done: list[Row], faults: list[Row], share: float) -> str:
    near = [row for row in done if 0.99 * share <= row["left"] <= share]
    verified = sum(row["passed"] for row in done)
    far = [row for row in done if row not in near]
    silent = [f"`{row['method']}` on {row['network']}" for row in far if not row["unspent"]]
    kept = " (the others say in their plan why they leave more)" if far and not silent else ""
    if silent:  # runs of before weights other than zero were counted
        kept = f" (not {', '.join(silent)}, where what is set to zero was counted as left)"
    return (
        f"{len(done)} of {len(rows)} runs succeeded, {verified} of them verified, {len(near)} within 1% of the "
        f"budget{kept}; {len(rows) - len(done) - len(faults)} were refused in a sentence; {len(faults)} ended in a "
        "fault."
    )


def _together(rows: list[Row], kind: str) -> list[list[str]]:
    """One line for every sentence of a method, with the networks about which it says it."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        found.setdefault((row["method"], row[kind]), []).append(row["network"])
    return [[f"`{name}`", ", ".join(networks), said] for (name, said), networks in found.items()]
