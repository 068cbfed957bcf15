"""A run's folder as `secateur run` leaves it, invented but consistent: a ResNet-20-like network on CIFAR-10, 21 groups.

`documents()` gives the files' contents for a test to change, `write` puts them into a folder. Run as a script with a
folder's path, it writes one to look at.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

RECIPE = """\
name: cifar10-resnet20-bwcp
seed: 0
model: zoo:resnet20
data: {name: cifar10, path: data/cifar10, validation: 0.1, batch_size: 128}
method: {name: bwcp, delta: 0.05, tau: 0.5}
budget: flops=0.5
train: {epochs: 12, lr: 0.1, schedule: cosine}
finetune: {epochs: 4, lr: 0.01, schedule: cosine}
"""


def documents() -> dict[str, Any]:
    """The contents of every file: results, metrics (a list of lines), latency, verification and recipe."""
    layers = _layers()
    macs = [sum(row[key] for row in layers) for key in ("macs_before", "macs_after")]
    results = {
        **_origin(),
        **_method(),
        "before": {"macs": macs[0], "params": 272474, "activations": 1_540_618, "peak_activations": 49152},
        "after": {"macs": macs[1], "params": 141902, "activations": 1_020_330, "peak_activations": 32768},
        "remaining": {
            "macs": macs[1] / macs[0],
            "params": 141902 / 272474,
            "activations": 1_020_330 / 1_540_618,
            "peak_activations": 32768 / 49152,
        },
        "accuracy": {
            "dense": 0.9124,
            "soft": 0.9052,
            "hard": 0.9041,
            "pruned": 0.9041,
            "finetuned": 0.9073,
            "final": 0.9073,
            "split": "test",
            "images": 10000,
        },
        "groups": _groups(),
        "frozen": [
            {
                "name": "fc (outputs)",
                "width": 10,
                "reason": "an output of the model: its size is the number of classes",
            },
            {"name": "input", "width": 3, "reason": "an input of the model"},
        ],
        "settled": ["layer2.0.pad: a literal 16 in forward() ties the shortcut to the stage's width"],
        "repairs": [{"module": "layer2.0", "attribute": "planes", "old": 32, "new": 21}],
        "verification": _proof(),
        "seconds": {
            "pretrain": None,
            "train": 1284.2,
            "prune": 3.41,
            "finetune": 312.8,
            "export": 6.02,
            "latency": 9.75,
            "total": 1616.18,
        },
        "epochs": {"pretrain": 0, "train": 12, "finetune": 4},
        "files": {
            name: {"bytes": size, "sha256": hashlib.sha256(name.encode()).hexdigest()}
            for name, size in (
                ("model.safetensors", 582_448),
                ("model.onnx", 590_112),
                ("model.pt2", 655_360),
                ("plan.json", 9_120),
            )
        },
        "dense_bytes": 1_104_232,
        "layers": layers,
    }
    verification = {
        **_proof(),
        "files": {name: row["sha256"] for name, row in results["files"].items()},
        "onnx": {"max_relative_error": 4.1e-07, "tolerance": 1e-05, "dynamic_batch": True},
        "pt2": {"max_relative_error": 0.0, "tolerance": 1e-05},
    }
    return {
        "results": results,
        "metrics": _metrics(macs[1] / macs[0]),
        "latency": _latency(layers),
        "verification": verification,
        "recipe": RECIPE,
    }


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Write the files of `documents()`; one whose content is None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results", "latency", "verification"):
        if content[name] is not None:
            (folder / f"{name}.json").write_text(json.dumps(content[name]), encoding="utf-8")
    if content["metrics"] is not None:
        text = "".join(json.dumps(line) + "\n" for line in content["metrics"])
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    if content["recipe"] is not None:
        (folder / "recipe.yaml").write_text(content["recipe"], encoding="utf-8")
    return folder


def bare() -> dict[str, Any]:
    """The least a finished run can say: every optional value null, every optional file missing."""
    full = documents()["results"]
    null = {key: None for key in full if key not in ("format", "version")}
    return {
        "results": {"format": "secateur.run", "version": 1, **null, "before": {}, "after": {}, "accuracy": {}},
        "metrics": None,
        "latency": None,
        "verification": None,
        "recipe": None,
    }


def hostile(groups: int = 400) -> dict[str, Any]:
    """Names that try to be markup, very long names, many groups, marks that turn text around, half surrogates."""
    content = copy.deepcopy(documents())
    script = "<script>alert('x')</script>"
    results = content["results"]
    results["recipe_name"] = script + "\u202egnp.exe"
    results["model"] = "my.module:" + "A" * 300
    results["data"]["name"] = '"><img src=x onerror=alert(1)>'
    results["data"]["nested"] = {"a": [1, None, {"b": "</style>" + script}]}
    results["command"] = "secateur run x.yaml --set name=" + "z" * 400 + " \x00\x1b[31m & <b>"
    results["method"]["name"] = "&amp;<i>bwcp"
    results["method"]["arxiv"] = "javascript:alert(1)"
    results["method"]["notes"] = [script, "half a pair: \ud800", "x" * 5000]
    results["method"]["settings"] = {script: script, "long" * 40: list(range(900))}
    results["groups"] = [
        {
            "name": f"blocks.{k}.{'very_long_' * (k % 7)}{script if k % 50 == 0 else 'conv'}",
            "width": 8 + k,
            "kept": 1 + k,
        }
        for k in range(groups)
    ]
    results["frozen"] = [{"name": script, "width": 2, "reason": "r" * 600}] + [
        {"name": f"n{k}", "width": 3, "reason": script} for k in range(40)
    ]
    content["recipe"] = "name: </pre></code>" + script + "\nlong: " + "y" * 900 + "\n"
    for row in content["metrics"]:
        row["method"] = {**row["method"], script: 1e308, "w" * 120: -1e308 if row["epoch"] % 2 else 1e308, "flat": 0.0}
        row["stage"] = row["stage"] + "<b>" + "s" * 90
    for layer in content["latency"]["layers"][:6]:
        layer["name"] = script + "n" * 200
    content["latency"]["runtimes"][0]["runtime"] = script
    return content


_WIDTHS = {1: 16, 2: 32, 3: 64}
_KEPT = [14, 9, 14, 11, 14, 8, 14, 27, 26, 19, 26, 22, 26, 26, 52, 38, 40, 33, 40, 24, 40]


def _groups() -> list[dict[str, Any]]:
    names = ["conv1"]
    for stage in (1, 2, 3):
        names += [f"layer{stage}.{block}.conv{k}" for block in range(3) for k in (1, 2)]
    names.insert(9, "layer2.0.shortcut")
    names.insert(16, "layer3.0.shortcut")
    widths = [_WIDTHS[int(name[5])] if name.startswith("layer") else 16 for name in names]
    return [
        {"name": name, "width": width, "kept": min(kept, width)}
        for name, width, kept in zip(names, widths, _KEPT, strict=True)
    ]


def _layers() -> list[dict[str, Any]]:
    """Convolutions with MACs that follow from the groups' widths, and the classifier."""
    rows = []
    into = (3, 3)
    for group in _groups():
        name, out = group["name"], (group["width"], group["kept"])
        side = {"1": 32, "2": 16, "3": 8}[name[5]] if name.startswith("layer") else 32
        kernel = 1 if name.endswith("shortcut") else 3
        macs = [kernel * kernel * side * side * a * b for a, b in zip(into, out, strict=True)]
        rows.append(_layer(name, f"conv2d {kernel}x{kernel}", macs, into, out))
        into = out
    return [*rows, _layer("fc", "linear", [into[0] * 10, into[1] * 10], into, (10, 10))]


