"""Sums over an epoch; on a GPU they are kept there and read only now and then, as reading waits for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_EVERY = 16  # steps between two readings on a GPU


class Tally:
    """The task's loss and headline, summed over the samples of the epoch so far, and the first loss not finite."""

    def __init__(self, device: torch.device, values: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
        self.loss, self.headline, self.images = map(float, values)
        self.bad_step: int | None = None
        self._waits = device.type != "cpu"
        if self._waits:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._sums = torch.tensor(list(values[:2]), dtype=dtype, device=device)
            self._bad = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, numbers: torch.Tensor, images: int, step: int) -> None:
        """Follow one step with numbers [loss, headline], both sums over its samples."""
        self.images += images
        if self._waits:
            self._sums += numbers
            self._bad = torch.where((self._bad < 0) & ~torch.isfinite(numbers[0]), step, self._bad)
            return
        loss, headline = numbers.tolist()
        if self.bad_step is None and not math.isfinite(loss):
            self.bad_step = step
        self.loss, self.headline = self.loss + loss, self.headline + headline

    def due(self, step: int) -> bool:
        """Whether the sums should be read after this step; the same in all processes."""
        return not self._waits or step % _EVERY == 0

    def read(self) -> None:
        """Bring loss, headline and the bad step up to date."""
        if self._waits:
            self.loss, self.headline = self._sums.tolist()
            bad = int(self._bad)
            self.bad_step = bad if bad >= 0 else None

    @property
    def values(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self.loss, self.headline, self.images]

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.images, 1.0)

    @property
    def mean_headline(self) -> float:
        return self.headline / max(self.images, 1.0)
