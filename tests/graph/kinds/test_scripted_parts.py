"""Parts that TorchScript compiled keep their buffers and modules in containers of its own, which are no dicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur

PARTS = {
    "without tensors": lambda: nn.Sequential(nn.Hardswish(), nn.AvgPool2d(2)),
    "with a buffer": lambda: nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "with a parameter": lambda: nn.Sequential(nn.PReLU(), nn.MaxPool2d(2)),
    "traced": None,
}


@pytest.mark.parametrize("name", PARTS)
def test_around_a_scripted_part_is_pruned(name: str) -> None:
    torch.manual_seed(0)
    make, x = PARTS[name], torch.randn(2, 3, 8, 8)
    part = torch.jit.trace(nn.Hardtanh(), torch.randn(2, 8, 6, 6)) if make is None else torch.jit.script(make())
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 1), part, nn.Conv2d(8, 5, 1)).eval()
    result = secateur.prune(net, x, method="l1", budget="flops=0.6")
    assert result.verification is not None
    assert result.verification.exact
    assert result.model[0].out_channels < 12