def _layer(name: str, kind: str, macs: list[int], into: tuple[int, int], out: tuple[int, int]) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "macs_before": macs[0],
        "macs_after": macs[1],
        "in_before": into[0],
        "in_after": into[1],
        "out_before": out[0],
        "out_after": out[1],
    }


def _metrics(remaining: float) -> list[dict[str, Any]]:
    lines = []
    for k in range(16):
        stage, epoch = ("train", k + 1) if k < 12 else ("finetune", k - 11)
        done = min(1.0, k / 11)
        loss = 0.28 + 1.7 * math.exp(-k / 3.5) + 0.06 * math.sin(2.3 * k) * math.exp(-k / 9)
        rate = 0.1 if stage == "train" else 0.01
        part = epoch / (12 if stage == "train" else 4)
        method = {
            "flops": 1 - (1 - remaining) * done**1.5,
            "channels": round(784 - 322 * done),
            "strength": 4e-5 * (1 + 6 * done - 3 * done**2),
            "soft_accuracy": 0.9 - 0.5 * math.exp(-k / 3),
            "hard_accuracy": 0.9 - 0.8 * math.exp(-k / 4),
        }
        lines.append(
            {
                "stage": stage,
                "epoch": epoch,
                "step": 352 * (k + 1),
                "seconds": 107.0 * (k + 1),
                "train_loss": loss,
                "train_accuracy": 0.915 - 0.55 * math.exp(-k / 3.6),
                "validation_loss": loss + 0.09 + 0.002 * k,
                "validation_accuracy": 0.893 - 0.56 * math.exp(-k / 3.4),
                "learning_rate": rate * (1 + math.cos(math.pi * part)) / 2,
                "images_per_second": 420.0 + 3 * (k % 4),
                "method": method if stage == "train" else {},
            }
        )
    return lines


