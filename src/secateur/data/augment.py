"""Augmentations: small pure functions of a batch and of random numbers drawn elsewhere, one frozen row each.

`numbers` is [images, k], uniform in [0, 1). A batch is uint8 until it is normalised, float32 afterwards.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

# The widest range that ImageNet training usually allows: share of the area, and ratio of width to height.
_SMALLEST, _NARROWEST = 0.08, 3 / 4


@dataclass(frozen=True)
class Augmentation:
    """`when` is "reading" (before the image has its size), "pixels" (uint8) or "normalised" (0 is the mean colour).

    opened: of one for reading: the same on an image as Pillow has it, with its [1, k] numbers and the size to make it.
    """

    name: str
    summary: str
    numbers: int
    when: Literal["reading", "pixels", "normalised"]
    function: Callable[[Tensor, Tensor], Tensor]
    opened: Callable[[Any, Tensor, tuple[int, int]], Any] | None = None


def crop(images: Tensor, numbers: Tensor, padding: int = 4) -> Tensor:
    """Each image moved by up to `padding` pixels in both directions; black comes in from outside."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    top, left = (numbers * (2 * padding + 1)).long().unbind(1)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [n, C, 2p+1, 2p+1, H, W], without a copy
    return windows[torch.arange(count), :, top, left]


def shift(images: Tensor, numbers: Tensor) -> Tensor:
    """Each image moved by up to one pixel: `crop` for images of a few pixels."""
    return crop(images, numbers, padding=1)


def flip(images: Tensor, numbers: Tensor) -> Tensor:
    """Every other image, by chance, mirrored left to right."""
    return torch.where((numbers[:, 0] < 0.5)[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, numbers: Tensor) -> Tensor:
    """A square of half the image's side is set to 0 (DeVries and Taylor 2017); it may reach over the border."""
    height, width = images.shape[-2:]
    side = min(height, width) // 2
    rows = _within(numbers[:, :1], height, side)
    columns = _within(numbers[:, 1:], width, side)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def resized_crop(images: Tensor, numbers: Tensor) -> Tensor:
    """A random part of each image (`crop_boxes`), brought to the size of the whole, bilinear."""
    height, width = images.shape[-2:]
    top, left, tall, wide = crop_boxes(numbers, height, width).unbind(1)
    rows = _places(top, tall, height)[:, :, None].expand(-1, -1, width)
    columns = _places(left, wide, width)[:, None, :].expand(-1, height, -1)
    grid = torch.stack([columns, rows], dim=-1)
    mixed = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return (mixed.round() if images.dtype == torch.uint8 else mixed).to(images.dtype)


def crop_boxes(numbers: Tensor, height: int, width: int) -> Tensor:
    """[n, 4] boxes (top, left, height, width) in pixels: 8% to 100% of the area, ratio 3:4 to 4:3, anywhere.

    Where a box would be larger than the image on one side, that side is the image's (torchvision draws again).
    """
    area = (_SMALLEST + numbers[:, 0] * (1 - _SMALLEST)) * height * width
    side = 2 * numbers[:, 1] - 1
    narrow = 1 - side.abs() * (1 - _NARROWEST)  # no logarithm: its last bit may depend on an image's place in the batch
    ratio = torch.where(side < 0, narrow, 1 / narrow)
    wide = torch.sqrt(area * ratio).clamp(min=1, max=width)
    tall = torch.sqrt(area / ratio).clamp(min=1, max=height)
    return torch.stack([numbers[:, 2] * (height - tall), numbers[:, 3] * (width - wide), tall, wide], dim=1)


def resized_box(image: Any, numbers: Tensor, size: tuple[int, int]) -> Any:
    """`resized_crop` of an image as Pillow has it, from its own pixels."""
    width, height = image.size
    top, left, tall, wide = crop_boxes(numbers, height, width)[0].tolist()
    box = (left, top, min(left + wide, width), min(top + tall, height))
    return image.resize(size[::-1], importlib.import_module("PIL.Image").Resampling.BILINEAR, box=box)


def _within(number: Tensor, length: int, side: int) -> Tensor:
    """[n, length]: whether a pixel lies in the stretch of `side` pixels around a random one."""
    start = (number * length).long() - side // 2
    position = torch.arange(length)
    return (position >= start) & (position < start + side)


def _places(start: Tensor, extent: Tensor, length: int) -> Tensor:
    """[n, length]: where along the input each output pixel looks, from -1 (the first edge) to 1 (the last)."""
    centres = start[:, None] + (torch.arange(length) + 0.5) * (extent[:, None] / length)
    return (centres * (2 / length) - 1).float()


_ROWS = (
    Augmentation("crop", "moved by up to 4 pixels, black comes in", 2, "pixels", crop),
    Augmentation("shift", "moved by up to 1 pixel, black comes in", 2, "pixels", shift),
    Augmentation("flip", "mirrored left to right, every other image", 1, "pixels", flip),
    Augmentation("cutout", "a square of half the side replaced by the mean colour", 2, "normalised", cutout),
    Augmentation(
        "resized_crop",
        "8% to 100% of the area, ratio 3:4 to 4:3, brought to full size",
        4,
        "reading",
        resized_crop,
        resized_box,
    ),
)
#: What may be done to training images, by name.
AUGMENTATIONS = MappingProxyType({row.name: row for row in _ROWS})
