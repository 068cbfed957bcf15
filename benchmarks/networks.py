"""Methods on other architectures: short runs of each on VGG-16-BN, DenseNet-40 and MobileNetV2 for 32x32 images.

    python benchmarks/networks.py                                    # all methods
    python benchmarks/networks.py --methods cpmc,l1 --networks zoo:mobilenet_v2
    python benchmarks/networks.py --first 1 --step 2                 # every other run, to share the work

Every run is an ordinary one, with 512 images of CIFAR-10 for an epoch and as many to test, so accuracies mean nothing:
what is shown is that each method comes through, meets the budget, and is cut and verified. Methods that need no data
also prune a torchvision ResNet-50 at 224 pixels. Finished runs in --runs are taken as they are, and rows of the result
that are not measured again are kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import _record
import _shim
import numpy as np
import torch

from secateur import runs
from secateur.errors import SecateurError
from secateur.methods import METHODS, method
from secateur.recipe import Recipe
from secateur.training import make_progress

NETWORKS = ("zoo:vgg16_bn", "zoo:densenet40", "zoo:mobilenet_v2")
LARGE = "torchvision:resnet50"
RECIPE = """
name: networks
model: {network}
data: {{name: npz, path: {data}, batch_size: 32, validation: 0, augment: [], calibration_images: 128}}
method: {method}
budget: {budget}
train: {{epochs: 1, lr: 0.01}}
finetune: {{epochs: 1, lr: 0.01}}
export: {{onnx: false, pt2: false}}
latency: null
"""


def images(whole: Path, part: Path, count: int) -> Path:
    """A small part of CIFAR-10 as a file, as many images of each class."""
    if not part.exists():
        with np.load(whole) as data:
            found = {}
            for split in ("train", "test"):
                labels = data[f"y_{split}"]
                chosen = np.concatenate([np.flatnonzero(labels == k)[: count // 10 + 1] for k in range(10)])[:count]
                chosen = np.random.default_rng(0).permutation(chosen)
                found |= {f"x_{split}": data[f"x_{split}"][chosen], f"y_{split}": labels[chosen]}
        np.savez(part, **found)
    return part


def row(network: str, name: str, arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """One run, done now or before, as far as it got."""
    folder = arguments.runs / f"{name}-{network.partition(':')[2]}"
    start = {"network": network, "method": name, "acts": method(name).acts}
    try:
        if folder.exists():
            results = runs.resume(folder, progress=make_progress()).results
        else:
            text = RECIPE.format(network=network, data=data, method=name, budget=arguments.budget)
            changes = ["finetune=null"] if method(name).acts == "before training" else []
            results = runs.start(Recipe.parse(text, changes), folder, progress=make_progress()).results
    except SecateurError as error:
        return {**start, "error": str(error)}
    proof = results["verification"]
    return {
        **start,
        "left": results["remaining"]["macs"],
        "params": results["remaining"]["params"],
        "exact": proof["exact"],
        "max_relative_error": proof["max_relative_error"],
        "prune_s": results["seconds"]["prune"],
        "total_s": results["seconds"]["total"],
    }


def large(name: str, budget: str) -> dict[str, Any]:
    """A method without data on a ResNet-50 at 224 pixels."""
    import torchvision

    torch.manual_seed(0)
    model, x = torchvision.models.resnet50(weights=None), torch.randn(1, 3, 224, 224)
    began = time.perf_counter()
    start = {"network": LARGE, "method": name, "acts": method(name).acts}
    try:
        pruner = method(name).factory(model, x, budget=budget)
        pruner.finish()
    except SecateurError as error:
        return {**start, "error": str(error)}
    result = pruner.result
    assert result is not None
    assert result.verification is not None
    return {
        **start,
        "left": result.reached("flops"),
        "params": result.reached("params"),
        "exact": result.verification.exact,
        "max_relative_error": result.verification.max_relative_error,
        "prune_s": round(time.perf_counter() - began, 3),
        "total_s": round(time.perf_counter() - began, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(row.name for row in METHODS))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--data", type=Path, default=Path(".data/cifar10.npz"))
    parser.add_argument("--runs", type=Path, default=Path("runs/networks"))
    parser.add_argument("--name", default="networks", help="of the result file")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _shim.install()
    data = images(arguments.data, arguments.data.with_name(f"cifar10-{arguments.images}.npz"), arguments.images)
    names = arguments.methods.split(",")
    work = [(network, name) for network in arguments.networks.split(",") for name in names]
    work += [(LARGE, name) for name in names if method(name).needs == "nothing"]
    rows = []
    for network, name in work[arguments.first :: arguments.step]:
        found = large(name, arguments.budget) if network == LARGE else row(network, name, arguments, data)
        rows.append(found)
        print(found, flush=True)
    if arguments.step == 1:
        path = _record.RESULTS / f"{arguments.name}.json"
        circumstances = {**_record.environment(), "budget": arguments.budget, "images": arguments.images}
        _record.save(path, {**circumstances, "rows": kept(path, rows) + rows})


def kept(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the file that were not measured again, each with the date on which it was."""
    if not path.exists():
        return []
    before, again = _record.read(path), {(row["network"], row["method"]) for row in rows}
    others = [row for row in before["rows"] if (row["network"], row["method"]) not in again]
    return [{"measured": before["date"][:10], **row} for row in others]


if __name__ == "__main__":
    main()
