"""MACs of convolutions and matrix products by torch's own counter, which leans on nothing that it judges."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@contextlib.contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """No fused attention path, which hides its matmuls, and no gradients, at which the counter's hooks stumble."""
    fast = torch.backends.mha.get_fastpath_enabled()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    model.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in wanted:
            parameter.requires_grad_(True)


def count(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """MACs of one forward pass."""
    counter = FlopCounterMode(display=False)
    with _countable(model), counter:
        model(*copy.deepcopy(inputs))
    return counter.get_total_flops() // 2


def by_module(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """MACs of one forward pass for each module by name, those of the modules inside it included."""
    counter = FlopCounterMode(display=False)
    with _countable(model), counter:
        model(*copy.deepcopy(inputs))
    root = type(model).__name__
    flops = {name: sum(parts.values()) for name, parts in counter.get_flop_counts().items() if name != "Global"}
    return {name.removeprefix(root).removeprefix("."): value // 2 for name, value in flops.items()}
