"""What a layer's weights are multiplied with, as the columns of bounded blocks, and the products of such blocks.

The input patches of a convolution at 224 pixels would fill gigabytes at once; nothing here holds more than a few
million numbers of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

#: Numbers in one block of patches: large enough for the matrix product to run at full speed.
BLOCK = 1 << 23
#: Columns up to which products are made in double precision; wider ones are summed in it, block by block.
EXACT = 1024


def strips(n: int) -> Iterator[tuple[int, int]]:
    """Rows of a symmetric matrix in strips, each of which is taken from its diagonal on: about half of all of it."""
    each = n if n < 128 else -(-n // 8)
    return ((start, min(start + each, n)) for start in range(0, n, each))


def add_square(total: torch.Tensor, block: torch.Tensor, scale: float) -> None:
    """total += scale · block · blockᵀ for [units, n, n] and [units, n, length]; the upper triangle only.

    A block in less precision is multiplied in its own.
    """
    for start, stop in strips(block.shape[1]):
        if block.dtype != total.dtype:
            total[:, start:stop, start:] += scale * (block[:, start:stop] @ block[:, start:].mT)
        elif len(total) == 1:
            total[0, start:stop, start:].addmm_(block[0, start:stop], block[0, start:].T, alpha=scale)
        else:
            total[:, start:stop, start:].baddbmm_(block[:, start:stop], block[:, start:].mT, alpha=scale)


def mirrored(upper: torch.Tensor) -> torch.Tensor:
    """The symmetric matrices whose upper triangles these are."""
    return upper.triu() + upper.triu(1).mT


class Lattice:
    """Which output positions of a layer are looked at: every `step`-th in each dimension, from `start` on.

    Positions are drawn by drawing `start`; what is seen counts `scale` = Π step times, so that sums are unbiased.
    """

    def __init__(self, sizes: Sequence[int], most: int | None, draw: Sequence[float]) -> None:
        total = math.prod(sizes)
        step = 1 if most is None or total <= most else math.ceil((total / most) ** (1 / len(sizes)) - 1e-9)
        self.sizes, self.total = tuple(sizes), total
        self.step = tuple(min(step, size) for size in sizes)
        self.start = tuple(int(draw[k % len(draw)] * s) for k, s in enumerate(self.step))
        self.seen = tuple(len(range(a, n, s)) for a, n, s in zip(self.start, sizes, self.step, strict=True))
        self.scale = float(math.prod(self.step))

    def slices(self, first: tuple[int, int] | None = None) -> tuple[slice, ...]:
        """Into an output's positions; `first`: only these of the seen ones along the first dimension."""
        low, high = first or (0, self.seen[0] if self.seen else 1)
        result = [slice(a, None, s) for a, s in zip(self.start, self.step, strict=True)]
        if result:
            result[0] = slice(self.start[0] + low * self.step[0], self.start[0] + high * self.step[0], self.step[0])
        return tuple(result)


def blocks(images: int, lattice: Lattice, rows: int) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Images, and seen positions along the first dimension, of one block after another, for columns of `rows`."""
    first, rest = (lattice.seen[0], math.prod(lattice.seen[1:])) if lattice.seen else (1, 1)
    each = max(BLOCK // max(rows * rest, 1), 1)  # rows of positions in a block
    if each >= first:
        size = each // first
        yield from ((slice(a, a + size), (0, first)) for a in range(0, images, size))
        return
    for image in range(images):
        yield from ((slice(image, image + 1), (a, min(a + each, first))) for a in range(0, first, each))


def patches(module: nn.Module, x: torch.Tensor, lattice: Lattice, groups: int) -> Iterator[torch.Tensor]:
    """Blocks [groups, columns + 1, length] of the patches behind the seen positions; the last row is one.

    Columns are those of `weight.flatten(1)`: input channel, then place in the kernel.
    """
    if not isinstance(module, _ConvNd):
        flat = x.reshape(-1, *lattice.sizes, x.shape[-1])
        for images, first in blocks(len(flat), lattice, flat.shape[-1] + 1):
            part = flat[(images, *lattice.slices(first))].reshape(-1, x.shape[-1])
            yield F.pad(part, (0, 1), value=1.0).T[None]
        return
    x = _reaching(module, padded(module, x), lattice.sizes)
    kernel, channels = module.kernel_size, x.shape[1] // groups
    places = list(itertools.product(*(range(k) for k in kernel)))
    for images, first in blocks(len(x), lattice, groups * (channels * len(places) + 1)):
        part = x[images].unflatten(1, (groups, channels)).movedim(0, 2)  # groups, channels, images, ...
        seen = (len(part[0, 0]), first[1] - first[0], *lattice.seen[1:])
        block = part.new_empty(groups, channels * len(places) + 1, math.prod(seen))
        block[:, -1] = 1.0
        columns = block[:, :-1].unflatten(1, (channels, len(places))).unflatten(3, seen)
        for k, place in enumerate(places):
            columns[:, :, k] = part[(..., *_behind(module, lattice, place, first))]
        yield block


def padded(module: _ConvNd, x: torch.Tensor) -> torch.Tensor:
    """The input as the kernel meets it."""
    amounts = module._reversed_padding_repeated_twice
    if not any(amounts):
        return x
    return F.pad(x, amounts, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)


def _reaching(module: _ConvNd, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The padded input, with zeros around it where the layer made more outputs of it than that allows ("same" padding:
    as many on both sides, the odd one behind)."""
    amounts: list[int] = []
    for axis, size in reversed(list(enumerate(sizes))):
        reach = (size - 1) * module.stride[axis] + (module.kernel_size[axis] - 1) * module.dilation[axis] + 1
        short = max(reach - x.shape[2 + axis], 0)
        amounts += [short // 2, short - short // 2]
    return F.pad(x, amounts) if any(amounts) else x


def _behind(module: _ConvNd, lattice: Lattice, place: Sequence[int], first: tuple[int, int]) -> tuple[slice, ...]:
    """Where the seen outputs find the input that one place of the kernel is multiplied with."""
    result = []
    for axis, at in enumerate(place):
        low, high = first if axis == 0 else (0, lattice.seen[axis])
        step = lattice.step[axis] * module.stride[axis]
        begin = (lattice.start[axis] + low * lattice.step[axis]) * module.stride[axis] + at * module.dilation[axis]
        result.append(slice(begin, begin + (high - low - 1) * step + 1, step))
    return tuple(result)


def slopes(gradient: torch.Tensor, lattice: Lattice, groups: int, *, conv: bool) -> Iterator[torch.Tensor]:
    """Blocks [groups, outputs, length] of a layer's output gradients at the seen positions."""
    if not conv:
        flat = gradient.reshape(-1, *lattice.sizes, gradient.shape[-1])
        for images, first in blocks(len(flat), lattice, flat.shape[-1]):
            yield flat[(images, *lattice.slices(first))].reshape(-1, flat.shape[-1]).T[None]
        return
    for images, first in blocks(len(gradient), lattice, gradient.shape[1]):
        part = gradient[(images, slice(None), *lattice.slices(first))]
        yield part.flatten(2).unflatten(1, (groups, -1)).movedim(0, 2).flatten(2)
