"""The images that methods and repairs learn from: some of the training set, without augmentation, always the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from secateur.training.interface import Split


class Calibration:
    """The first images of a split in an order of their own; every iteration begins anew."""

    def __init__(self, split: Split, images: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.split, self.images, self.seed, self.device = split, images, seed, device
        self.size = min(batch_size, images)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = self.split.batches(self.size, shuffle=True, seed=self.seed)
        for number, (pixels, labels) in enumerate(itertools.islice(batches, -(-self.images // self.size))):
            left = self.images - number * self.size
            yield pixels[:left].to(self.device), labels[:left].to(self.device)
