"""Are a method's widths at fault, or its channels? New networks with the widths that methods chose in a comparison.

    make compare                       # runs/compare
    python benchmarks/widths.py        # a new network with each method's widths at half the FLOPs, all 13 epochs

Every network is trained from new weights with the recipe of the comparison and all of its epochs (the method `scratch`,
given the run's plan). A method far below random choice whose widths train as well as others' has lost something else:
its weights, or the epochs it spent on something else than training. Runs that are there already are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _record
import torch

from secateur import runs
from secateur.recipe import Recipe
from secateur.runs.folder import STATE

METHODS = "random,l1,catro,cwb,pfp,dcpcac,cpmc,nap"


def measured(folder: Path, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """One method: its widths, its own accuracy, and that of a new network with its widths."""
    run = folder / "runs" / f"{method}-{args.seed}-{args.budget}"
    found = json.loads((run / "results.json").read_text())
    epochs = sum(number or 0 for number in (args.train, args.finetune))
    wishes = [f"seed={args.seed}", f"budget={args.budget}", f"train.epochs={epochs}", "finetune=null", "latency=null"]
    wishes += [f"method={{name: scratch, plan: {run / 'plan.json'}}}", "export={onnx: false, pt2: false}"]
    recipe = Recipe.read(args.recipe, wishes)
    out: Path = args.out / f"{method}-{args.seed}"
    if (out / STATE).exists():
        runs.resume(out)
    else:
        runs.start(recipe, out)
    new = json.loads((out / "results.json").read_text())
    return {
        "method": method,
        "seed": args.seed,
        "widths": [group["kept"] for group in found["groups"]],
        "full": [group["width"] for group in found["groups"]],
        "groups": [group["name"] for group in found["groups"]],
        "cut": found["accuracy"]["pruned"],
        "final": found["accuracy"]["final"],
        "new": new["accuracy"]["final"],
        "epochs": epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, default=Path("runs/compare"), help="folder of the comparison")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-resnet8-short.yaml"))
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/widths"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe.read(args.recipe)
    args.train = recipe.train.epochs if recipe.train else 0
    args.finetune = recipe.finetune.epochs if recipe.finetune else 0
    rows = []
    for method in args.methods.split(","):
        rows.append(measured(args.compare, method, args))
        print(rows[-1], flush=True)
    about = {"budget": args.budget, "recipe": str(args.recipe), "seed": args.seed}
    _record.save(_record.RESULTS / "widths.json", {**_record.environment(), **about, "rows": rows})


if __name__ == "__main__":
    main()
