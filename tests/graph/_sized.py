"""Blocks of the random networks that hold sizes in code: stated splits, fractions of widths, sizes less a width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def _conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Stated(nn.Module):
    """Halves of a width, told by one attribute that is read twice or once."""

    def __init__(self, width: int, block: Any, bias: bool) -> None:
        super().__init__()
        self.c, self.way = max(block.width // 2, 2), block.extra % 4
        self.into, self.m = _conv(width, 2 * self.c, 1, bias=bias), _conv(self.c, self.c)
        self.back, self.out = _conv(3 * self.c, block.width, 1), block.width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.into(x)
        if self.way == 0:
            a, b = y.split((self.c, self.c), 1)
        elif self.way == 1:
            a, b = torch.split(y, [self.c] * 2, dim=1)
        elif self.way == 2:
            a, b = y[:, : self.c], y[:, self.c :]
        else:
            a, b = y.narrow(1, 0, self.c), y.narrow(1, self.c, self.c)
        return self.back(torch.cat([a, b, self.m(b).relu()], 1))


class Fraction(nn.Module):
    """A fraction of whatever width comes in is shifted, or convolved alone."""

    def __init__(self, width: int, block: Any, bias: bool) -> None:
        super().__init__()
        self.part, self.way, self.out = 2 + block.extra % 3, block.extra % 2, width
        self.fold = width // self.part if width % self.part == 0 else 0
        self.c = _conv(self.fold, self.fold, bias=bias) if self.fold else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.c is None:
            return x
        fold = x.shape[1] // self.part
        if self.way:
            return torch.cat([self.c(x[:, :fold]), x[:, fold:]], 1)
        y = torch.zeros_like(x)
        y[:, :fold, 1:] = x[:, :fold, :-1]
        y[:, fold:] = x[:, fold:]
        return torch.cat([self.c(y[:, :fold]).relu(), y[:, fold:]], 1)


class Less(nn.Module):
    """A shortcut filled up with zeros, as many as an attribute says less the width there is."""

    def __init__(self, width: int, block: Any, bias: bool) -> None:
        super().__init__()
        self.wide, self.way = width + block.width, block.extra % 3
        self.c, self.out = _conv(width, self.wide, bias=bias), self.wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        if self.way == 0:
            more = torch.zeros(b, self.wide - c, h, w)
        elif self.way == 1:
            more = x.new_zeros((b, self.wide - x.size(1), h, w))
        else:
            return self.c(x).relu() + F.pad(x, (0, 0, 0, 0, 0, self.wide - c))
        return self.c(x).relu() + torch.cat([x, more], 1)


SIZED: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (Stated, Fraction, Less)}
