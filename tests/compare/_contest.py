"""A small comparison for the tests: a tiny network, three hundred digits, two epochs and three."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from secateur.compare import Outcome, compare
from secateur.recipe import Recipe

BASE = """
name: contest
model: zoo:tiny
data: {name: digits, train_images: 300, batch_size: 50}
method: l1
budget: flops=0.6
train: {epochs: 2, lr: 0.05, warmup: 1}
finetune: {epochs: 3, lr: 0.02, warmup: 2, momentum: 0.8}
export: {onnx: false, pt2: false}
latency: null
engine: {device: cpu, precision: fp32}
"""


def recipe(*overrides: str) -> Recipe:
    return Recipe.parse(BASE, overrides)


def contest(folder: Path, *methods: str, overrides: tuple[str, ...] = (), **options: Any) -> Outcome:
    return compare(recipe(*overrides), folder, methods=methods, **{"seeds": [0], "dense": False, **options})


def run_file(folder: Path, cell: str, name: str) -> Any:
    return json.loads((folder / "runs" / cell / name).read_text())


def outcome(folder: Path) -> dict[str, Any]:
    """What a comparison leaves that must not depend on when, how often and in how many processes it was at work."""
    found: dict[str, Any] = {}
    for run in sorted((folder / "runs").iterdir()):
        results = json.loads((run / "results.json").read_text())
        for key in ("date", "sessions", "seconds", "command", "files"):
            del results[key]
        hashes = {name: sha256((run / name).read_bytes()).hexdigest() for name in ("model.safetensors", "plan.json")}
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        epochs = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]
        found[run.name] = (results, hashes, epochs)
    for base in sorted((folder / "bases").glob("*/weights.safetensors")):
        found[f"base {base.parent.name}"] = sha256(base.read_bytes()).hexdigest()
    return found