def _latency(layers: list[dict[str, Any]]) -> dict[str, Any]:
    times = []
    for row in layers:
        dense = 0.012 + row["macs_before"] / 9.5e6
        pruned = 0.012 + row["macs_after"] / (9.0e6 if row["out_after"] % 8 == 0 else 6.1e6)
        times.append(
            {"name": row["name"], "kind": row["kind"], "dense_ms": round(dense, 4), "pruned_ms": round(pruned, 4)}
        )
    for row in layers[:-1]:
        scale = row["out_after"] / row["out_before"]
        name = f"{row['name']}_bn"
        times.append(
            {"name": name, "kind": "batchnorm2d", "dense_ms": 0.03, "pruned_ms": round(0.008 + 0.022 * scale, 4)}
        )
    dense, pruned = (sum(row[key] for row in times) for key in ("dense_ms", "pruned_ms"))

    def spread(median: float) -> dict[str, float]:
        return {"median_ms": round(median, 3), "p10_ms": round(0.97 * median, 3), "p90_ms": round(1.06 * median, 3)}

    return {
        "format": "secateur.latency",
        "version": 1,
        "batch_size": 1,
        "threads": 1,
        "repeats": 30,
        "date": "2026-11-21T09:30:00Z",
        "device": "cpu: AMD EPYC (AVX2)",
        "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
        "runtimes": [
            {
                "runtime": "pytorch",
                "dense": spread(dense * 1.2),
                "pruned": spread(pruned * 1.3),
                "ratio": {"median": 1.04, "low": 0.97, "high": 1.10},
                "speedup": False,
                "said": "no speed-up: 1.04x (0.97 to 1.10)",
            },
            {
                "runtime": "onnxruntime",
                "dense": spread(2.91),
                "pruned": spread(2.08),
                "ratio": {"median": 1.4, "low": 1.35, "high": 1.45},
                "speedup": True,
                "said": "1.40x faster (1.35 to 1.45)",
            },
        ],
        "layers": times,
    }


def _proof() -> dict[str, Any]:
    return {
        "exact": True,
        "max_relative_error": 3.2e-07,
        "structural_error": None,
        "tolerance": 1e-05,
        "reasons": [],
        "outputs": 10,
    }


def _origin() -> dict[str, Any]:
    return {
        "format": "secateur.run",
        "version": 1,
        "secateur": "0.2.0",
        "torch": "2.13.0",
        "python": "3.11.2",
        "date": "2026-11-21T09:02:11Z",
        "command": "secateur run recipes/cifar10-resnet20-bwcp.yaml --set budget=flops=0.5 --out runs/a",
        "device": "cpu",
        "threads": 2,
        "seed": 0,
        "processes": 1,
        "recipe_name": "cifar10-resnet20-bwcp",
        "model": "zoo:resnet20",
        "class": "ResNet",
        "inputs": [[1, 3, 32, 32]],
        "budget": "flops=0.5",
        "data": {
            "name": "cifar10",
            "sizes": {"train": 45000, "validation": 5000, "test": 10000},
            "split": "validation is 10% of the training images, drawn with seed 0",
            "augmentation": ["crop", "flip"],
            "normalisation": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]},
            "hash": "sha256:" + "9f" * 32,
        },
    }


def _method() -> dict[str, Any]:
    return {
        "method": {
            "name": "bwcp",
            "summary": "channels switched off by the probability that a whitened activation is positive",
            "paper": "BWCP: Probabilistic Learning-to-Prune Channels for ConvNets via Batch Whitening",
            "year": 2021,
            "arxiv": "2105.06423",
            "fidelity": "As the paper, but for a controller of the penalty's strength, which the paper sets by hand.",
            "settings": {
                "delta": 0.05,
                "tau": 0.5,
                "newton_steps": 3,
                "group_size": 16,
                "lambda1": None,
                "sharpen": True,
            },
            "notes": ["The strength settled at 1.2e-04 in epoch 9.", "Two groups reached their least width of 8."],
        }
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]), {"bare": bare, "hostile": hostile}.get("".join(sys.argv[2:3]), documents)())
