"""Methods that reconstruct: the time of an earlier commit and of now, by turns, and what they pay for in passes.

    mkdir ../before && git archive 9fdf074 src | tar x -C ../before
    python benchmarks/reconstruct_speed.py --before ../before/src
    python benchmarks/reconstruct_speed.py --methods cap --images 256       # now alone, and nothing is written

A ResNet-18 (torchvision's with a 3x3 stem, random weights, norms that know their images) loses half of its MACs, from
images to the cut and verified network. Every side is a process of its own and begins anew at each turn; times are its
own CPU seconds. *Passes* are the MACs that convolutions and linear layers ran, over those of one forward pass of the
whole network over all images; the time in passes is without solves: factorisations, the LASSO, and forward selection.
*Error* is how far outputs are from the whole network's on images that nobody has seen, |y' - y|² over |y - mean y|².
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent
BAR, PASSES = 4.0, 6.0
METHODS = ("least_squares", "cp", "cap")
#: Where time is spent on solves and nothing else: (module, attribute); those that a commit lacks are left out.
SOLVES = [
    ("torch.linalg", "cholesky_ex"), ("torch.linalg", "cholesky"), ("torch.linalg", "pinv"), ("torch.linalg", "qr"),
    ("torch.linalg", "solve_triangular"), ("torch.linalg", "eigh"), ("torch", "cholesky_solve"),
    ("sklearn.linear_model", "lars_path_gram"),
    *(
        (f"secateur.methods.{room}", f"{kind}.{name}")
        for room, kind in (("forward_selection", "Selection"), ("cap.forward_selection", "ForwardSelection"))
        for name in ("__init__", "choose", "gains", "corrected", "outputs")
    ),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- one side, in a process


def network() -> nn.Module:
    """The ResNet-18, its norms filled by a pass."""
    import _shim

    _shim.install()
    import torchvision

    torch.manual_seed(0)
    model: Any = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model.train()(photographs(128, 1)[0][0])
    assert isinstance(model, nn.Module)
    return model.eval()


def photographs(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Noise at all scales, coarse and fine alike, in batches."""
    generator = torch.Generator().manual_seed(seed)
    x = sum(
        nn.functional.interpolate(torch.randn(count, 3, side, side, generator=generator), (32, 32), mode="bilinear")
        for side in (2, 4, 8, 16, 32)
    )
    assert isinstance(x, torch.Tensor)
    y = torch.arange(count) % 10
    return list(zip((x / x.std()).split(128), y.split(128), strict=True))


