"""A YOLO of Ultralytics, pruned in the middle of its life: its own trainer, the cut, its own trainer again.

    python benchmarks/ultralytics_trainer.py                    # minutes on one core; made images, no download

The package is no requirement of secateur's: get it with `pip install ultralytics`. The detector is built from its yaml,
trained on a tiny data set made on the spot (squares and bars), pruned to half its multiply-accumulates, trained on,
saved and loaded by Ultralytics itself. docs/integrations.md shows the lines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import tempfile
from pathlib import Path
from typing import Any

import _record
import _shim
import numpy as np
import torch
from PIL import Image
from torch import nn

import secateur


def made(folder: Path, images: int, side: int, seed: int) -> Path:
    """A data set in Ultralytics' form: images of noise with a square (class 0) or an upright bar (class 1)."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", images), ("val", images // 2)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for number in range(count):
            kind = number % 2
            height, width = (side // 3, side // 3) if kind == 0 else (side // 2, side // 6)
            pixels = rng.integers(0, 60, (side, side, 3), dtype=np.uint8)
            y, x = int(rng.integers(0, side - height)), int(rng.integers(0, side - width))
            pixels[y : y + height, x : x + width] = 200 + 40 * kind
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            box = ((x + width / 2) / side, (y + height / 2) / side, width / side, height / side)
            line = " ".join([str(kind), *(f"{value:.6f}" for value in box)])
            (folder / "labels" / split / f"{number}.txt").write_text(line + "\n")
    described = folder / "data.yaml"
    described.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: square, 1: bar}}\n")
    return described


def trainer_of(narrow: nn.Module) -> type:
    """Ultralytics' trainer for a network that is there already, where its own would build one from a yaml."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Trainer(DetectionTrainer):  # type: ignore[misc,unused-ignore]
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            return narrow

    return Trainer


def measured(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Dense and narrow: cost, epochs, and mAP on the validation images by Ultralytics' own measure."""
    from ultralytics import YOLO

    data = made(folder / "data", arguments.images, arguments.size, arguments.seed)
    common = {
        "data": str(data), "imgsz": arguments.size, "batch": 8, "workers": 0, "device": "cpu", "seed": arguments.seed,
        "plots": False, "verbose": False, "project": str(folder), "optimizer": "AdamW", "lr0": 0.005,
        "warmup_epochs": 1, "mosaic": 0.0, "amp": False,
    }  # fmt: skip
    yolo = YOLO(f"{arguments.network}.yaml", verbose=False)
    yolo.train(epochs=arguments.epochs, name="dense", **common)
    dense = yolo.trainer.ema.ema.float().eval()
    image = torch.rand(1, 3, arguments.size, arguments.size)
    result = secateur.prune(dense, image, budget=arguments.budget, method=arguments.method, align=8)
    assert result.verification is not None
    again = YOLO(f"{arguments.network}.yaml", verbose=False)
    for parameter in result.model.parameters():
        parameter.requires_grad_(True)  # a moving average has none
    again.train(trainer=trainer_of(result.model), epochs=arguments.more, name="narrow", **common)
    kept = YOLO(folder / "narrow/weights/best.pt")
    widths = {name: tuple(value.shape) for name, value in result.model.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in kept.model.state_dict().items()} == widths
    rows = []
    for name, model, cost, epochs in (
        ("dense", YOLO(folder / "dense/weights/last.pt"), result.before, arguments.epochs),
        ("narrow", kept, result.after, arguments.more),
    ):
        found = model.val(**{key: common[key] for key in ("data", "imgsz", "workers", "device", "plots", "verbose")})
        rows.append(
            {
                "network": name,
                "epochs": epochs,
                "macs": cost.macs,
                "params": cost.params,
                "map50": round(float(found.box.map50), 4),
                "map50_95": round(float(found.box.map), 4),
            }
        )
    rows[-1] |= {"exact": result.verification.exact, "max_relative_error": result.verification.max_relative_error}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="yolo11n")
    parser.add_argument("--method", default="l1")
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--epochs", type=int, default=60, help="before the cut")
    parser.add_argument("--more", type=int, default=100, help="after it")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_record.RESULTS / "ultralytics.json")
    arguments = parser.parse_args()
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
    _shim.install()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(arguments, Path(folder))
    result = {"format": "secateur.ultralytics", **_record.environment(), "rows": rows}
    result["versions"]["ultralytics"] = importlib.metadata.version("ultralytics")
    result["options"] = {key: value for key, value in vars(arguments).items() if key != "out"}
    _record.save(arguments.out, result)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
