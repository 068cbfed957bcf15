"""What scoring costs: methods on a ResNet-50 at 224 pixels beside one pass forward and back over the same images.

    python benchmarks/score_speed.py                       # 256 images in batches of 16, one thread
    python benchmarks/score_speed.py --methods pfp --images 64
    python benchmarks/score_speed.py --reconstruct cp      # all layers of a VGG-16-BN, in seconds

The pass forward and back (cross-entropy, gradients of all weights, no optimiser) is timed before and after every
method, on every fourth batch, and the mean of both, for all images, is what the method's time to look at the images and
score is divided by. Methods that are not measured keep the rows they have in the result file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import _record
import _shim
import torch
from torch import nn
from torch.nn import functional as F

from secateur.methods import method
from secateur.models import create

BARS = {"group_fisher": 3.0, "feature_relevance": 3.0, "pfp": 3.0, "catro": 5.0}
RECONSTRUCTION_BAR_S = 600.0
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def photographs(count: int, size: int, batch: int, classes: int) -> Batches:
    """Noise at all scales, coarse and fine alike, with few classes, so that each has several images."""
    torch.manual_seed(0)
    scales = [torch.randn(count, 3, side, side) for side in (2, 4, 8, 16, 32, 64, size)]
    x = torch.zeros(count, 3, size, size)
    for noise in scales:
        x += F.interpolate(noise, (size, size), mode="bilinear")
    y = torch.arange(count) % classes
    return list(zip((x / x.std()).split(batch), y.split(batch), strict=True))


def plain_seconds(model: nn.Module, batches: Batches, share: int) -> float:
    """The time of one pass forward and back, from one batch in `share` of them."""
    some = batches[::share]
    return seconds(lambda: plain(model, some)) * len(batches) / len(some)


def plain(model: nn.Module, batches: Batches) -> None:
    """One pass forward and back."""
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
    model.zero_grad(set_to_none=True)


def scored(name: str, model: nn.Module, batches: Batches, budget: str, share: int) -> dict[str, Any]:
    """The time a method takes to see all images and score every channel; made, and traced, before."""
    before = plain_seconds(model, batches, share)
    pruner = method(name).factory(model, batches[0][0][:1], budget=budget)
    pruner.eval()
    looked = seconds(lambda: pruner.collect(batches, F.cross_entropy))
    ranked = seconds(pruner.score)
    after = plain_seconds(model, batches, share)
    ratio = 2 * (looked + ranked) / (before + after)
    times = {"plain_s": (before + after) / 2, "collect_s": looked, "score_s": ranked}
    return {
        "method": name,
        "images": sum(len(y) for _, y in batches),
        **{k: round(v, 3) for k, v in times.items()},
        "ratio": round(ratio, 3),
        "bar": BARS.get(name),
    }


def reconstructed(name: str, images: int, batch: int, budget: str) -> dict[str, Any]:
    """The time a method takes for the whole of a VGG-16-BN at 32 pixels: data, choice, new weights, cut, proof."""
    torch.manual_seed(0)
    batches = photographs(images, 32, batch, 10)
    pruner = method(name).factory(create("vgg16_bn").eval(), batches[0][0][:1], budget=budget)
    pruner.eval()
    looked = seconds(lambda: pruner.collect(batches, F.cross_entropy))
    rest = seconds(pruner.finish)
    assert pruner.result is not None
    times = {"collect_s": round(looked, 2), "finish_s": round(rest, 2), "total_s": round(looked + rest, 2)}
    left = round(pruner.result.reached("flops"), 5)
    return {
        "method": name,
        "network": "zoo:vgg16_bn",
        "images": images,
        **times,
        "left": left,
        "bar_s": RECONSTRUCTION_BAR_S,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(BARS))
    parser.add_argument("--reconstruct", help="a method, timed on a VGG-16-BN; nothing else is done then")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=2048, help="images for --reconstruct")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--share", type=int, default=4, help="the plain pass is timed on one batch in so many")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.reconstruct:
        rows = [reconstructed(arguments.reconstruct, arguments.calibration, 128, arguments.budget)]
        print(rows[0])
        _record.save(_record.RESULTS / "reconstruct_speed.json", {**_record.environment(), "rows": rows})
        return
    _shim.install()
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None)
    batches = photographs(arguments.images, arguments.size, arguments.batch, arguments.classes)
    with torch.no_grad():  # running statistics of its own activations
        model.train()(batches[0][0])
    rows = []
    for name in arguments.methods.split(","):
        rows.append(scored(name, model.eval(), batches, arguments.budget, arguments.share))
        print(rows[-1], flush=True)
    keys = ("size", "batch", "classes", "budget", "share")
    circumstances = {**_record.environment(), "model": "resnet50", **{key: getattr(arguments, key) for key in keys}}
    file = _record.RESULTS / "score_speed.json"
    measured = {row["method"] for row in rows}
    before = _record.read(file)["rows"] if file.exists() else []
    rows = [*rows, *(row for row in before if row["method"] not in measured)]
    _record.save(file, {**circumstances, "rows": rows})


if __name__ == "__main__":
    main()
