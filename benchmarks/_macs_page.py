"""docs/macs.md: MACs as Secateur counts them, beside the counters that papers use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _record
from _markdown import circumstances, percent, table

INTRODUCTION = """\
What pruning papers call FLOPs are multiply-accumulates (MACs), and every counter draws its own line at what to count.
Secateur counts convolutions and matrix products, those of attention included, and finds the cost of any plan from one
trace without building the network. PyTorch's own `FlopCounterMode` (half of its figure is shown) counts the same, but
not attention where the CPU has a fused kernel for it. The others count part of the rest as well: thop and ptflops
normalisations, activations and pooling, fvcore some of them. A counter that reads modules in place of operators misses
products that stand in functions.

torchvision's networks with random weights at {pixels} pixels, batch 1, whole and pruned to half of the MACs by
Secateur's count."""

PEERS = {"torch": "PyTorch", "fvcore": "fvcore", "thop": "thop", "ptflops": "ptflops"}


def pages(docs: Path) -> dict[Path, str]:
    """The page, if there are results."""
    path = _record.RESULTS / "macs.json"
    if not path.exists():
        return {}
    result = _record.read(path)
    whole = {row["name"]: row for row in result["rows"] if row["state"] == "whole"}
    pruned = {row["name"]: row for row in result["rows"] if row["state"] == "pruned"}
    counts = [[f"`{name}`", *(_millions(row[each]) for each in ("secateur", *PEERS))] for name, row in whole.items()]
    left = [
        [f"`{name}`", *(_left(row[each], pruned[name][each]) for each in ("secateur", *PEERS))]
        for name, row in whole.items()
    ]
    head = ["network", "Secateur", *PEERS.values()]
    parts = [
        "# MACs beside other counters",
        INTRODUCTION.format(**result),
        circumstances(result),
        "## Millions of MACs of the whole network",
        table(head, counts),
        "## Share that is left after pruning",
        _agreement(whole, pruned),
        table(head, left),
    ]
    return {docs / "macs.md": "\n\n".join(parts) + "\n"}


def _millions(found: int | str) -> str:
    return f"{found / 1e6:,.1f}" if isinstance(found, int) else "fails"


def _left(whole: int | str, pruned: int | str) -> str:
    return percent(pruned, whole) if isinstance(whole, int) and isinstance(pruned, int) else "fails"


def _agreement(whole: dict[str, Any], pruned: dict[str, Any]) -> str:
    """How far the others are from Secateur in what is left, in points."""
    told = []
    for each, name in PEERS.items():
        apart = [
            100 * abs(pruned[n][each] / row[each] - pruned[n]["secateur"] / row["secateur"])
            for n, row in whole.items()
            if isinstance(row[each], int) and isinstance(pruned[n][each], int)
        ]
        if apart:
            told.append(f"{name} {max(apart):.1f} ({len(apart)} networks)")
    return f"The largest difference from Secateur's share, in points: {', '.join(told)}."
