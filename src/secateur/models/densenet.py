"""DenseNet without bottleneck or compression for 32x32 images.

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, 2016 (arXiv 1608.06993). Depth is
3n+4. The first convolution has twice the growth rate's channels, as in the pruning papers' code; Huang et al. use 16
for this variant.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from secateur.models._common import conv1x1, conv3x3, initialise, scaled


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = conv3x3(inputs, growth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], dim=1)


class Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = conv1x1(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """Three dense blocks of `layers` layers, each of which adds `growth` channels."""

    def __init__(
        self, layers: int, growth: int, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0
    ) -> None:
        super().__init__()
        growth = scaled(growth, width)
        channels = 2 * growth
        parts: list[nn.Module] = [conv3x3(in_channels, channels)]
        for block in range(3):
            if block > 0:
                parts.append(Transition(channels))
            for _ in range(layers):
                parts.append(DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.features(x)))
        logits: torch.Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
