"""Keep what a comparison found: from the folder of `secateur compare` to a versioned result.

    make compare     # both calls of the comparison, this, and the page docs/compare.md

    python benchmarks/compare_results.py runs/compare      # writes results/compare_short.json

The figures are the runs' own; date, device and threads are those under which they were measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import _record

#: Of leaderboard.json; the files of the data stay behind, as names of files are this machine's.
HEAD = (
    "name", "recipe", "settings", "images", "dense", "calls", "bases", "methods", "means", "paired",
    "failed", "missing",
    "device", "threads", "torch", "python", "secateur",
)  # fmt: skip
ROW = (
    "label", "method", "repair", "seed", "budget", "accuracy", "macs", "params", "within", "epochs", "seconds",
    "exact", "max_relative_error", "plan", "latency", "untimed", "notes", "device",
)  # fmt: skip


def essential(document: dict[str, Any]) -> dict[str, Any]:
    """What the page needs, and whoever wants to compute anything else from single runs."""
    head = {key: document[key] for key in HEAD}
    data = {key: value for key, value in (document["data"] or {}).items() if key != "files"}
    rows = [{key: row[key] for key in ROW} for row in document["rows"]]
    return {**head, "data": data, "date": document["date"], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the comparison")
    parser.add_argument("--name", default="compare_short", help="of the result file")
    parser.add_argument("--command", default="make compare", help="what makes the result, for the page")
    arguments = parser.parse_args()
    document = _record.read(arguments.folder / "leaderboard.json")
    if not document["rows"]:
        sys.exit(f"{arguments.folder} has no finished run yet")
    here = _record.environment()
    kept = {
        **essential(document),
        "command": arguments.command,
        "versions": here["versions"],
        "machine": here["device"],
    }
    _record.save(_record.RESULTS / f"{arguments.name}.json", kept)
    print(f"{len(document['rows'])} runs, {len(document['failed'])} failed, {len(document['missing'])} not finished")


if __name__ == "__main__":
    main()
