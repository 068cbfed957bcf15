"""Where the time goes: the milliseconds of every convolution, linear layer and normalisation, networks side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch import nn

from secateur.runtime.engines.base import REST, Watch
from secateur.runtime.engines.watching import CONVS


def layer_times(networks: Mapping[str, tuple[nn.Module, Watch]], repeats: int) -> list[dict[str, Any]]:
    """One row a layer of any of the networks, in the order in which they run, and what is left of the whole as REST.

    Args:
        networks: by what they are called ("dense", "pruned"), the first names the layers' kinds. They take turns, and
            who goes first alternates.

    Returns:
        rows of "name", "kind" and, by network, "dense_ms", "pruned_ms": median milliseconds; None where it is gone.
    """
    watches = [watch for _, watch in networks.values()]
    for turn in range(repeats + 1):
        for watch in watches if turn % 2 == 0 else reversed(watches):
            watch.run()
    times = {key: _medians(watch.times()) for key, (_, watch) in networks.items()}
    modules: dict[str, nn.Module] = {}
    for model, _ in reversed(list(networks.values())):
        modules.update(model.named_modules())
    names = dict.fromkeys(name for found in times.values() for name in found if name != REST)
    return [
        {
            "name": name,
            "kind": kind_of(modules[name]) if name in modules else "",
            **{f"{key}_ms": found.get(name) for key, found in times.items()},
        }
        for name in (*names, REST)
    ]


def kind_of(module: nn.Module) -> str:
    """What a layer is, in a word or two: "conv2d 3x3", "depthwise conv2d 3x3", "linear", "batchnorm2d"."""
    kind = type(module).__name__.casefold()
    if not isinstance(module, CONVS):
        return kind
    size = "x".join(map(str, module.kernel_size))
    depthwise = module.groups > 1 and module.groups == module.in_channels
    return f"{'depthwise ' if depthwise else 'grouped ' if module.groups > 1 else ''}{kind} {size}"


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Milliseconds by layer; a layer that some runs miss counts where it was seen."""
    seen: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, seconds in run.items():
            seen[name].append(seconds)
    return {name: float(f"{max(0.0, median(values)) * 1e3:.5g}") for name, values in seen.items()}
