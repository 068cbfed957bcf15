"""DKP on the digits of scikit-learn: test accuracy at several shares of kernels, straight after it, nothing trained on.

    python benchmarks/dkp_kernels.py      # minutes

Beside it stand as many kernels of every layer by the L1 norm of their weights, and as many at random. DKP also fits the
weights that stay; the others leave them as they are.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import _record
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import secateur

MODEL, EPOCHS, TESTED, CALIBRATION = "resnet8", 12, 500, 256
Tensors = tuple[torch.Tensor, torch.Tensor]


def digits() -> tuple[Tensors, Tensors]:
    """Training and test images of 8x8 with their labels."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16 - 0.3
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:TESTED], order[TESTED:]
    return (images[train], labels[train]), (images[test], labels[test])


def trained(data: Tensors, seed: int) -> nn.Module:
    """A network of the zoo."""
    torch.manual_seed(seed)
    model = secateur.models.create(MODEL, in_channels=1)
    images, labels = data
    steps = EPOCHS * (len(labels) // 50)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels))[: len(labels) // 50 * 50].split(50):
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def top1(model: nn.Module, data: Tensors) -> float:
    """The share of images that are answered rightly."""
    return float((model.eval()(data[0]).argmax(1) == data[1]).float().mean())


def by(rank: Callable[[torch.Tensor], torch.Tensor], dense: nn.Module, pruned: nn.Module) -> nn.Module:
    """The dense network with as many kernels in every layer as the pruned one has, those with the highest rank."""
    model = copy.deepcopy(dense)
    for layer, other in zip(model.modules(), pruned.modules(), strict=True):
        if isinstance(layer, nn.Conv2d) and isinstance(other, nn.Conv2d):
            count = int((other.weight != 0).flatten(2).any(2).sum())
            order = rank(layer.weight.detach()).flatten().argsort(descending=True)
            mask = torch.zeros(order.numel())
            mask[order[:count]] = 1
            layer.weight.data *= mask.view(*layer.weight.shape[:2], 1, 1)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", type=float, nargs="+", default=[0.6, 0.4, 0.3, 0.2, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, test = digits()
    dense, rows = [], []
    for seed in range(arguments.seeds):
        whole = trained(train, seed)
        dense.append(top1(whole, test))
        batches = list(zip(train[0][:CALIBRATION].split(64), train[1][:CALIBRATION].split(64), strict=True))
        for left in arguments.left:
            began = time.process_time()
            budget = f"params={left:g}"
            small = secateur.prune(whole, train[0][:1], method="dkp", budget=budget, data=batches, seed=seed).model
            seconds = time.process_time() - began
            chance = torch.Generator().manual_seed(seed)
            others = {
                "L1 norm": by(lambda w: w.abs().sum((2, 3)), whole, small),
                "random": by(lambda w: torch.rand(w.shape[:2], generator=chance), whole, small),  # noqa: B023
            }
            for name, model in {"dkp": small, **others}.items():
                rows.append({"seed": seed, "left": left, "kernels": name, "top1": top1(model, test)})
            print(seed, left, [f"{row['top1']:.3f}" for row in rows[-3:]], f"{seconds:.0f} s", flush=True)
    head = {"model": MODEL, "epochs": EPOCHS, "tested": TESTED, "images": CALIBRATION, "seeds": arguments.seeds}
    found = {**_record.environment(), **head, "dense": statistics.mean(dense), "rows": rows}
    _record.save(_record.RESULTS / "dkp_kernels.json", found)


if __name__ == "__main__":
    main()
