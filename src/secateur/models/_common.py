"""What the families share: scaled widths and the initialisation of He et al. 2015."""

from __future__ import annotations

from torch import nn


def scaled(channels: int, width: float) -> int:
    """Return `channels` times the width factor, at least 1."""
    return max(1, round(channels * width))


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def initialise(model: nn.Module) -> None:
    """Convolutions: normal with variance 2 / (k² · outputs) (arXiv 1502.01852, eq. 14); BN: 1 and 0; linear bias: 0.

    Linear weights keep PyTorch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
