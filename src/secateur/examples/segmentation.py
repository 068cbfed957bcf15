"""A U-Net and squares and discs to segment, made on the spot: recipe:shapes-unet.

Both are named by import path in the recipe, as a network and data of your own would be.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset


class Shapes(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Noisy images [1, 24, 24] and their masks [24, 24]: 0 ground, 1 square, 2 disc, 255 on the border of either."""

    classes = ("ground", "square", "disc")

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(self.first + number)
        rows, columns = np.mgrid[:24, :24]
        mask = np.zeros((24, 24), np.int64)
        for kind in (1, 2):
            y, x, r = *rng.integers(5, 19, 2), rng.integers(3, 6)
            far = np.maximum(abs(rows - y), abs(columns - x)) if kind == 1 else np.hypot(rows - y, columns - x)
            mask[far <= r] = 255
            mask[far < r] = kind
        bright = np.where(mask == 1, 0.5, np.where(mask == 2, 1.0, 0.0))
        image = bright + 0.2 * rng.standard_normal((24, 24))
        return torch.from_numpy(image[None]).float(), torch.from_numpy(mask)


def data(images: int = 128) -> dict[str, Shapes]:
    """Images to train on and half as many to test on."""
    return {"train": Shapes(images), "test": Shapes(images // 2, 10_000)}


def _block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Two levels, joined by a concatenation."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.outer, self.down = _block(1, width), nn.MaxPool2d(2)
        self.inner = nn.Sequential(_block(width, 2 * width), _block(2 * width, 2 * width))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.joined, self.head = _block(2 * width, width), nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outer = self.outer(x)
        inner = self.up(self.inner(self.down(outer)))
        scores: torch.Tensor = self.head(self.joined(torch.cat([outer, inner], 1)))
        return scores


def net(width: int = 8) -> UNet:
    """The network of the recipe."""
    return UNet(width)
