"""What narrowing in the middle of training is worth: the time of a step after every pruning event, beside plain steps.

    python benchmarks/dcpcac_steps.py                          # ResNet-56, batch 128, one thread
    python benchmarks/dcpcac_steps.py --double                 # DCPH: the doubled network down to the baseline's size
    python benchmarks/dcpcac_steps.py --device cuda --repeats 50

A training on random images goes through its pruning window with few steps between events. After each, steps of the
method are timed in turn with plain steps of a network of the original widths: medians, and ratios turn by turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import _record
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.methods.dcpcac.method import DCPCAC

Step = Callable[[], None]


def plain_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    """One step of SGD as a function."""
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)

    def take() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()

    return take


def method_step(method: DCPCAC, optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> Step:
    """One step with the method at work, all of it but the pruning itself (timed apart, as events are rare)."""

    def take() -> None:
        optimiser.zero_grad()
        output = method(x)
        method.after_forward(output, y)
        (F.cross_entropy(output, y) + method.loss()).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()

    return take


def seconds(take: Step, device: str) -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    take()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def row(found: dict[str, float], event: float, own: list[float], plain: list[float]) -> dict[str, Any]:
    """How large the network was, what the event before took, and what a step takes."""
    ratios = [a / b for a, b in zip(own, plain, strict=True)]
    return {
        "flops": round(found["flops"], 4),
        "channels": round(found["channels"], 4),
        "gates": bool(found["gates"]),
        "event_s": round(event, 4),
        "step_s": round(statistics.median(own), 5),
        "plain_s": round(statistics.median(plain), 5),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--events", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--metric", default="auto")
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, repeats = arguments.device, arguments.repeats + 1  # the first step after an event is not timed
    x = torch.randn(arguments.batch, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (len(x),), device=device)
    width = 2.0 if arguments.double else 1.0
    method = DCPCAC(
        secateur.models.create(arguments.model, width=width).to(device),
        x[:2],
        budget="flops=1.0" if arguments.double else arguments.budget,
        double="channels" if arguments.double else "no",
        metric=arguments.metric,
        evidence=1,
        start=0.05,
        end=0.4,
        steps=round(arguments.events * repeats / 0.35),
        every=repeats,
    ).train()
    optimiser = torch.optim.SGD(method.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)
    own = method_step(method, optimiser, x, y)
    other = plain_step(secateur.models.create(arguments.model).to(device).train(), x, y)
    seconds(other, device)
    rows, event = [], 0.0
    while True:
        times: list[tuple[float, float]] = []
        found = method.metrics()
        while len(times) < repeats:
            before = method._last
            times.append((seconds(own, device), seconds(other, device)))
            if method._last != before:  # this step pruned: a new row begins after it
                break
        if len(times) > 2:
            mine, plain = zip(*times[1:-1], strict=True)
            rows.append(row(found, event, list(mine), list(plain)))
            print(rows[-1])
            event = times[-1][0] - statistics.median(mine)
        if not found["gates"]:
            break
    name = "dcpcac_steps" + ("_double" if arguments.double else "") + ("" if device == "cpu" else f"_{device}")
    result = {**_record.environment(), **vars(arguments), "metric": method.metric}
    if device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    _record.save(_record.RESULTS / f"{name}.json", {**result, "rows": rows})


if __name__ == "__main__":
    main()
