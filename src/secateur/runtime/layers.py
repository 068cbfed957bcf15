"""Where the time goes: seconds spent in every convolution, linear layer and normalisation of two networks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


def layer_times(dense: nn.Module, pruned: nn.Module, inputs: Any, repeats: int) -> list[dict[str, Any]]:
    """One row a layer of either network, in the order in which they run: median milliseconds; None where it is gone."""
    args, kwargs = inputs
    times: tuple[dict[str, list[float]], dict[str, list[float]]] = (defaultdict(list), defaultdict(list))
    for turn in range(repeats + 1):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            model = (dense, pruned)[which]
            with _watched(model) as spent:
                model(*args, **kwargs)
            if turn:  # the first warms up
                for name, seconds in spent.items():
                    times[which][name].append(seconds)
    modules = {**dict(pruned.named_modules()), **dict(dense.named_modules())}
    names = dict.fromkeys([*times[0], *times[1]])
    return [
        {
            "name": name,
            "kind": kind_of(modules[name]),
            "dense_ms": _ms(times[0], name),
            "pruned_ms": _ms(times[1], name),
        }
        for name in names
    ]


def kind_of(module: nn.Module) -> str:
    """What a layer is, in a word or two: "conv2d 3x3", "depthwise conv2d 3x3", "linear", "batchnorm2d"."""
    kind = type(module).__name__.casefold()
    if not isinstance(module, _CONVS):
        return kind
    size = "x".join(map(str, module.kernel_size))
    depthwise = module.groups > 1 and module.groups == module.in_channels
    return f"{'depthwise ' if depthwise else 'grouped ' if module.groups > 1 else ''}{kind} {size}"


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, float]]:
    """Seconds by layer while the model runs; a layer that is called several times counts them all."""
    spent: dict[str, float] = {}
    started: dict[str, float] = {}
    now = _clock(model)

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            started[name] = now()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            spent[name] = spent.get(name, 0.0) + now() - started[name]

        return hook

    with ExitStack() as handles:
        for name, module in model.named_modules():
            if isinstance(module, (*_CONVS, *_NORMS, nn.Linear)):
                handles.callback(module.register_forward_pre_hook(enter(name)).remove)
                handles.callback(module.register_forward_hook(leave(name)).remove)
        yield spent


def _clock(model: nn.Module) -> Callable[[], float]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def _ms(times: dict[str, list[float]], name: str) -> float | None:
    return float(f"{median(times[name]) * 1e3:.5g}") if name in times else None
