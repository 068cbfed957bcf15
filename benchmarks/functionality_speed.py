"""Functionality: the time of an earlier commit and of now until images have climbed as high, side by side in one run.

    mkdir ../before && git archive 9fdf074 src | tar x -C ../before
    python benchmarks/functionality_speed.py --before ../before/src
    python benchmarks/functionality_speed.py --channels 2                   # now alone, and nothing is written

A MobileNetV2 of torchvision at 224 pixels (random weights, norms that know their images). In every group that may be
cut, images of a few channels climb by the method's own defaults now; the same channels' images climb by the earlier
code's steps of one length until the sum of the channels' objectives (the mean of a map) is as high, or until --most
steps, and then the time is a lower bound. Each side takes images as large as it says itself. CPU seconds are those of
the channels shown, times the group's width over their number; clusters are found among random rows of the group's
width. Each side is a process of its own, now first, for it says how high.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
BAR, PIECE = 10.0, 5


# ---------------------------------------------------------------------------------------------- one side, in a process


def network() -> nn.Module:
    """The MobileNetV2, its norms filled by a pass."""
    import _shim

    _shim.install()
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = torchvision.models.mobilenet_v2()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model.train()(photographs(16))
    return model.eval()


def photographs(count: int) -> torch.Tensor:
    """Noise at all scales, coarse and fine alike."""
    generator = torch.Generator().manual_seed(1)
    x = sum(
        nn.functional.interpolate(torch.randn(count, 3, side, side, generator=generator), (224, 224), mode="bilinear")
        for side in (3, 7, 14, 28, 56, 112, 224)
    )
    assert isinstance(x, torch.Tensor)
    return x / x.std()


class Climb:
    """Stands in for the method's `maximise`: of each group a few channels climb, by the clock.

    wanted: how high, in the order of groups; None: as the method itself does.
    """

    def __init__(self, maximise: Any, images: Any, wanted: list[float] | None, channels: int, most: int) -> None:
        self.maximise, self.images, self.wanted, self.channels, self.most = maximise, images, wanted, channels, most
        self.rows: list[dict[str, Any]] = []

    def __call__(self, model: nn.Module, view: Any, start: torch.Tensor, ascent: Any, **options: Any) -> torch.Tensor:
        """Note a group, and give every channel the image of one that climbed."""
        width = len(view.index)
        chosen = np.unique(np.linspace(0, width - 1, min(self.channels, width)).round().astype(np.int64))
        few = dataclasses.replace(view, index=view.index[chosen], inside=view.inside[chosen])
        if self.wanted is None:
            began = time.process_time()
            found, steps = self.maximise(model, few, start, ascent, **options), ascent.steps
            seconds = time.process_time() - began
        else:
            found, steps, seconds = self._until(self.wanted[len(self.rows)], model, few, start, ascent)
        self.rows.append(
            {
                "group": view.reader, "width": width, "channels": len(chosen), "side": start.shape[-1], "steps": steps,
                "seconds": seconds * width / len(chosen), "height": self._height(model, few, found),
            }
        )  # fmt: skip
        return found[torch.arange(width) % len(chosen)]

    def _until(
        self, wanted: float, model: nn.Module, few: Any, start: torch.Tensor, ascent: Any
    ) -> tuple[torch.Tensor, int, float]:
        """In pieces, which steps of one length do not notice."""
        piece, every = dataclasses.replace(ascent, steps=PIECE), np.arange(len(few.index))
        found, steps, seconds = start.expand(len(every), *start.shape), 0, 0.0
        while steps < self.most and self._height(model, few, found) < wanted:
            with torch.no_grad(), self.images.Maps(model, few).open() as maps:
                began = time.process_time()
                found = self.images.ascend(maps.of(every), found, piece)
                seconds, steps = seconds + time.process_time() - began, steps + PIECE
        return found, steps, seconds

    def _height(self, model: nn.Module, few: Any, found: torch.Tensor) -> float:
        with torch.no_grad(), self.images.Maps(model, few).open() as maps:
            return float(maps.of(np.arange(len(few.index)))(found).sum())


def side_at_work(a: argparse.Namespace) -> None:
    """All groups of one side: a line of JSON."""
    from secateur.methods import method

    torch.set_num_threads(a.threads)
    factory: Any = method("functionality").factory
    home = sys.modules[factory.__module__]
    wanted = json.loads(a.wanted)
    model, batch = network(), photographs(16)
    pruner = factory(model, batch[:1], budget="flops=0.5")
    climb = Climb(home.maximise, sys.modules[home.View.__module__], wanted, a.channels, a.most)
    clusters = pruner._clusters
    home.maximise, pruner._clusters = climb, lambda rows: np.zeros(len(rows), dtype=np.int64)
    pruner.collect([(batch, torch.arange(len(batch)))], nn.functional.cross_entropy)
    taken = {}
    for width in sorted({row["width"] for row in climb.rows}) if a.clusters else ():
        rows = np.random.default_rng(0).standard_normal((width, width))
        began = time.process_time()
        clusters(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        taken[width] = time.process_time() - began
    print(json.dumps([{**row, "clusters": taken.get(row["width"], 0.0)} for row in climb.rows]))


# -------------------------------------------------------------------------------------------------------- both sides


def side(a: argparse.Namespace, source: Path, wanted: list[float] | None) -> list[dict[str, Any]]:
    """All groups by the code of one side."""
    numbers = (f"--{name}={getattr(a, name)}" for name in ("channels", "most", "clusters", "threads"))
    command = [sys.executable, __file__, "--wanted", json.dumps(wanted), *numbers]
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": str(a.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"The side at {source.name!r} ended: its message is above.")
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def row(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """One group."""
    found = {key: now[key] for key in ("group", "width", "channels")}
    for name, one in (("before", before), ("now", now)):
        found[name] = {
            "side": one["side"],
            "steps": one["steps"],
            "height": round(one["height"], 3),
            "cpu_s": round(one["seconds"], 1),
            "clusters_s": round(one["clusters"], 1),
        }
    found["as_high"] = before["height"] >= now["height"]
    found["times_faster"] = round(before["seconds"] / now["seconds"], 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="SRC", help="The `src` of an earlier commit.")
    parser.add_argument("--channels", type=int, default=8, help="Channels of a group whose images climb.")
    parser.add_argument("--most", type=int, default=200, help="Steps of the earlier code at most.")
    parser.add_argument("--clusters", type=int, default=1, help="0: without the time of clustering.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wanted", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.wanted:
        return side_at_work(a)
    torch.set_num_threads(a.threads)
    now = side(a, HERE.parent / "src", None)
    for one in now:
        print(one, flush=True)
    if not a.before:
        return None
    before = side(a, Path(a.before), [one["height"] for one in now])
    rows = [row(*both) for both in zip(now, before, strict=True)]
    climbs, clusters = ([sum(one[key] for one in s) for s in (before, now)] for key in ("seconds", "clusters"))
    total = {
        "climb_s": [round(each) for each in climbs],
        "clusters_s": [round(each) for each in clusters],
        "climb_times_faster": round(climbs[0] / climbs[1], 1),
        "times_faster": round((climbs[0] + clusters[0]) / (climbs[1] + clusters[1]), 1),
    }
    save(a, rows, total)
    for each in (*rows, total):
        print(each)


def save(a: argparse.Namespace, rows: list[dict[str, Any]], total: dict[str, Any]) -> None:
    """Write the figures."""
    import _record

    result = {**_record.environment(), "most": a.most, "bar": BAR, **total, "rows": rows}
    result["command"] = re.sub(r"(--before[ =])\S+", r"\1../before/src", result["command"])  # wherever it lay
    _record.save(_record.RESULTS / "functionality_speed.json", result)


if __name__ == "__main__":
    main()
