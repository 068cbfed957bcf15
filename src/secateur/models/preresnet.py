"""Pre-activation bottleneck residual networks for 32x32 images, depth 9n+2.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, 2016 (arXiv 1603.05027). Normalisation and ReLU come
before each convolution, the residual stream itself carries neither, and one last normalisation precedes the
classifier. As in the paper, a block that changes the stream's width feeds its 1x1 shortcut with the activated input;
some pruning code feeds it the raw stream.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from secateur.models._common import conv1x1, conv3x3, initialise, scaled


class PreBottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = inner * self.expansion
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv1x1(inputs, inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, outputs)
        self.shortcut = conv1x1(inputs, outputs, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv1(active)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        result: torch.Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return result


class PreResNet(nn.Module):
    """Pre-activation residual network with `blocks` bottleneck blocks in each of its three stages."""

    def __init__(self, blocks: int, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(16, width)
        self.conv1 = conv3x3(in_channels, channels)
        stages = []
        for base, stride in ((16, 1), (32, 2), (64, 2)):
            stage = []
            for step in [stride] + [1] * (blocks - 1):
                stage.append(PreBottleneck(channels, scaled(base, width), step))
                channels = scaled(base, width) * PreBottleneck.expansion
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1)
        logits: torch.Tensor = self.fc(x)
        return logits