class Meter:
    """CPU seconds inside solves, and MACs of layers, while it is open."""

    def __init__(self) -> None:
        self.seconds, self.macs, self._deep = 0.0, 0.0, 0

    def _timed(self, function: Any) -> Any:
        @functools.wraps(function)
        def wrapped(*args: Any, **keywords: Any) -> Any:
            began, self._deep = time.process_time(), self._deep + 1
            try:
                return function(*args, **keywords)
            finally:
                self._deep -= 1
                self.seconds += 0.0 if self._deep else time.process_time() - began

        return wrapped

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count MACs of all networks."""

        def note(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                self.macs += output.numel() * math.prod(module.weight.shape[1:])

        handle = nn.modules.module.register_module_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def open(self) -> None:
        """Put stopwatches around the solves, for good."""
        for room, attribute in SOLVES:
            try:
                place = __import__(room, fromlist=["_"])
            except ModuleNotFoundError:
                continue
            *path, name = attribute.split(".")
            for step in path:
                place = getattr(place, step)
            setattr(place, name, self._timed(getattr(place, name)))


def pruned(name: str, model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], budget: str) -> Any:
    """A result of either commit."""
    import secateur
    from secateur.methods import method

    if name == "least_squares":
        return secateur.prune(model, batches[0][0][:1], budget=budget, data=batches, repair=[name])
    pruner = method(name).factory(model, batches[0][0][:1], budget=budget)
    pruner.collect(batches, nn.functional.cross_entropy)
    pruner.finish()
    return pruner.result


def side_at_work(a: argparse.Namespace) -> None:
    """One method, once: a line of JSON."""
    torch.set_num_threads(a.threads)
    model, batches = network(), photographs(a.images, 2)
    meter = Meter()
    with torch.no_grad(), meter.counting():
        model(batches[0][0])
        began = time.process_time()
        for x, _ in batches:
            model(x)
        forward = time.process_time() - began
    one = meter.macs * len(batches) / (len(batches) + 1) * a.images / sum(len(x) for x, _ in batches)
    meter.open()
    meter.macs = 0.0
    with meter.counting():
        began = time.process_time()
        result = pruned(a.side, model, batches, a.budget)
        taken = time.process_time() - began
    kept = {name: [int(i) for i, stays in enumerate(mask) if stays] for name, mask in result.plan.masks.items()}
    with torch.no_grad():
        unseen = torch.cat([x for x, _ in photographs(256, 3)])
        was, now = model(unseen).double(), result.model.eval()(unseen).double()
    error = float((now - was).square().sum() / (was - was.mean(0)).square().sum())
    print(
        json.dumps(
            {
                "seconds": taken, "solves": meter.seconds, "forward": forward, "macs": meter.macs / one,
                "error": error, "kept": kept,
            }
        )
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- all, by turns


def turn(a: argparse.Namespace, name: str, source: Path) -> dict[str, Any]:
    """One method by the code of one side."""
    numbers = ("images", "budget", "threads")
    command = [sys.executable, __file__, "--side", name, *(f"--{n}={getattr(a, n)}" for n in numbers)]
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": str(a.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"The side {name!r} ended: its message is above.")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(name: str, sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of both sides, and the median of the ratios of neighbouring turns."""
    found: dict[str, Any] = {"method": name}
    for side, turns in sides.items():
        middle = {key: statistics.median(one[key] for one in turns) for key in turns[0] if key != "kept"}
        found[side] = {
            "cpu_s": round(middle["seconds"], 2),
            "solves_s": round(middle["solves"], 2),
            "forward_s": round(middle["forward"], 2),
            "passes": round(statistics.median((one["seconds"] - one["solves"]) / one["forward"] for one in turns), 2),
            "macs": round(middle["macs"], 2),
            "error": round(middle["error"], 5),
        }
    if "before" in sides:
        ratios = [b["seconds"] / n["seconds"] for b, n in zip(sides["before"], sides["now"], strict=True)]
        found |= {"times_faster": round(statistics.median(ratios), 2), "lowest": round(min(ratios), 2), "bar": BAR}
        found["same_channels"] = round(_alike(sides["before"][0]["kept"], sides["now"][0]["kept"]), 4)
    return found


def _alike(before: dict[str, list[int]], now: dict[str, list[int]]) -> float:
    """The share of the channels that one side keeps which the other keeps as well."""
    both = sum(len({*before[name]} & {*now[name]}) for name in now)
    return both / max(sum(map(len, now.values())), sum(map(len, before.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="SRC", help="The `src` of an earlier commit.")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=METHODS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.side:
        return side_at_work(a)
    torch.set_num_threads(a.threads)
    sources = {"before": Path(a.before)} if a.before else {}
    sources["now"] = HERE.parent / "src"
    for name in a.methods.split(","):
        sides: dict[str, list[dict[str, Any]]] = {side: [] for side in sources}
        for _ in range(a.repeats):
            for side, source in sources.items():
                sides[side].append(turn(a, name, source))
        found = row(name, sides)
        print(json.dumps(found), flush=True)
        if a.before:
            save(a, found)


def save(a: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write a row; methods that are not measured keep the rows they have."""
    import _record

    file = _record.RESULTS / "reconstruction.json"
    result = {**_record.environment(), "bar_passes": PASSES}
    result["command"] = re.sub(r"(--before[ =])\S+", r"\1../before/src", result["command"])  # wherever it lay
    known = _record.read(file)["rows"] if file.exists() else []
    found = {**found, **{key: getattr(a, key) for key in ("images", "budget", "repeats")}}
    others = [one for one in known if one["method"] != found["method"]]
    rows = sorted([*others, found], key=lambda one: METHODS.index(one["method"]))
    _record.save(file, {**result, "rows": rows})


if __name__ == "__main__":
    main()
