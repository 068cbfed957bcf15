"""DCP with a quadratic form for its classifiers' loss beside DCP that asks it by passes (`exact: true`).

    python benchmarks/dcp_speed.py                     # ResNet-20 on digits at 32 pixels, 256 images, two samples
    python benchmarks/dcp_speed.py --images 1024

The network is trained on scikit-learn's digits; images of each sample are shown to both sides in turn, and to DCP
without classifiers (`weight: 0`). Times are the process's own CPU seconds, from images to the cut and verified network;
accuracies are straight after the cut, on images that nobody has seen.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import _record
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import secateur

SIDES: dict[str, dict[str, Any]] = {
    "exact": {"exact": True},
    "moments": {"exact": False},
    "no classifiers": {"exact": False, "weight": 0.0},
}
TRAINED_ON = 1200


def trained(name: str, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """The network after some epochs of SGD with a falling rate."""
    torch.manual_seed(0)
    net: nn.Module = secateur.models.create(name).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, epochs * (len(labels) // 100))
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(100):
            optimiser.zero_grad()
            F.cross_entropy(net(images[index]), labels[index]).backward()
            optimiser.step()
            schedule.step()
    return net.to(memory_format=torch.contiguous_format).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--budget", default="flops=0.2")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    digits = load_digits()
    images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32)[:, None]
    images = F.interpolate(images, size=(a.size, a.size)).repeat(1, 3, 1, 1)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    known, unknown = order[:TRAINED_ON], order[TRAINED_ON:]
    net = trained(a.model, images[known], labels[known], a.epochs)

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(images[unknown]).argmax(1) == labels[unknown]).float().mean())

    rows: dict[str, dict[str, Any]] = {name: {"side": name, "seconds": [], "accuracy": []} for name in SIDES}
    for sample in range(a.samples):
        shown = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(sample))[: a.images]]
        data = [(images[part], labels[part]) for part in shown.split(64)]
        for name, options in SIDES.items():
            began = time.process_time()
            result = secateur.prune(net, images[:2], budget=a.budget, method="dcp", data=data, seed=sample, **options)
            rows[name]["seconds"].append(round(time.process_time() - began, 2))
            rows[name]["accuracy"].append(round(accuracy(result.model), 4))
    for row in rows.values():
        ratios = [e / s for e, s in zip(rows["exact"]["seconds"], row["seconds"], strict=True)]
        row["times_faster"] = round(statistics.median(ratios), 2)
    numbers = {n: getattr(a, n) for n in ("model", "size", "images", "samples", "budget")}
    result_ = {**_record.environment(), **numbers, "dense_accuracy": round(accuracy(net), 4), "bar": 8}
    _record.save(_record.RESULTS / "dcp_speed.json", {**result_, "rows": list(rows.values())})
    for row in rows.values():
        print(row)


if __name__ == "__main__":
    main()
