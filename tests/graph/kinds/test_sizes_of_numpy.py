"""Sizes that modules keep as numbers of numpy follow a cut as Python's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _judge import Carrier, cut_rightly, image, unique
from torch import nn


class Sized(nn.Module):
    def __init__(self, sizes: Any, use: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.sizes, self.use = sizes, use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self.sizes, x)


def gated(c: Any, x: torch.Tensor) -> torch.Tensor:
    return x * x.view(-1, c, 64).mean(2).view(-1, c, 1, 1).sigmoid()


def parted(sizes: Any, x: torch.Tensor) -> torch.Tensor:
    a, b = x.split([int(size) for size in sizes], 1)
    return torch.cat([b, a.tanh()], 1)


def bounded(ends: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, : ends[0]].tanh(), x[:, ends[0] :]], 1)


KINDS: dict[str, tuple[Any, Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "one": (np.int64(16), gated),
    "a list": ([np.int32(6), np.int32(10)], parted),
    "sums": (tuple(np.cumsum([6, 10])), bounded),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_of_numpy_follows(kind: str) -> None:
    result = cut_rightly(unique(Carrier(Sized(*KINDS[kind]))).eval(), image(), 0.4)
    assert not result.settled
