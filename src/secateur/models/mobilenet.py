"""MobileNet v1 and v2 for 32x32 images.

Howard et al.: MobileNets, 2017 (arXiv 1704.04861), and Sandler et al.: MobileNetV2: Inverted Residuals and Linear
Bottlenecks, 2018 (arXiv 1801.04381). Channels and depth are those of the papers; only strides differ, because the
image is seven times smaller: the first convolution keeps the resolution, and in v2 so does the second stage. The last
feature map is 2x2 (v1) and 4x4 (v2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from secateur.models._common import conv1x1, conv3x3, initialise, scaled

V1_STAGES = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
V2_STAGES = (  # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # stride 2 for large images
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _normalised(convolution: nn.Conv2d, activation: Callable[..., nn.Module]) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), activation(inplace=True)]


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions, each half with its own normalisation and ReLU."""

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers = _normalised(conv3x3(in_channels, channels), nn.ReLU)
        for base, stride in V1_STAGES:
            outputs = scaled(base, width)
            layers += _normalised(conv3x3(channels, channels, stride, groups=channels), nn.ReLU)
            layers += _normalised(conv1x1(channels, outputs), nn.ReLU)
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (3x3 depthwise), project (1x1, no activation); a shortcut where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers = _normalised(conv1x1(inputs, inner), nn.ReLU6) if expansion > 1 else []
        layers += _normalised(conv3x3(inner, inner, stride, groups=inner), nn.ReLU6)
        self.conv = nn.Sequential(*layers, conv1x1(inner, outputs), nn.BatchNorm2d(outputs))
        self.identity = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x)
        return x + out if self.identity else out


class MobileNetV2(nn.Module):
    """Inverted residuals; as in the paper, a width factor below 1 leaves the last 1280 channels."""

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        channels, last = scaled(32, width), scaled(1280, max(width, 1.0))
        layers = _normalised(conv3x3(in_channels, channels), nn.ReLU6)
        for expansion, base, blocks, stride in V2_STAGES:
            for step in [stride] + [1] * (blocks - 1):
                layers.append(InvertedResidual(channels, scaled(base, width), expansion, step))
                channels = scaled(base, width)
        layers += _normalised(conv1x1(channels, last), nn.ReLU6)
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(last, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: torch.Tensor = self.fc(self.dropout(x))
        return logits
