"""What Kronecker factors cost: NAP's statistics of a ResNet-50 at 224 pixels beside one pass forward and back.

    python benchmarks/nap_factors.py                     # batch 32, one thread, alternating, median of 5
    python benchmarks/nap_factors.py --device cuda --repeats 20

Three sides take turns: a plain training pass (forward, cross-entropy, backward, no optimiser), the same batch shown to
exact factors, and to factors that look at some positions of each image. Then the scores of the two are ranked against
each other: those of every weight and of every channel.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import _record
import _shim
import numpy as np
import torch
from _turns import row, timed
from scipy.stats import rankdata
from torch import nn
from torch.nn import functional as F

from secateur.graph import trace
from secateur.methods.nap.importance import Importance
from secateur.methods.nap.kfac import Batch

BARS = {"exact": 3.0, "sampled": 1.5}


def network(name: str, weights: str | None) -> nn.Module:
    """A torchvision network; without a file of weights new ones, with norms as a trained network has them."""
    _shim.install()
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def images(count: int, size: int) -> torch.Tensor:
    """Noise at all scales, coarse and fine alike, as in photographs."""
    scales = [torch.randn(count, 3, side, side) for side in (2, 4, 8, 16, 32, 64, size)]
    whole = sum(F.interpolate(noise, (size, size), mode="bilinear") for noise in scales)
    assert isinstance(whole, torch.Tensor)
    return whole / whole.std()


def plain(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One pass of training as a function."""
    model = model.train()

    def take() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()

    return take


def cost(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and ratios to the plain pass, with the bars."""
    result = row("seconds of one pass", seconds)
    for name, bar in BARS.items():
        result[name]["bar"] = bar
    return result


def agreement(what: str, exact: list[np.ndarray[Any, Any]], sampled: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Spearman's rank correlation over the whole network, and the lowest of a single layer or group."""
    single = [_spearman(a, b) for a, b in zip(exact, sampled, strict=True) if a.size > 8]
    whole = _spearman(np.concatenate(exact), np.concatenate(sampled))
    return {
        "what": f"rank correlation of the scores of {what}",
        "count": int(sum(a.size for a in exact)),
        "all": round(whole, 5),
        "lowest_layer": round(min(single), 5),
        "median_layer": round(statistics.median(single), 5),
        "bar": 0.99,
    }


def _spearman(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", help="a state dict to load; else the weights are new")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    model = network(arguments.model, arguments.weights).to(device)
    x = images(arguments.batch, arguments.size).to(device)
    y = torch.randint(0, 1000, (len(x),), device=device)
    with torch.no_grad():  # running statistics of its own activations
        model.train()(x)
    graph = trace(model, x[:1])
    exact = Importance(graph, x[:1])
    sampled = Importance(graph, x[:1], positions=arguments.positions)
    batch = [Batch.of(x)]
    sides = {
        "plain": plain(model, x, y),
        "exact": lambda: exact.factors.update(model, batch),
        "sampled": lambda: sampled.factors.update(model, batch),
    }
    rows = [cost(timed(sides, arguments.repeats, device))]
    print(rows[0], flush=True)
    for each in (exact, sampled):  # the same images and draws for both, once
        each.factors.reset()
        each.factors.drawn = each.factors.updates = 0
        each.factors.update(model, batch)
    singles = [[v.flatten().cpu().numpy() for v in each.of_weights().values()] for each in (exact, sampled)]
    rows.append(agreement("single weights", *singles))
    channels = [list(each.of_channels().values()) for each in (exact, sampled)]
    rows.append(agreement("channels", *channels))
    name = "nap_factors" if device == "cpu" else f"nap_factors_{device}"
    keys = ("model", "weights", "batch", "size", "positions", "repeats")
    result = {**_record.environment(), **{key: getattr(arguments, key) for key in keys}}
    if device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    _record.save(_record.RESULTS / f"{name}.json", {**result, "rows": rows})
    for entry in rows[1:]:
        print(entry)


if __name__ == "__main__":
    main()
