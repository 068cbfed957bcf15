"""VGG with batch normalisation for 32x32 images.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014 (arXiv 1409.1556). The
pruning papers' version for CIFAR: the convolutions of configurations D and E without bias, each followed by batch
normalisation, and *one* linear layer from 512 features to the classes in place of the three of 4096 (Liu et al. 2017,
arXiv 1708.06519). Li et al. 2017 and HRank keep a second linear layer of 512, which adds 0.26M parameters.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from secateur.models._common import conv3x3, initialise, scaled

CONVOLUTIONS = {  # in each stage; the image is halved after every stage but the last
    16: ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    19: ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}


class VGG(nn.Module):
    """VGG of 16 or 19 layers; the names count two linear layers that are not there."""

    def __init__(self, depth: int, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (base, repeats) in enumerate(CONVOLUTIONS[depth]):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(repeats):
                outputs = scaled(base, width)
                layers += [conv3x3(channels, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: torch.Tensor = self.classifier(x)
        return logits
