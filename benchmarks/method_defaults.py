"""Where methods' defaults come from: settings compared on images, seeds and networks of no report.

    python benchmarks/method_defaults.py                          # needs .data/cifar10.npz; --runs are continued
    python benchmarks/method_defaults.py --methods cpmc

Each network is trained for 10 epochs on the last 10,000 training images of CIFAR-10, pruned to half the FLOPs, and
trained for 4 epochs more, all settings from the same base networks. They are told apart by the 5,000 training images
before these; test images are not looked at. Reports use other images and seeds, and other networks or more epochs.
BWCP's schedule: bwcp_defaults.py.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import _record
from bwcp_defaults import SEEDS, last_images

RECIPE = """
name: method-defaults
model: zoo:{network}
data: {{name: npz, path: {data}, batch_size: 128, validation: 0}}
method: l1
budget: flops=0.5
train: {{epochs: 10, lr: 0.2, nesterov: true, weight_decay: 5e-4, schedule: onecycle}}
finetune: {{epochs: 4, lr: 0.05, nesterov: true, weight_decay: 5e-4, schedule: onecycle}}
export: {{onnx: false, pt2: false}}
latency: null
"""
NETWORKS = {"resnet8": SEEDS, "resnet20": SEEDS[:1]}
#: What every setting is held against.
BESIDE = ("l1", "random")
#: By method: what the rows are called, and the settings. `+REPAIR` in a name is a repair behind the method.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "cpmc": {
        "alpha, beta: 0": {"alpha": 0, "beta": 0},
        "alpha, beta: 0.02": {"alpha": 0.02, "beta": 0.02},
        "alpha, beta: 0.05": {"alpha": 0.05, "beta": 0.05},
        "alpha, beta: 0.1": {"alpha": 0.1, "beta": 0.1},
        "alpha, beta: 0.1, over the maximum": {"alpha": 0.1, "beta": 0.1, "normaliser": "max"},
    },
    "acp": {
        "norms: new": {"norms": "new"},
        "norms: kept": {"norms": "kept"},
        "norms: kept, inherit: l1": {"norms": "kept", "inherit": "l1"},
        "fitness: recalibrate": {"fitness": "recalibrate"},
        "fitness: recalibrate, inherit: l1": {"fitness": "recalibrate", "inherit": "l1"},
    },
    "nap": {"default": {}, "default, +batchnorm": {}, "end: 0.75": {"end": 0.75}},
    "dcpcac": {"default": {}, "rate, trunk: 0": {"rate": 0, "trunk": 0}, "start: 0.15": {"start": 0.15}},
}


def compare(folder: Path, network: str, seeds: tuple[int, ...], methods: str, given: list[str], data: Path) -> Any:
    """The leaderboard of a comparison that is begun or continued in `folder`."""
    recipe = folder.parent / f"{network}.yaml"
    recipe.write_text(RECIPE.format(network=network, data=data), encoding="utf-8")
    call = [sys.executable, "-m", "secateur", "compare", str(recipe), "--methods", methods, "--no-dense"]
    call += ["--seeds", str(len(seeds)), "--first-seed", str(seeds[0]), "--out", str(folder), *given]
    subprocess.run(call, check=True)
    return _record.read(folder / "leaderboard.json")


def measured(method: str, name: str, network: str, data: Path, runs: Path) -> dict[str, Any]:
    """One setting of a method on one network, beside what all are held against."""
    seeds = NETWORKS[network]
    shared = runs / network
    shared.mkdir(parents=True, exist_ok=True)
    if not (shared / "beside" / "leaderboard.json").is_file():
        compare(shared / "beside", network, seeds, ",".join(BESIDE), [], data)
    folder = shared / f"{method}-{'-'.join(''.join(c if c.isalnum() or c == '.' else ' ' for c in name).split())}"
    if not folder.exists():  # with the same base networks
        shutil.copytree(shared / "beside", folder)
    label = method + ("+batchnorm" if name.endswith("+batchnorm") else "")
    settings = SETTINGS[method][name]
    given = [word for key, value in settings.items() for word in ("--with", f"{method}.{key}={value}")]
    rows = compare(folder, network, seeds, label, given, data)["rows"]
    of = {each: [row["accuracy"] for row in rows if row["label"] == each] for each in (label, *BESIDE)}
    return {
        "method": method,
        "name": name,
        "settings": settings,
        "network": network,
        "seeds": seeds,
        "final": [each["final"] for each in of[label]],
        "pruned": [each["pruned"] for each in of[label]],
        "mean": statistics.mean(each["final"] for each in of[label]),
        **{each: statistics.mean(row["final"] for row in of[each]) for each in BESIDE},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".data/cifar10.npz"))
    parser.add_argument("--runs", type=Path, default=Path("runs/method_defaults"))
    parser.add_argument("--methods", default=",".join(SETTINGS), help="by commas")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="by commas")
    arguments = parser.parse_args()
    data = last_images(arguments.data, arguments.data.with_name("cifar10-last.npz"))
    kept = _record.RESULTS / "method_defaults.json"
    rows = _record.read(kept)["rows"] if kept.is_file() else []
    for network in arguments.networks.split(","):
        for method in arguments.methods.split(","):
            for name in SETTINGS[method]:
                row = measured(method, name, network, data, arguments.runs)
                print(row, flush=True)
                same = [row[key] for key in ("method", "name", "network")]
                rows = [*(old for old in rows if [old["method"], old["name"], old["network"]] != same), row]
                _record.save(kept, {**_record.environment(), "rows": rows})


if __name__ == "__main__":
    main()
