"""A small detector with a feature pyramid, and squares and bars to find: recipe:shapes-detector.

In training its forward takes targets and gives losses, in evaluation it gives boxes, as torchvision's detectors do;
objects are found as the peaks of a map (Zhou et al., Objects as Points, arXiv 1904.07850).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

Target = dict[str, torch.Tensor]
_STRIDE, _FOUND = 4, 4


class Objects(Dataset[tuple[torch.Tensor, Target]]):
    """Noisy images [1, 32, 32] with a square (class 0) and an upright bar (class 1)."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[torch.Tensor, Target]:
        rng = np.random.default_rng(self.first + number)
        image, boxes = 0.1 * rng.standard_normal((32, 32)), []
        for height, width, left in ((8, 8, 0), (12, 4, 16)):
            y, x = rng.integers(1, 32 - height), left + rng.integers(1, 15 - width)
            image[y : y + height, x : x + width] += 1.0
            boxes.append([float(x), float(y), float(x + width), float(y + height)])
        target = {"boxes": torch.tensor(boxes), "labels": torch.tensor([0, 1])}
        return torch.from_numpy(image[None]).float(), target


def _together(samples: list[tuple[torch.Tensor, Target]]) -> tuple[torch.Tensor, list[Target]]:
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


def data(images: int = 128) -> dict[str, DataLoader[Any]]:
    """Loaders, as a project of your own may have them; which images make a batch is decided by the run."""
    return {
        "train": DataLoader(Objects(images), collate_fn=_together),
        "test": DataLoader(Objects(images // 2, 10_000), collate_fn=_together),
    }


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Detector(nn.Module):
    """Two levels of features, the deeper one added to the other, and at every fourth pixel what is centred there."""

    def __init__(self, width: int = 8, classes: int = 2) -> None:
        super().__init__()
        self.fine = nn.Sequential(_block(1, width, 2), _block(width, 2 * width, 2))
        self.coarse = _block(2 * width, 4 * width, 2)
        self.sides = nn.ModuleList([nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(4 * width, 2 * width, 1)])
        self.tower = _block(2 * width, 2 * width)
        self.centres, self.sizes = nn.Conv2d(2 * width, classes, 1), nn.Conv2d(2 * width, 2, 1)
        nn.init.constant_(self.centres.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor, targets: list[Target] | None = None) -> Any:
        fine = self.fine(images)
        coarse = self.sides[1](self.coarse(fine))
        joined = self.tower(self.sides[0](fine) + F.interpolate(coarse, scale_factor=2.0))
        heat, sizes = self.centres(joined), self.sizes(joined)
        return self._losses(heat, sizes, targets) if self.training and targets is not None else _found(heat, sizes)

    def _losses(self, heat: torch.Tensor, sizes: torch.Tensor, targets: list[Target]) -> dict[str, torch.Tensor]:
        wanted, off = torch.zeros_like(heat), []
        for number, target in enumerate(targets):
            low, high = target["boxes"][:, :2], target["boxes"][:, 2:]
            columns, rows = ((low + high) / 2 / _STRIDE).long().unbind(1)
            wanted[number, target["labels"], rows, columns] = 1.0
            off.append((sizes[number, :, rows, columns].T - (high - low) / _STRIDE).abs().mean())
        weights = torch.where(wanted > 0, 8.0, 1.0)
        return {
            "centres": F.binary_cross_entropy_with_logits(heat, wanted, weight=weights),
            "sizes": 0.2 * torch.stack(off).mean() if off else sizes.sum() * 0.0,
        }


def _found(heat: torch.Tensor, sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The highest peaks of every image."""
    heat = heat.sigmoid()
    heat = heat * (heat == F.max_pool2d(heat, 3, 1, 1))
    columns = heat.shape[3]
    scores, places = heat.flatten(1).topk(_FOUND)
    area = heat.shape[2] * columns
    labels, places = places // area, places % area
    both = sizes.flatten(2).gather(2, places[:, None].expand(-1, 2, -1)).transpose(1, 2) * _STRIDE
    centres = (torch.stack([places % columns, places // columns], 2) + 0.5) * _STRIDE
    boxes = torch.cat([centres - both / 2, centres + both / 2], 2)
    return [{"boxes": boxes[n], "labels": labels[n], "scores": scores[n]} for n in range(len(heat))]


def net(width: int = 8) -> Detector:
    """The network of the recipe."""
    return Detector(width)
