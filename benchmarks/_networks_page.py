"""docs/networks.md: every method on architectures other than those of the comparisons."""

from __future__ import annotations

from pathlib import Path

import _record
from _markdown import circumstances, percent, table

INTRODUCTION = """\
One short run of each method on each network for 32x32 images, down to {budget}: {images} images of CIFAR-10 for an
epoch of training and one of fine-tuning, far too little for an accuracy that means something. What is shown is that the
method works on this architecture, meets the budget within 1%, and that the cut network computes what the masked
one does: largest relative difference of the outputs, with random norms and weights. Methods that need no data also
prune a torchvision ResNet-50 at 224 pixels (new weights). Seconds are of one thread beside other work."""


def pages(docs: Path) -> dict[Path, str]:
    """The page, if there are results."""
    path = _record.RESULTS / "networks.json"
    if not path.exists():
        return {}
    result = _record.read(path)
    rows = result["rows"]
    lines = []
    for row in sorted(rows, key=lambda row: row["method"]):
        start = [f"`{row['method']}`", row["network"].partition(":")[2]]
        when = row.get("measured", result["date"][:10])
        if "error" in row:
            lines.append([*start, "-", "-", row["error"], "-", "-", when])
            continue
        proof = f"{'exact' if row['exact'] else 'structural'}, {row['max_relative_error']:.0e}"
        lines.append(
            [*start, percent(row["left"], 1), percent(row["params"], 1), proof, row["prune_s"], row["total_s"], when]
        )
    low, high = (pick(row["left"] for row in rows if "left" in row) for pick in (min, max))
    failed = sum("error" in row for row in rows)
    summary = (
        f"{len(rows) - failed} of {len(rows)} runs succeeded, at {low:.4f} to {high:.4f} of the MACs; the largest "
        f"relative error of an exact cut is {max(r['max_relative_error'] for r in rows if r.get('exact')):.0e}."
    )
    head = ["method", "network", "MACs left", "parameters left", "proof", "score and cut, s", "run, s", "measured"]
    parts = [
        "# Every method on other networks",
        INTRODUCTION.format(**result),
        circumstances(result),
        summary,
        table(head, lines),
    ]
    return {docs / "networks.md": "\n\n".join(parts) + "\n"}
