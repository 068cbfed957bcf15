"""Second moments of all patches of small maps, from products of pixels instead of patches.

Where all places of a small map are looked at, patches hold each pixel many times. With G_qr the products of the
channels of two pixels, summed over samples, and q(p, k) the pixel under place k of the kernel at output p,

    (XᵀX)_kl = sum over p of G_{q(p, k), q(p, l)}

For a 3x3 kernel on a 4x4 map that are 106 products of C x C numbers a sample where patches take 648. Products and
sums of few are made in the precision of the maps, the sums over blocks of samples in double precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.nn.modules.conv import _ConvNd

from secateur._protocols import IntArray
from secateur.statistics.patches import BLOCK, EXACT
from secateur.statistics.samples import PatchSums

#: How many times fewer products there must be.
_FEWER = 2.0


class MapSums:
    """What `PatchSums` holds of a convolution, from whole maps of its inputs."""

    def __init__(self, layer: Any, maps: torch.Tensor) -> None:
        """layer: not grouped. maps: the first, [samples, channels, ...]; channels may be fewer than the layer reads."""
        self._table = _pixels(layer, tuple(maps.shape[2:]))  # [outputs' places, kernel's places], -1: padding
        pairs = sorted({(q, r) for row in self._table for q, r in itertools.product(row, row) if 0 <= q <= r})
        self._with = [np.array([r for p, r in pairs if p == q]) for q in range(int(maps[0, 0].numel()))]
        self._at = {pair: place for place, pair in enumerate(pairs)}
        self._channels = maps.shape[1]
        self._pairs: torch.Tensor | None = None
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._numbers = 0
        self._sums: PatchSums | None = None

    @property
    def pays(self) -> bool:
        """Whether there are so many fewer products than of patches that it is worth the while."""
        places, kernel = self._table.shape
        fewer = _FEWER * len(self._at) < places * kernel**2 / 2
        return bool(kernel * self._channels > EXACT) and fewer

    @property
    def seen(self) -> bool:
        """Whether there was any sample."""
        return bool(self._waiting) or self._sums is not None

    def add(self, maps: torch.Tensor, wanted: torch.Tensor) -> None:
        """Follow maps [samples, channels, ...] and answers [samples · places, outputs]."""
        pixels = maps.flatten(2).permute(2, 0, 1)  # pixels, samples, channels
        self._waiting.append((pixels, wanted.unflatten(0, (len(maps), -1)).transpose(0, 1)))
        self._numbers += pixels.numel()
        if self._numbers > BLOCK:
            self._settle()

    def _settle(self) -> None:
        """Add up what waits: few large products."""
        pixels, wanted = (torch.cat([one[k] for one in self._waiting], 1) for k in (0, 1))
        self._waiting, self._numbers = [], 0
        count, outputs = self._channels, wanted.shape[2]
        if self._sums is None:
            self._sums = PatchSums(1, count * self._table.shape[1], outputs, pixels.device)
        found = pixels.new_empty(len(self._at), count, count)
        place = 0
        for q, others in enumerate(self._with):
            many = pixels[torch.from_numpy(others)]
            torch.matmul(pixels[q].T, many, out=found[place : place + len(others)])
            place += len(others)
        self._pairs = found if self._pairs is None else self._pairs.double().add_(found)
        sums = self._sums
        x, xy = sums.x.view(count, -1), sums.xy.view(count, -1, outputs)
        for k, under in enumerate(self._table.T):
            seen = torch.from_numpy(np.flatnonzero(under >= 0))
            rows = pixels[torch.from_numpy(under[under >= 0])].flatten(0, 1)
            xy[:, k] += rows.T @ wanted[seen].flatten(0, 1)
            x[:, k] += rows.sum(0, dtype=torch.float64)
        sums.y += wanted.sum((0, 1), dtype=torch.float64)
        sums.yy += float(wanted.square().sum(dtype=torch.float64))
        sums.count += wanted.shape[0] * wanted.shape[1]

    def sums(self) -> PatchSums:
        """The moments of all patches."""
        if self._waiting:
            self._settle()
        assert self._pairs is not None
        assert self._sums is not None
        count, kernel = self._channels, self._table.shape[1]
        xx = self._sums.xx.view(count, kernel, count, kernel)
        for k, m in itertools.combinations_with_replacement(range(kernel), 2):
            block = self._pairs.new_zeros(count, count)
            for q, r in self._table[:, [k, m]].tolist():
                if q >= 0 and r >= 0:
                    block += self._pairs[self._at[q, r]]
            xx[:, k, :, m] = block
            xx[:, m, :, k] = block.T
        return self._sums


def map_sums(
    layer: Any, blocks: Iterable[tuple[torch.Tensor, torch.Tensor]], first: torch.Tensor, *, halves: bool
) -> PatchSums:
    """The moments of maps and answers, block after block, as `PatchSums.of`. first: like the first maps."""
    sums = [MapSums(layer, first) for _ in range(1 + halves)]
    before = 0
    for maps, wanted in blocks:
        places = len(wanted) // len(maps)
        for parity, one in enumerate(sums):
            begin = (parity + before) % len(sums)
            every = slice(begin, None, len(sums))
            if len(maps[every]):
                one.add(maps[every], wanted.unflatten(0, (-1, places))[every].flatten(0, 1))
        before += len(maps)
    return PatchSums.joined([one.sums() for one in sums if one.seen])


def _pixels(layer: _ConvNd, sizes: tuple[int, ...]) -> IntArray:
    """The pixel of the input that every place of the kernel meets at every place of the output; -1: padding."""
    axes = []
    around = layer._reversed_padding_repeated_twice
    for axis, size in enumerate(sizes):
        kernel, step, spread = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
        begin, end = around[-2 * axis - 2], around[-2 * axis - 1]
        outputs = (size + begin + end - spread * (kernel - 1) - 1) // step + 1
        at = np.arange(outputs)[:, None] * step + np.arange(kernel) * spread - begin
        axes.append(np.where((at >= 0) & (at < size), at, -1))
    table = axes[0]
    for along, size in zip(axes[1:], sizes[1:], strict=True):
        outer, inner = table[:, None, :, None], along[None, :, None, :]
        both = np.where((outer >= 0) & (inner >= 0), outer * size + inner, -1)
        table = both.reshape(table.shape[0] * along.shape[0], -1)
    return table
