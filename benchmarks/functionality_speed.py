"""Functionality: the time of an earlier commit and of now until images have climbed as high, side by side in one run.

    mkdir ../before && git archive 9fdf074 src | tar x -C ../before
    python benchmarks/functionality_speed.py --before ../before/src \
        --weights mobilenet_v2-b0353104.pth --photographs FOLDER
    python benchmarks/functionality_speed.py --weights ... --photographs ... --channels 2     # now alone, not written

torchvision's MobileNetV2 with its ImageNet weights at 224 pixels; 16 photographs say what pixels may be. In every group
that may be cut, images of a few channels climb: by the earlier code in its default of 40 steps of one length, by the
code of now in several numbers of steps. A group's *height* is the sum over the channels of the objective, the mean of a
map, each side on images as large as it takes itself. CPU seconds are those of the channels shown, times the group's
width over their number; those of clusters are for random rows of the group's width. Each side is a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
BAR = 10.0
#: Of both sides, what the earlier one has as its default.
BEFORE = 40


# ---------------------------------------------------------------------------------------------- one side, in a process


def network(a: argparse.Namespace) -> tuple[nn.Module, torch.Tensor]:
    """The MobileNetV2, and photographs."""
    import _shim

    _shim.install()
    import torchvision
    from PIL import Image
    from torchvision.transforms import v2

    model: nn.Module = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(a.weights, weights_only=True))
    look = v2.Compose([v2.ToImage(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True),
                       v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])  # fmt: skip
    files = sorted(p for p in Path(a.photographs).rglob("*") if p.suffix in (".jpg", ".png"))[:16]
    return model.eval(), torch.stack([look(Image.open(file).convert("RGB")) for file in files])


class Climb:
    """Stands in for the method's `maximise`: of each group a few channels climb, by the clock."""

    def __init__(self, maximise: Any, maps: Any, channels: int, numbers: list[int]) -> None:
        self.maximise, self.maps, self.channels, self.numbers = maximise, maps, channels, numbers
        self.rows: list[dict[str, Any]] = []

    def __call__(self, model: nn.Module, view: Any, start: torch.Tensor, ascent: Any, **options: Any) -> torch.Tensor:
        """Note a group, and give every channel the image of one that climbed."""
        width = len(view.index)
        chosen = np.unique(np.linspace(0, width - 1, min(self.channels, width)).round().astype(np.int64))
        few = dataclasses.replace(view, index=view.index[chosen], inside=view.inside[chosen])
        row = {"group": view.reader, "width": width, "channels": len(chosen), "side": start.shape[-1], "climbs": []}
        for steps in self.numbers:
            began = time.process_time()
            found = self.maximise(model, few, start, dataclasses.replace(ascent, steps=steps), **options)
            seconds = (time.process_time() - began) * width / len(chosen)
            with torch.no_grad(), self.maps(model, few).open() as maps:
                height = float(maps.of(np.arange(len(chosen)))(found).sum())
            row["climbs"].append({"steps": steps, "height": round(height, 3), "cpu_s": round(seconds, 2)})
        self.rows.append(row)
        return found[torch.arange(width) % len(chosen)]


def side_at_work(a: argparse.Namespace) -> None:
    """All groups of one side: a line of JSON."""
    from secateur.methods import method

    torch.set_num_threads(a.threads)
    factory: Any = method("functionality").factory
    home = sys.modules[factory.__module__]
    model, photographs = network(a)
    pruner = factory(model, photographs[:1], budget="flops=0.5")
    climb = Climb(home.maximise, sys.modules[home.View.__module__].Maps, a.channels, json.loads(a.numbers))
    clusters = pruner._clusters
    home.maximise, pruner._clusters = climb, lambda rows: np.zeros(len(rows), dtype=np.int64)
    pruner.collect([(photographs, torch.arange(len(photographs)))], nn.functional.cross_entropy)
    taken = {}
    for width in sorted({row["width"] for row in climb.rows}) if a.clusters else ():
        rows = np.random.default_rng(0).standard_normal((width, width))
        began = time.process_time()
        clusters(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        taken[width] = time.process_time() - began
    print(json.dumps([{**row, "clusters_s": round(taken.get(row["width"], 0.0), 2)} for row in climb.rows]))


# -------------------------------------------------------------------------------------------------------- both sides


def side(a: argparse.Namespace, source: Path, numbers: list[int]) -> list[dict[str, Any]]:
    """All groups by the code of one side."""
    options = (f"--{name}={getattr(a, name)}" for name in ("weights", "photographs", "channels", "clusters", "threads"))
    command = [sys.executable, __file__, "--numbers", json.dumps(numbers), *options]
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": str(a.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"The side at {source.name!r} ended: its message is above.")
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def total(number: int, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole network with one number of steps now, beside the earlier code."""
    climbs = [(b["climbs"][0], n["climbs"][number]) for b, n in zip(before, now, strict=True)]
    seconds = [sum(pair[k]["cpu_s"] for pair in climbs) for k in (0, 1)]
    clusters = [sum(row["clusters_s"] for row in rows) for rows in (before, now)]
    return {
        "steps": climbs[0][1]["steps"],
        "as_high": sum(n["height"] >= b["height"] for b, n in climbs),
        "groups": len(climbs),
        "height": round(statistics.median(n["height"] / b["height"] for b, n in climbs), 3),
        "climb_s": [round(each, 1) for each in seconds],
        "clusters_s": [round(each, 1) for each in clusters],
        "climb_times_faster": round(seconds[0] / seconds[1], 2),
        "times_faster": round((seconds[0] + clusters[0]) / (seconds[1] + clusters[1]), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="SRC", help="The `src` of an earlier commit.")
    parser.add_argument("--weights", required=True, help="torchvision's file of MobileNetV2.")
    parser.add_argument("--photographs", required=True, metavar="FOLDER")
    parser.add_argument("--channels", type=int, default=8, help="Channels of a group whose images climb.")
    parser.add_argument("--steps", default="10,15,20,40", help="Numbers of steps now.")
    parser.add_argument("--clusters", type=int, default=1, help="0: without the time of clustering.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.numbers:
        return side_at_work(a)
    torch.set_num_threads(a.threads)
    now = side(a, HERE.parent / "src", [int(number) for number in a.steps.split(",")])
    for row in now:
        print(row, flush=True)
    if not a.before:
        return None
    before = side(a, Path(a.before), [BEFORE])
    for row in before:
        print(row, flush=True)
    totals = [total(number, before, now) for number in range(len(now[0]["climbs"]))]
    save(a, totals, [{**n, "before": b} for b, n in zip(before, now, strict=True)])
    for each in totals:
        print(each)


def save(a: argparse.Namespace, totals: list[dict[str, Any]], groups: list[dict[str, Any]]) -> None:
    """Write the figures."""
    import _record

    result = {**_record.environment(), "channels": a.channels, "before_steps": BEFORE, "bar": BAR}
    for name, instead in (("before", "../before/src"), ("weights", Path(a.weights).name), ("photographs", "FOLDER")):
        result["command"] = re.sub(rf"(--{name}[ =])\S+", rf"\g<1>{instead}", result["command"])  # wherever it lay
    _record.save(_record.RESULTS / "functionality_speed.json", {**result, "rows": totals, "groups": groups})


if __name__ == "__main__":
    main()
