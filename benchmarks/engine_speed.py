"""The training engine beside a loop written by hand, and beside the engine of an earlier commit, in one run.

    git worktree add ../before 9fdf074
    python benchmarks/engine_speed.py --before ../before/src
    python benchmarks/engine_speed.py --before ../before/src --device cuda --steps 50

Every side is a process of its own that trains the same network on the same random images (crop, flip, normalise, SGD
with momentum, one epoch a turn). Sides take turns; a figure is the median over turns, a ratio the median of the ratios
of neighbouring turns. On a CPU the time is the process's own CPU time, which what else the machine does hardly moves;
on a GPU it is the clock's. Reduced precision is a side only where the machine computes in it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
#: Side -> (the room it runs in, what it computes in).
SIDES = {
    "before": ("before", "fp32"),
    "hand fp32": ("hand", "fp32"),
    "now fp32": ("now", "fp32"),
    "now compiled fp32": ("now", "fp32"),
    "hand bf16": ("hand", "bf16"),
    "now bf16": ("now", "bf16"),
}
AGAINST = {
    "now fp32": ("hand fp32", "before"),
    "now compiled fp32": ("before",),
    "now bf16": ("hand bf16", "before"),
}
BARS = {
    ("now fp32", "hand fp32"): 0.95,
    ("now fp32", "before"): 1.4,
    ("now bf16", "hand bf16"): 0.95,
    ("now bf16", "before"): 2.5,
}


# ---------------------------------------------------------------------------------------------- one side, in a process


def engine_epoch(a: argparse.Namespace, side: str) -> Callable[[], None]:
    """One epoch in whichever engine the path has."""
    from secateur.data import augment
    from secateur.data.images import MemoryImages
    from secateur.data.split import Split
    from secateur.models import create
    from secateur.recipe import EngineConfig, Training
    from secateur.training import Engine

    pixels, labels = _images(a)
    source = MemoryImages(pixels, labels)
    old: Any = getattr(augment, "augmentations", None)  # of the earlier commit
    chosen = [augment.AUGMENTATIONS[name] for name in ("crop", "flip")] if old is None else old(["crop", "flip"])
    split = Split(source, np.arange(len(labels)), MEAN, STD, chosen)
    options: dict[str, Any] = {"device": a.device}
    if SIDES[side][0] == "now":
        options |= {"precision": SIDES[side][1], "compile": "compiled" in side}
    data: Any = SimpleNamespace(classes=10, train=split, validation=None, test=split)
    engine = Engine(data, EngineConfig(**options), batch_size=a.batch)
    training = Training(epochs=1, lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="constant")
    torch.manual_seed(0)
    model = create(a.model)
    return lambda: engine.fit("train", model, training) and None


def hand_epoch(a: argparse.Namespace, side: str) -> Callable[[], None]:
    """The same epoch as one would write it: images on the device, augmented in batches."""
    from secateur.models import create
    from secateur.recipe import EngineConfig
    from secateur.training.devices import memory_format

    pixels, labels = (torch.from_numpy(part).to(a.device) for part in _images(a))
    bf16 = SIDES[side][1] == "bf16"
    layout = memory_format(EngineConfig(precision=SIDES[side][1]), torch.device(a.device))
    torch.manual_seed(0)
    model: nn.Module = create(a.model).to(a.device, memory_format=layout).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    mean, std = (torch.tensor(values, device=a.device)[:, None, None] for values in (MEAN, STD))

    def epoch() -> None:
        for index in torch.randperm(len(labels), device=a.device).split(a.batch):
            padded = F.pad(pixels[index], (4,) * 4)
            windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)
            places = torch.randint(0, 9, (2, len(index)), device=a.device)
            x = windows[torch.arange(len(index), device=a.device), :, places[0], places[1]]
            x = torch.where(torch.rand(len(index), 1, 1, 1, device=a.device) < 0.5, x.flip(-1), x)
            x = ((x.float() / 255 - mean) / std).to(memory_format=layout)
            optimiser.zero_grad()
            with torch.autocast(a.device, torch.bfloat16, enabled=bf16):
                output = model(x)
            F.cross_entropy(output.float(), labels[index]).backward()
            optimiser.step()

    return epoch


def _images(a: argparse.Namespace) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    count = a.batch * a.steps
    return rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, count)


def side_at_work(a: argparse.Namespace) -> None:
    """Answer every line on stdin with the seconds of one epoch."""
    torch.set_num_threads(a.threads)
    epoch = (hand_epoch if SIDES[a.side][0] == "hand" else engine_epoch)(a, a.side)
    now = time.process_time if a.device == "cpu" else time.perf_counter
    for _ in sys.stdin:
        began = now()
        epoch()
        if a.device == "cuda":
            torch.cuda.synchronize()
        print(json.dumps(now() - began), flush=True)


# ------------------------------------------------------------------------------------------------------- all, by turns


class Side:
    """A process that waits for its turn."""

    def __init__(self, name: str, a: argparse.Namespace) -> None:
        place = a.before if SIDES[name][0] == "before" else HERE.parent / "src"
        numbers = ("model", "device", "batch", "steps", "threads")
        command = [sys.executable, __file__, "--side", name, *(f"--{n}={getattr(a, n)}" for n in numbers)]
        self.name = name
        environment = os.environ | {"PYTHONPATH": str(Path(place).resolve()), "OMP_NUM_THREADS": str(a.threads)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self) -> float:
        """Seconds of one epoch."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"The side {self.name!r} ended: its message is above.")
        return float(json.loads(line))

    def end(self) -> None:
        """Let it go."""
        self.process.communicate()


def chosen(a: argparse.Namespace) -> list[str]:
    """The sides that this run can have."""
    from secateur.training.devices import computes_bf16

    reduced = computes_bf16(torch.device(a.device))
    return [
        name
        for name, (room, precision) in SIDES.items()
        if (room != "before" or a.before)
        and (precision != "bf16" or reduced)
        and ("compiled" not in name or a.compiled)
    ]


def measured(a: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every side, with its ratios to those it is held against."""
    sides = [Side(name, a) for name in chosen(a)]
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(a.repeats + 1):
        for side in sides:
            taken = side.turn()
            if turn:  # the first compiles, allocates and checks
                seconds[side.name].append(taken)
    for side in sides:
        side.end()
    rows: list[dict[str, Any]] = []
    for name, values in seconds.items():
        row: dict[str, Any] = {
            "side": name, "images_per_second": round(a.batch * a.steps / statistics.median(values), 1), "times": {}
        }  # fmt: skip
        for other in (other for other in AGAINST.get(name, ()) if other in seconds):
            ratios = [b / a for a, b in zip(values, seconds[other], strict=True)]
            row["times"][other] = {
                "ratio": round(statistics.median(ratios), 3),
                "ratio_low": round(min(ratios), 3),
                "ratio_high": round(max(ratios), 3),
                "bar": BARS.get((name, other)),
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="SRC", help="The `src` of an earlier commit's checkout; else left out.")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="Batches of one turn.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="Also with engine.compile.")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.side:
        return side_at_work(a)
    import _record

    torch.set_num_threads(a.threads)
    rows = measured(a)
    name = "engine_speed" if a.device == "cpu" else f"engine_speed_{a.device}"
    result = {**_record.environment(), **{n: getattr(a, n) for n in ("model", "batch", "steps", "repeats")}}
    result["command"] = re.sub(r"(--before[ =])\S+", r"\1../before/src", result["command"])  # wherever it lay
    if a.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    _record.save(_record.RESULTS / f"{name}.json", {**result, "rows": rows})
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
