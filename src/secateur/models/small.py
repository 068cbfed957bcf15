"""Networks that train in seconds: LeNet-5 for 32x32 images, and one for the tests that takes any size from 4x4."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from secateur.models._common import conv1x1, conv3x3, initialise, scaled


class LeNet5(nn.Module):
    """LeCun et al., 1998: Gradient-based learning applied to document recognition.

    The usual modern form: ReLU and max pooling, and the second convolution sees all feature maps. The pruning papers
    also use Caffe's LeNet (20 and 50 feature maps, 500 hidden units); that one is not this.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        a, b, c, d = (scaled(base, width) for base in (6, 16, 120, 84))
        self.conv1 = nn.Conv2d(in_channels, a, 5)
        self.conv2 = nn.Conv2d(a, b, 5)
        self.fc1 = nn.Linear(b * 5 * 5, c)
        self.fc2 = nn.Linear(c, d)
        self.fc3 = nn.Linear(d, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        logits: torch.Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits


class Tiny(nn.Module):
    """A residual block, a concatenation and a depthwise convolution: the couplings of the large ones in small."""

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        a, b = scaled(8, width), scaled(16, width)
        self.stem = nn.Sequential(conv3x3(in_channels, a), nn.BatchNorm2d(a), nn.ReLU())
        self.residual = nn.Sequential(conv3x3(a, b), nn.BatchNorm2d(b), nn.ReLU(), conv1x1(b, a), nn.BatchNorm2d(a))
        self.branch = nn.Sequential(conv3x3(a, b, stride=2), nn.BatchNorm2d(b), nn.ReLU())
        self.depthwise = nn.Sequential(conv3x3(a + b, a + b, groups=a + b), nn.BatchNorm2d(a + b), nn.ReLU())
        self.fc = nn.Linear(a + b, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.residual(x))
        x = torch.cat([F.max_pool2d(x, 2), self.branch(x)], dim=1)
        logits: torch.Tensor = self.fc(F.adaptive_avg_pool2d(self.depthwise(x), 1).flatten(1))
        return logits
