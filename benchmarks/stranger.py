"""A stranger's path, timed: from a clone to a network twice as fast on ONNX Runtime, from own weights and images.

    python benchmarks/stranger.py                       # needs .data/cifar10.npz, a part of which becomes the folder
    python benchmarks/stranger.py --time 5m --images 2000

What the stranger has is made first and is not timed: `net.py`, the weights that a loop of their own left in `mine.pth`,
and a folder of images. Timed are the three commands of the README: clone, install, compress. Then both networks see
test images that neither the loop nor Secateur was given.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _record
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
NET = """\
from torch import nn


def block(inputs, outputs, stride):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(block(3, 48, 1), block(48, 96, 2), block(96, 192, 2))
        self.head = nn.Linear(192, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def build():
    return Net()
"""
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def folder(data: Path, place: Path, count: int) -> None:
    """Images of CIFAR-10 as files, one folder a class."""
    from PIL import Image

    with np.load(data) as arrays:
        images, labels = arrays["x_train"][:count], arrays["y_train"][:count]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = place / CLASSES[int(label)] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def own_loop(place: Path, data: Path, count: int, epochs: int) -> None:
    """The training that the stranger did: a state dict in mine.pth."""
    torch.manual_seed(0)
    model = _built(place)
    with np.load(data) as arrays:
        x, y = _tensor(arrays["x_train"][:count]), torch.from_numpy(arrays["y_train"][:count].astype(np.int64))
    steps = epochs * -(-count // 64)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(count).split(64):
            images = x[part].flip(3) if torch.rand(()) < 0.5 else x[part]
            optimiser.zero_grad()
            F.cross_entropy(model(images), y[part]).backward()
            optimiser.step()
            schedule.step()
    torch.save({"model": model.state_dict(), "epoch": epochs}, place / "mine.pth")


def _built(place: Path) -> nn.Module:
    sys.path.insert(0, str(place))
    import net

    model: nn.Module = net.build()
    return model


def _tensor(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def accuracy(model: nn.Module, data: Path) -> float:
    """Of the 10,000 test images."""
    with np.load(data) as arrays:
        x, y = arrays["x_test"], torch.from_numpy(arrays["y_test"].astype(np.int64))
    right = 0
    with torch.no_grad():
        for start in range(0, len(x), 500):
            right += int((model(_tensor(x[start : start + 500])).argmax(1) == y[start : start + 500]).sum())
    return right / len(x)


def timed(command: str, place: Path) -> dict[str, Any]:
    """One command of the stranger's, as a shell runs it."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    began = time.monotonic()
    subprocess.run(command, shell=True, cwd=place, env=clean, check=True)
    return {"command": command, "seconds": round(time.monotonic() - began, 1)}


def path(place: Path, limit: str) -> list[dict[str, Any]]:
    """The three commands, with the times they took."""
    (place / "env").mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(place / "env")], check=True)
    return [
        timed(f"git clone --quiet {ROOT} secateur", place),
        timed('env/bin/pip install --quiet -e "secateur[compress,train,export,data]"', place),
        timed(
            "env/bin/secateur compress net.py:build --input-size 3x32x32 --weights mine.pth --data photos "
            f"--mean 0.5 --std 0.5 --speedup 2 --runtime onnxruntime --time {limit} --out small",
            place,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".data/cifar10.npz"))
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=10, help="of the stranger's own training")
    parser.add_argument("--time", default="10m", help="given to compress")
    parser.add_argument("--out", type=Path, default=_record.RESULTS / "stranger.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = arguments.data.resolve()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "net.py").write_text(NET, encoding="utf-8")
        folder(data, place / "photos", arguments.images)
        own_loop(place, data, arguments.images, arguments.epochs)
        dense = _built(place)
        dense.load_state_dict(torch.load(place / "mine.pth", weights_only=True)["model"])
        commands = path(place, arguments.time)
        for row in commands:
            row["command"] = re.sub(re.escape(str(ROOT)), "ADDRESS", row["command"])
        import secateur

        small = secateur.load(place / "small", model=_built(place))
        told = json.loads((place / "small" / "compress.json").read_text(encoding="utf-8"))
        found = {"before": accuracy(dense.eval(), data), "after": accuracy(small.eval(), data)}
    print(commands, found, told.keys())
    head = {"images": arguments.images, "tested": 10_000, "accuracy": found, "compress": told}
    _record.save(arguments.out, {**_record.environment(), **head, "rows": commands})


if __name__ == "__main__":
    main()
