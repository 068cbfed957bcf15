"""Residual networks for 32x32 images: three stages of 16, 32 and 64 channels.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015 (arXiv 1512.03385), section 4.2. Depth is 6n+2
with two 3x3 convolutions in a block, 9n+2 with the bottleneck (1x1, 3x3, 1x1, output four times as wide) of the same
paper's section 4.1.

Where a stage begins, the shortcut must subsample and widen. Option A takes every second pixel and appends zero
channels: no parameters. Option B is a 1x1 convolution with batch normalisation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from secateur.models._common import conv1x1, conv3x3, initialise, scaled


class PadShortcut(nn.Module):
    """Option A. The number of zeros follows from the tensors, so it stays right when the network becomes narrower."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, residual.shape[1] - x.shape[1]))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + _shortcut(self.shortcut, x, out))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        inner = max(1, outputs // self.expansion)
        self.conv1 = conv1x1(inputs, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + _shortcut(self.shortcut, x, out))


def _shortcut(shortcut: nn.Module | None, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    if shortcut is None:
        return x
    result: torch.Tensor = shortcut(x, residual) if isinstance(shortcut, PadShortcut) else shortcut(x)
    return result


class ResNet(nn.Module):
    """Residual network with `blocks` blocks in each of its three stages."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: int,
        *,
        shortcut: Literal["A", "B"],
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        stem = channels = scaled(16, width)
        self.conv1 = conv3x3(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        stages = []
        for base, stride in ((16, 1), (32, 2), (64, 2)):
            outputs = scaled(base, width) * block.expansion
            stage = []
            for first in [True] + [False] * (blocks - 1):
                step = stride if first else 1
                change = _widen(channels, outputs, step, shortcut) if step > 1 or channels != outputs else None
                stage.append(block(channels, outputs, step, change))
                channels = outputs
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: torch.Tensor = self.fc(x)
        return logits


def _widen(inputs: int, outputs: int, stride: int, option: Literal["A", "B"]) -> nn.Module:
    if option == "A":
        return PadShortcut(stride)
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
