"""Second moments of all patches of small maps, from products of pixels instead of patches.

Where all places of a small map are looked at, patches hold each pixel many times. With G_qr the products of the
channels of two pixels, summed over samples, and q(p, k) the pixel under place k of the kernel at output p,

    (XᵀX)_kl = sum over p of G_{q(p, k), q(p, l)}

For a 3x3 kernel on a 4x4 map that are 106 products of C x C numbers a sample where patches take 648. Pairs of pixels
that serve the same (k, l) are multiplied as one. Products are made in the precision of the maps, the sums over blocks
of samples in double precision.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.modules.conv import _ConvNd

from secateur._protocols import IntArray
from secateur.statistics.patches import BLOCK, EXACT
from secateur.statistics.samples import PatchSums

#: Output positions up to which pixels are multiplied: to list the pairs of a large map's takes longer than to multiply.
MOST_PLACES = 1024
#: How many times fewer products there must be.
_FEWER = 2.0
Places = tuple[int, int]  # of the kernel, the first not behind the second
Run = tuple[int, int, int]  # a pixel, another one, and how many pixels on they go together


class PixelProducts:
    """Which products of pixels the second moments of a convolution's patches are made of.

    table: the pixel under every place of the kernel [places of the output, places of the kernel]; -1: padding.
    always: places of the kernel that never meet padding. count: how many products.
    """

    def __init__(self, layer: _ConvNd, sizes: tuple[int, ...]) -> None:
        """layer: not grouped, padded with zeros. sizes: of the map that it reads."""
        self.sizes, self.table = sizes, _pixels(layer, sizes)
        self.always = (self.table >= 0).all(0)
        serves: defaultdict[tuple[int, int], list[Places]] = defaultdict(list)
        for row in self.table.tolist():
            for k, m in itertools.combinations_with_replacement(range(len(row)), 2):
                if row[k] >= 0 and row[m] >= 0:
                    serves[row[k], row[m]].append((k, m))
        together: defaultdict[tuple[Places, ...], list[tuple[int, int]]] = defaultdict(list)
        for pair, served in serves.items():
            together[tuple(served)].append(pair)
        self.count = len(serves)
        self._runs = [(served, list(_runs(pairs))) for served, pairs in together.items()]

    @property
    def pays(self) -> bool:
        """Whether there are so many fewer products than of patches that it is worth the while."""
        places, kernel = self.table.shape
        return bool(_FEWER * self.count < places * kernel**2 / 2)

    def squares(self, pixels: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(XᵀX)_kl [channels, channels] in float64, for k <= l, summed over samples.

        pixels: [pixels, samples, channels].
        """
        count = pixels.shape[2]
        found: defaultdict[Places, list[torch.Tensor]] = defaultdict(list)
        for served, runs in self._runs:
            product = pixels.new_zeros(count, count)
            for q, r, n in runs:
                product.addmm_(pixels[q : q + n].flatten(0, 1).T, pixels[r : r + n].flatten(0, 1))
            for places in served:
                found[places].append(product)
        for (k, m), products in found.items():
            total = products[0].to(torch.float64, copy=True)
            for product in products[1:]:
                total += product
            yield k, m, total


def _runs(pairs: Iterable[tuple[int, int]]) -> Iterator[Run]:
    """Pairs whose pixels follow each other on both sides, as one."""
    q = r = n = -1
    for first, second in sorted(pairs):
        if (first, second) == (q + n, r + n):
            n += 1
            continue
        if n > 0:
            yield q, r, n
        q, r, n = first, second, 1
    yield q, r, n


def by_pixel(maps: torch.Tensor) -> torch.Tensor:
    """[samples, channels, ...] as [pixels, samples, channels], one behind the other in memory."""
    return maps.flatten(2).permute(2, 0, 1).contiguous()


class MapSums:
    """What `PatchSums` holds of a convolution, from whole maps of its inputs."""

    def __init__(self, layer: Any, maps: torch.Tensor) -> None:
        """layer: not grouped. maps: the first, [samples, channels, ...]; channels may be fewer than the layer reads."""
        self._products, self._channels = PixelProducts(layer, tuple(maps.shape[2:])), maps.shape[1]
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._numbers = 0
        self._sums: PatchSums | None = None

    @staticmethod
    def may_pay(layer: Any, maps: torch.Tensor) -> bool:
        """Whether it is worth asking `pays`: patches of few columns are summed in double precision."""
        return maps.shape[1] * layer.weight[0, 0].numel() > EXACT and maps.shape[2:].numel() <= MOST_PLACES

    @property
    def pays(self) -> bool:
        """Whether whole maps are less work than patches."""
        return self._products.pays

    @property
    def seen(self) -> bool:
        """Whether there was any sample."""
        return bool(self._waiting) or self._sums is not None

    def add(self, maps: torch.Tensor, wanted: torch.Tensor) -> None:
        """Follow maps [samples, channels, ...] and answers [samples · places, outputs]."""
        pixels = by_pixel(maps)
        self._waiting.append((pixels, wanted.unflatten(0, (len(maps), -1)).transpose(0, 1)))
        self._numbers += pixels.numel()
        if self._numbers > BLOCK:
            self._settle()

    def _settle(self) -> None:
        """Add up what waits: few large products."""
        pixels, wanted = (torch.cat([one[k] for one in self._waiting], 1) for k in (0, 1))
        self._waiting, self._numbers = [], 0
        count, outputs, kernel = self._channels, wanted.shape[2], self._products.table.shape[1]
        if self._sums is None:
            self._sums = PatchSums(1, count * kernel, outputs, pixels.device)
        sums = self._sums
        xx = sums.xx.view(count, kernel, count, kernel)
        x, xy = sums.x.view(count, -1), sums.xy.view(count, -1, outputs)
        for k, m, square in self._products.squares(pixels):
            xx[:, k, :, m] += square
            if k != m:
                xx[:, m, :, k] += square.T
        for k, under in enumerate(self._products.table.T):
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
        assert self._sums is not None
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
