"""Small recipes for the tests of runs: a tiny network, three hundred digits, one or two epochs."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from secateur.recipe import Recipe

BASE = """
name: small
model: zoo:tiny
data: {name: digits, train_images: 300, batch_size: 50}
method: l1
budget: flops=0.6
train: {epochs: 2, lr: 0.05}
finetune: {epochs: 1, lr: 0.02}
export: {onnx: false, pt2: false}
latency: null
engine: {device: cpu, precision: fp32}
"""
GATED = ("method=bwcp", "pretrain.epochs=1", "finetune.distill.weight=0.5")

#: Recipes that are killed again and again: overrides, and after how many durable writes each process dies.
CHAINS: dict[str, tuple[tuple[str, ...], list[int]]] = {
    "plain": (("train.epochs=1",), [1, 4, 13, 9, 16, 14, 20, 11, 18, 15]),
    "gated": ((*GATED, "export.pt2=true", "train.epochs=1"), [17, 8, 14, 21, 12, 19]),
}


def recipe(*overrides: str) -> Recipe:
    return Recipe.parse(BASE, overrides)


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves that must not depend on when and how often it was interrupted."""
    found: dict[str, Any] = {}
    for name in ("recipe.yaml", "plan.json", "model.safetensors"):
        found[name] = sha256((folder / name).read_bytes()).hexdigest()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]
    results = json.loads((folder / "results.json").read_text())
    for key in ("date", "sessions", "seconds", "command", "files"):
        del results[key]
    found["results"] = results
    found["names"] = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    return found
