r"""Methods that end below random choice in the comparison of one seed: is it their epochs, or what they choose?

    secateur compare recipe:cifar10-resnet8-short --methods random,aofp,gdp,manidp --seeds 1 --budget flops=0.5 \
        --out FOLDER
    python benchmarks/below_random.py FOLDER

Every run is that of the comparison, from the same trained network, with more epochs where the method acts or behind the
cut, and nothing else changed. Finished runs in --runs are taken as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _record
import _shim
import torch

from secateur import runs
from secateur.recipe import Recipe
from secateur.training import make_progress

#: What is changed, by method; the last word of a change is its number of epochs.
CHANGES = (
    ("aofp", "finetune.epochs=3"),
    ("aofp", "train.epochs=6"),
    ("gdp", "train.epochs=8"),
    ("manidp", "train.epochs=8"),
)


def final(cell: Path, change: str, folder: Path) -> dict[str, float]:
    """Accuracy straight after the cut and in the end, of the run of a comparison with one change."""
    if folder.exists():
        results = runs.resume(folder, progress=make_progress()).results
    else:
        recipe = Recipe.parse((cell / "recipe.yaml").read_text(encoding="utf-8"), [change])
        results = runs.start(recipe, folder, progress=make_progress()).results
    return {key: results["accuracy"][key] for key in ("pruned", "final")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="its folder")
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/below_random"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _shim.install()
    where = _record.read(arguments.comparison / "leaderboard.json")["rows"]
    cell = (arguments.seed, arguments.budget)
    compared = {row["method"]: row for row in where if (row["seed"], row["budget"]) == cell}
    rows = []
    for method, change in CHANGES:
        folder = arguments.comparison / "runs" / f"{method}-{arguments.seed}-{arguments.budget}"
        found = final(folder, change, arguments.runs / f"{method}-{change}")
        before = {key: compared[method]["accuracy"][key] for key in ("pruned", "final")}
        rows.append({"method": method, "change": change, "compared": before, "changed": found})
        print(rows[-1], flush=True)
    head = {"command": "python benchmarks/below_random.py FOLDER", "budget": arguments.budget, "seed": arguments.seed}
    random = compared["random"]["accuracy"]["final"]
    path = _record.RESULTS / "below_random.json"
    _record.save(path, {**_record.environment(), **head, "random": random, "rows": rows})


if __name__ == "__main__":
    main()
