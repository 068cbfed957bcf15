"""What centripetal SGD costs: a training step of ResNet-56 beside a plain step of SGD.

    python benchmarks/csgd_step.py                      # batch 128, one thread, alternating, median of 7
    python benchmarks/csgd_step.py --device cuda --repeats 50

Two networks take their steps in turn, with momentum and weight decay: one plainly, one with gradients averaged over
clusters and the pull towards their means. Beside the whole step stands the part that is the method's own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import _record
import torch
from _turns import row, timed
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.methods.csgd import CSGD

BAR = 1.1


def step(model: nn.Module, extra: CSGD | None, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One step of SGD as a function."""
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def take() -> None:
        loss = F.cross_entropy(model(x), y)
        if extra is not None:
            loss = loss + extra.loss()
        optimiser.zero_grad()
        loss.backward()
        if extra is not None:
            extra.after_backward()
        optimiser.step()
        if extra is not None:
            extra.after_step()

    return take


def own(method: CSGD) -> Callable[[], None]:
    """What the method does between backward pass and optimiser, as a function."""

    def take() -> None:
        method.loss().backward()
        method.after_backward()
        method.after_step()

    return take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print only, and write no result")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    torch.manual_seed(0)
    x = torch.randn(arguments.batch, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (len(x),), device=device)
    model = secateur.models.create(arguments.model).to(device)
    started = time.perf_counter()
    method = CSGD(model, x[:2], budget="flops=0.5", steps=1000)
    built = time.perf_counter() - started
    method.train()
    plain = secateur.models.create(arguments.model).to(device).train()
    sides = {"plain": step(plain, None, x, y), "csgd": step(method, method, x, y), "own part": own(method)}
    rows = [row("training step", timed(sides, arguments.repeats, device))]
    environment = {**_record.environment(), "model": arguments.model, "batch": arguments.batch}
    if device == "cuda":
        environment["device"] = torch.cuda.get_device_name()
    result = {**environment, "repeats": arguments.repeats, "bar": BAR, "construction_s": round(built, 2), "rows": rows}
    if not arguments.dry:
        name = "csgd_step" if device == "cpu" else f"csgd_step_{device}"
        _record.save(_record.RESULTS / f"{name}.json", result)
    for entry in rows:
        print(entry)
    print(f"construction with k-means: {built:.1f} s; bar: {BAR}")


if __name__ == "__main__":
    main()
