"""BWCP beside its baselines on real images: L1, random channels, and the same widths trained from the start; equal
epochs.

    python benchmarks/bwcp_quality.py                              # 3 seeds, ResNet-8 on 10,000 images of CIFAR-10
    python benchmarks/bwcp_quality.py --seeds 1 --set train.epochs=2

Every run is an ordinary one of recipes/cifar10-resnet8-short.yaml (or --recipe) with another method and seed; a run
that is already finished in --runs is taken as it is, an interrupted one goes on. L1 and chance prune the network that
was trained for the epochs of `train` and fine-tune it for those of `finetune`; BWCP, as in its paper, and scratch, with
the widths BWCP found with the same seed, train for the sum of both and are not fine-tuned.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import _record
import torch

from secateur import runs
from secateur.recipe import Recipe
from secateur.training import make_progress

HERE = Path(__file__).parent
METHODS = ("bwcp", "bwcp-random", "l1", "random", "scratch")
#: Gates that stay random until the end, as in the paper: how far soft and hard ones are apart without settled masks.
SETTINGS = {"bwcp-random": "{name: bwcp, settle: 1.0, ramp: 0.5}"}
WHOLE = (
    "bwcp",
    "bwcp-random",
    "scratch",
)  # they train the network that stays, and are not fine-tuned: all epochs are one stage


def run(recipe: Path, overrides: list[str], method: str, seed: int, folder: Path) -> dict[str, Any]:
    """The results of one run, done now or before."""
    where = folder / f"{method}-{seed}"
    if where.exists():
        return runs.resume(where, progress=make_progress()).results
    changes = [*overrides, f"method={SETTINGS.get(method, method)}", f"seed={seed}"]
    if method == "scratch":
        changes.append(f"method={{name: scratch, plan: {folder / f'bwcp-{seed}' / 'plan.json'}}}")
    if method in WHOLE:
        plain = Recipe.read(recipe, overrides)
        epochs = plain.train.epochs + (plain.finetune.epochs if plain.finetune is not None else 0)
        changes += ["finetune=null", f"train.epochs={epochs}"]
    read = Recipe.read(recipe, changes)
    return runs.start(read, where, progress=make_progress(), command=f"benchmarks/bwcp_quality.py ({method})").results


def row(method: str, seed: int, results: dict[str, Any]) -> dict[str, Any]:
    """What a comparison needs of one run's results."""
    accuracy = {key: results["accuracy"][key] for key in ("dense", "soft", "hard", "pruned", "finetuned", "final")}
    return {
        "method": method,
        "seed": seed,
        "accuracy": accuracy,
        "images": results["accuracy"]["images"],
        "flops": results["remaining"]["macs"],
        "params": results["remaining"]["params"],
        "exact": results["verification"]["exact"],
        "max_relative_error": results["verification"]["max_relative_error"],
        "epochs": results["epochs"],
        "seconds": {key: round(value, 1) for key, value in results["seconds"].items()},
        "widths": {group["name"]: group["kept"] for group in results["groups"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes" / "cifar10-resnet8-short.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="where to begin, to share the work between processes")
    parser.add_argument("--runs", type=Path, default=Path("runs/bwcp_quality"))
    parser.add_argument("--name", default="bwcp_quality", help="of the result file")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [
        row(method, seed, run(arguments.recipe, arguments.overrides, method, seed, arguments.runs))
        for seed in range(arguments.first_seed, arguments.seeds)
        for method in METHODS
    ]
    read = Recipe.read(arguments.recipe, arguments.overrides)
    result = {**_record.environment(), "recipe": read.model_dump(mode="json"), "seeds": arguments.seeds}
    _record.save(_record.RESULTS / f"{arguments.name}.json", {**result, "rows": rows})
    for method in METHODS:
        final = [100 * entry["accuracy"]["final"] for entry in rows if entry["method"] == method]
        spread = statistics.stdev(final) if len(final) > 1 else 0.0
        print(f"{method:12} {statistics.mean(final):.2f}% +- {spread:.2f}")


if __name__ == "__main__":
    main()
