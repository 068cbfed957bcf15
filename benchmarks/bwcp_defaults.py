"""Where BWCP's default schedule comes from: schedules compared on images, seeds and a network of no report.

    python benchmarks/bwcp_defaults.py                    # needs .data/cifar10.npz; finished runs in --runs are kept

ResNet-8 with zero-padded shortcuts on the last 10,000 training images of CIFAR-10, seeds 100 and 101, 10 epochs at half
the FLOPs. Schedules are told apart by the 5,000 training images before these; test images are not looked at. Reports
use the first 10,000 images, seeds from 0, another network and more epochs.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import _record
import numpy as np
import torch

from secateur import runs
from secateur.recipe import Recipe
from secateur.training import make_progress

#: ramp: when the budget is reached; settle: when masks stand; sharpness of the gates, first and last.
SCHEDULES = {
    "default": {},
    "random to the end": {"settle": 1.0, "ramp": 0.5},
    "later": {"settle": 0.7, "ramp": 0.5},
    "earlier": {"settle": 0.25, "ramp": 0.2},
    "softer gates": {"sharpness": [5.0, 30.0]},
    "longer warm-up": {"warmup": 0.2, "ramp": 0.4, "settle": 0.5},
}
SEEDS = (100, 101)
RECIPE = """
name: bwcp-defaults
model: zoo:resnet8
data: {{name: npz, path: {data}, batch_size: 128, validation: 0}}
method: bwcp
budget: flops=0.5
train: {{epochs: 10, lr: 0.1, warmup: 1, weight_decay: 5e-4}}
finetune: null
export: {{onnx: false, pt2: false}}
latency: null
"""


def last_images(whole: Path, part: Path) -> Path:
    """The last 10,000 training images, with the 5,000 before them in place of test images, as a file."""
    if not part.exists():
        with np.load(whole) as data:
            x, y = data["x_train"], data["y_train"]
        np.savez(part, x_train=x[-10_000:], y_train=y[-10_000:], x_test=x[-15_000:-10_000], y_test=y[-15_000:-10_000])
    return part


def held_out(schedule: str, seed: int, data: Path, folder: Path) -> float:
    """Accuracy on the held-out images at the end of the training, of a run done now or before."""
    where = folder / f"{schedule.replace(' ', '-')}-{seed}"
    if where.exists():
        results = runs.resume(where, progress=make_progress()).results
    else:
        changes = [f"seed={seed}", *(f"method.{key}={value}" for key, value in SCHEDULES[schedule].items())]
        results = runs.start(Recipe.parse(RECIPE.format(data=data), changes), where, progress=make_progress()).results
    return float(results["accuracy"]["final"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".data/cifar10.npz"))
    parser.add_argument("--runs", type=Path, default=Path("runs/bwcp_defaults"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = last_images(arguments.data, arguments.data.with_name("cifar10-last.npz"))
    rows = []
    for schedule, changed in SCHEDULES.items():
        found = [held_out(schedule, seed, data, arguments.runs) for seed in SEEDS]
        rows.append({"schedule": schedule, "changed": changed, "held_out": found, "mean": statistics.mean(found)})
        print(rows[-1], flush=True)
        _record.save(_record.RESULTS / "bwcp_defaults.json", {**_record.environment(), "seeds": SEEDS, "rows": rows})


if __name__ == "__main__":
    main()
