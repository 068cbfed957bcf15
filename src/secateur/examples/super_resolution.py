"""ESPCN (Shi et al., arXiv 1609.05158) and gratings to sharpen: recipe:gratings-espcn."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset


class Gratings(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images [1, 24, 24] of two waves, between 0 and 1, and the same at half the size."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(self.first + number)
        rows, columns = np.mgrid[:24, :24]
        waves = [np.sin(a * rows + b * columns + c) for a, b, c in rng.uniform(0.2, 1.4, (2, 3))]
        sharp = torch.from_numpy(0.5 + 0.25 * sum(waves))[None].float()
        return F.avg_pool2d(sharp, 2), sharp


def data(images: int = 128) -> dict[str, Gratings]:
    """Images to train on and half as many to test on."""
    return {"train": Gratings(images), "test": Gratings(images // 2, 10_000)}


def net(width: int = 16) -> nn.Sequential:
    """Features at the small size, which the last layer turns into the pixels of the large one."""
    layers = [nn.Conv2d(1, width, 5, padding=2), nn.Tanh(), nn.Conv2d(width, width, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2))
