"""Four kinds of images, a small network for them, and what makes a search take seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

#: What makes a search take seconds.
QUICK: dict[str, Any] = {
    "trials": 3, "epochs": 1, "time": None, "methods": ("l1", "fpgm"), "repairs": ("batchnorm", "none"), "align": 1,
}  # fmt: skip


def images(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright quarter; which one is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    pixels = torch.randn(count, 1, 8, 8, generator=generator)
    for k in range(4):
        rows, columns = (slice(4 * (k // 2), 4 * (k // 2) + 4), slice(4 * (k % 2), 4 * (k % 2) + 4))
        pixels[labels == k, :, rows, columns] += 1.0
    return pixels, labels


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
