"""A few random places of what layers read and answer, and the least squares that fits a layer to given answers.

    patches X [N, groups, columns], answers Y [N, outputs]       at `positions` places of every sample, or more
    moments   XᵀX, XᵀY, ΣX, ΣY, ΣY²                              sums in double precision
    W + D     D = argmin |Y - X(W + D)ᵀ - c|² / N + r |D|²       on the columns that stay; c is a constant

Places are drawn with replacement for every sample from (seed, number of the sample), the same shares of height and
width at every layer, so that no batch size matters; a map that has no more of them is seen whole.
Of few samples more places are drawn, until there are `per_column` patches for each column of a layer: fewer than one
fit any answer, and nothing else. As patches of one sample are alike, the pull r is then chosen, too: the one with which
what every other sample fits is best for the others.
Memory: the moments of one layer, 8 · columns² bytes (170 MB for 512 channels and a 3x3 kernel), three times that of few
samples, and the patches of one batch, or of as many of its samples as make `BLOCK` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.errors import InputError
from secateur.statistics.narrow import taken
from secateur.statistics.patches import BLOCK, EXACT, padded, strips

#: Pulls that are tried on halves of few samples, besides the one that is set.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: The least pull with which more than `EXACT` columns are solved for in single precision, where fits are compared.
_SINGLE = 1e-5


def readable(layer: nn.Module) -> bool:
    """Whether patches of what this layer reads can be taken."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd))


@dataclass(frozen=True)
class Places:
    """Which places of a layer's output are looked at: along every axis of it, [rows, places]."""

    axes: tuple[torch.Tensor, ...]
    rows: int

    def parts(self, numbers: int) -> Iterator[tuple[slice, Places]]:
        """So many rows at a time that their patches make up `BLOCK` numbers or less. numbers: of one patch."""
        each = max(1, BLOCK // (numbers * math.prod(self.axes[0].shape[1:] if self.axes else ())))
        for begin in range(0, self.rows, each):
            part = slice(begin, min(begin + each, self.rows))
            yield part, Places(tuple(axis[part] for axis in self.axes), part.stop - begin)

    def values(self, output: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
        """The values [rows · places, channels] there of a tensor of the output's shape."""
        if not self.axes:
            return output.reshape(self.rows, -1)
        row = torch.arange(self.rows, device=output.device)[:, None]
        moved = output if channels_last else output.movedim(1, -1)
        return moved[(row, *self.axes)].flatten(0, 1)


class Sampler:
    """Draws places for one layer after another, the same for every model.

    samples: in each batch. positions: places of one sample, at least. per_column: patches for each column of a layer,
    if maps have so many places. layers: all that will be looked at.
    """

    def __init__(
        self,
        samples: Sequence[int],
        positions: int,
        seed: int,
        *,
        per_column: int = 0,
        layers: Iterable[nn.Module] = (),
    ) -> None:
        generator = np.random.default_rng(seed)  # numbers come sample by sample, however these are batched
        self.positions, self._share = positions, per_column / max(sum(samples), 1)
        most = max((self._wanted(layer) for layer in layers), default=positions)
        self._drawn = [torch.from_numpy(generator.random((count, most, 3))) for count in samples]

    def few(self, layer: Any, x: torch.Tensor) -> int:
        """Patches of every row of `x`, which this layer reads, if samples are few for its columns; else 0."""
        wanted = self._wanted(layer)
        return min(wanted, math.prod(_sizes(layer, x))) if wanted > self.positions else 0

    def _wanted(self, layer: Any) -> int:
        """Places of every sample for this layer."""
        columns: int = layer.weight[0].numel()
        return max(self.positions, math.ceil(self._share * columns))

    def whole(self, layer: nn.Module, x: torch.Tensor) -> bool:
        """Whether all places of a map are looked at."""
        sizes = _sizes(layer, x)
        return bool(sizes) and math.prod(sizes) <= self._wanted(layer)

    def places(self, layer: nn.Module, batch: int, x: torch.Tensor) -> Places:
        """The places of one batch for a layer that reads `x`."""
        sizes = _sizes(layer, x)
        total, rows = math.prod(sizes), len(x)
        if not sizes:
            return Places((), rows)
        count = self._wanted(layer)
        if total <= count:
            grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(total, len(sizes))
            return Places(tuple(axis.expand(rows, -1).to(x.device) for axis in grid.unbind(1)), rows)
        drawn = self._drawn[batch][:, :count]
        owner = torch.arange(rows) * len(drawn) // rows  # windows or tokens in rows of their own: sample by sample
        axes = [(drawn[owner, :, k] * size).long().to(x.device) for k, size in enumerate(sizes)]
        return Places(tuple(axes), rows)


def _sizes(layer: Any, x: torch.Tensor) -> tuple[int, ...]:
    """Places along every axis of the output."""
    if isinstance(layer, nn.Linear):
        return tuple(x.shape[1:-1])
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    around = layer._reversed_padding_repeated_twice
    both = [around[2 * k] + around[2 * k + 1] for k in range(len(reach))][::-1]
    sizes = zip(x.shape[2:], both, reach, layer.stride, strict=True)
    return tuple((size + more - far) // step + 1 for size, more, far, step in sizes)


def patches_at(layer: Any, x: torch.Tensor, places: Places, inputs: torch.Tensor | None = None) -> torch.Tensor:
    """What a layer's weights are multiplied with there: [N, groups, columns], columns as in `weight.flatten(1)`.

    inputs: of a layer that is not grouped, those that are looked at (a mask); None: all.
    """
    if isinstance(layer, nn.Linear):
        values = places.values(x, channels_last=True)
        return (values if inputs is None else values[:, inputs])[:, None]
    x = padded(layer, x if inputs is None else taken(x, 1, inputs.nonzero().squeeze(1)))
    dims = len(layer.kernel_size)
    index: list[Any] = [torch.arange(len(x), device=x.device).view(-1, *[1] * (dims + 1)), slice(None)]
    for axis, (kernel, step, spread) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        offset = torch.arange(kernel, device=x.device) * spread
        shape = [-1 if k == axis else 1 for k in range(dims)]
        begin = (places.axes[axis] * step)[(..., *[None] * dims)]
        index.append(begin + offset.view(shape))
    block = x[tuple(index)]  # images, places, kernel..., channels: what is indexed comes first
    block = block.movedim(-1, 2).flatten(0, 1).flatten(2)
    return block.reshape(len(block), layer.groups, -1)


def answers(layer: Any, seen: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What a layer answers [N, outputs] to patches [N, groups, columns]."""
    groups = seen.shape[1]
    matrix = weight.flatten(1).unflatten(0, (groups, -1))  # groups, outputs / groups, columns
    result: torch.Tensor = torch.bmm(seen.transpose(0, 1), matrix.mT.to(seen)).transpose(0, 1).flatten(1)
    return result if bias is None else result + bias.to(result)


class PatchSums:
    """Sums over N places of one layer. Blocks of a grouped convolution are kept apart."""

    def __init__(self, groups: int, columns: int, outputs: int, device: torch.device) -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._xx, self._mirrored = zeros(groups, columns, columns), True  # added to from its diagonal on
        self.xy = zeros(groups, columns, outputs // groups)
        self.x = zeros(groups, columns)
        self.y = zeros(groups, outputs // groups)
        self.yy = 0.0
        self.count = 0.0
        self.halves: tuple[PatchSums, PatchSums] | None = None  # of every other sample, where they are few

    @property
    def xx(self) -> torch.Tensor:
        """XᵀX [groups, columns, columns]."""
        if not self._mirrored:
            for start, stop in strips(self._xx.shape[1]):
                self._xx[:, stop:, start:stop] = self._xx[:, start:stop, stop:].mT
            self._mirrored = True
        return self._xx

    def add(self, seen: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Follow patches [N, groups, columns] and answers [N, outputs]; weights [N]: how often each counts."""
        wide = seen.shape[2] > EXACT and seen.dtype == torch.float32
        x = (seen if wide else seen.double()).transpose(0, 1)
        y = wanted.to(x.dtype).unflatten(1, (len(x), -1)).transpose(0, 1)
        often = None if weights is None else weights.to(x)[:, None]
        ax, ay = (x, y) if often is None else (x * often, y * often)
        for start, stop in strips(x.shape[2]):
            self._xx[:, start:stop, start:] += ax[:, :, start:stop].mT @ x[:, :, start:]
        self._mirrored = False
        self.xy += ax.mT @ y
        self.x += ax.sum(1, dtype=torch.float64)
        self.y += ay.sum(1, dtype=torch.float64)
        self.yy += float((ay * y).sum(dtype=torch.float64))
        self.count += x.shape[1] if weights is None else float(weights.sum(dtype=torch.float64))

    def merge(self, other: PatchSums) -> None:
        """Follow all that another has seen."""
        for mine, theirs in ((self._xx, other._xx), (self.xy, other.xy), (self.x, other.x), (self.y, other.y)):
            mine += theirs
        self._mirrored = self._mirrored and other._mirrored
        self.yy += other.yy
        self.count += other.count

    @classmethod
    def of(cls, blocks: Iterable[tuple[torch.Tensor, torch.Tensor]], each: int = 0) -> PatchSums:
        """The moments of patches and answers, block after block. each: patches of a sample, for `halves`; 0: none."""
        found: PatchSums | None = None
        before = 0  # samples
        for seen, wanted in blocks:
            if found is None:
                shape = (seen.shape[1], seen.shape[2], wanted.shape[1], seen.device)
                found = cls(*shape)
                found.halves = (cls(*shape), cls(*shape)) if each else None
            if found.halves is None:
                found.add(seen, wanted)
                continue
            for parity, half in enumerate(found.halves):
                mine = (before + torch.arange(len(seen), device=seen.device) // each) % 2 == parity
                half.add(seen[mine], wanted[mine])
            before += len(seen) // each
        assert found is not None  # there is no stop without a batch
        return (found if found.halves is None else cls.joined(found.halves)).finite()

    @classmethod
    def joined(cls, halves: Sequence[PatchSums]) -> PatchSums:
        """The moments of all of these together; of two, they are its halves."""
        if len(halves) == 1:
            return halves[0].finite()
        first = halves[0]
        found = cls(len(first.xx), first.xx.shape[1], first.y.numel(), first.xx.device)
        for half in halves:
            found.merge(half)
        found.halves = (halves[0], halves[1])
        return found.finite()

    def finite(self) -> PatchSums:
        """These sums; InputError where they are no numbers."""
        if not math.isfinite(self.yy) or not bool(torch.isfinite(self._xx.diagonal(dim1=1, dim2=2)).all()):
            raise InputError("What a layer reads or answers is not finite: check the images and the weights.")
        return self

    def covariances(self, *, constant: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """XᵀX/N and XᵀY/N; with a constant, around the means."""
        xx, xy = self.xx / self.count, self.xy / self.count
        if constant:
            mean, wanted = self.x / self.count, self.y / self.count
            xx = xx - mean[:, :, None] * mean[:, None]
            xy = xy - mean[:, :, None] * wanted[:, None]
        return xx, xy

    def energy(self, *, constant: bool) -> float:
        """|Y|² / N; with a constant, around the mean."""
        mean = float((self.y / self.count).square().sum()) if constant else 0.0
        return self.yy / self.count - mean

    def error(self, weight: torch.Tensor, constant: torch.Tensor | None = None) -> float:
        """|Y - XWᵀ - c|² / N for weights [outputs, columns] (W as `weight.flatten(1)`)."""
        w = weight.double().unflatten(0, (len(self.xx), -1))
        quadratic = torch.einsum("goc,gcd,god->", w, self.xx, w) - 2 * torch.einsum("goc,gco->", w, self.xy)
        total = self.yy + float(quadratic)
        if constant is not None:
            c = constant.double().view_as(self.y)
            cross = torch.einsum("goc,gc->go", w, self.x) - self.y
            total += float(2 * (c * cross).sum() + self.count * c.square().sum())
        return total / self.count


class Fit:
    """Least squares of one layer, on the columns that stay, made ready once for any ridge.

    With A = XᵀX / N and B = XᵀY / N - A Wᵀ, around the means where there is a constant, D solves (A + r I) Dᵀ = B.
    """

    def __init__(
        self, moments: PatchSums, weight: torch.Tensor, kept: torch.Tensor, *, constant: bool, compared: bool = False
    ) -> None:
        """See `least_squares`. compared: with others of its kind alone, for which less precision will do."""
        groups = len(moments.x)
        self._moments, self._constant = moments, constant
        self._index = [stays.nonzero().squeeze(1) for stays in kept.expand(groups, -1)]
        every = weight.double().unflatten(0, (groups, -1))
        self._before = [every[g][:, index].T for g, index in enumerate(self._index)]
        self._like = every
        self._square, self._right = [], []
        for g, before in enumerate(self._before):
            square, right = self._covariance(g)
            if compared and len(square) > EXACT:
                square, right, before = square.float(), right.float(), before.float()
            self._square.append(square)
            self._right.append(right.addmm_(square, before, alpha=-1.0))

    def _covariance(self, g: int) -> tuple[torch.Tensor, torch.Tensor]:
        """XᵀX / N and XᵀY / N of one group."""
        m, index = self._moments, self._index[g]
        xx = m.xx[g] if len(index) == m.x.shape[1] else m.xx[g][index][:, index]
        square, right = xx / m.count, m.xy[g][index] / m.count
        if self._constant:
            mean = m.x[g][index] / m.count
            square.addr_(mean, mean, alpha=-1.0)
            right.addr_(mean, m.y[g] / m.count, alpha=-1.0)
        return square, right

    def changes(self, ridge: float) -> list[torch.Tensor]:
        """Dᵀ of every group. ridge: a share of the mean of A's diagonal."""
        pairs = zip(self._square, self._right, strict=True)
        return [_solved(square, right, ridge) if len(square) else right for square, right in pairs]

    def weights(self, changes: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """W + D [outputs, columns], zero where columns go, and the constant [outputs]."""
        result, m = torch.zeros_like(self._like), self._moments
        for g, change in enumerate(changes):
            result[g][:, self._index[g]] = (self._before[g] + change).T
        shift = torch.zeros_like(m.y)
        if self._constant:
            shift = (m.y - torch.einsum("goc,gc->go", result, m.x)) / m.count
        return result.flatten(0, 1), shift.flatten()

    def rise(self, changes: Sequence[torch.Tensor], shown: Fit) -> float:
        """|Y - X(W + D)ᵀ - c|² / N less what it is for D = 0 and the best c. shown: what D and c were found with."""
        total = 0.0
        for g, change in enumerate(changes):
            quadratic = (self._square[g] @ change).sub_(self._right[g], alpha=2.0)
            total += float(quadratic.mul_(change).sum(dtype=torch.float64))
            if self._constant:
                apart = self._means(g, change) - shown._means(g, change)
                total += float(apart.square().sum())
        return total

    def _means(self, g: int, change: torch.Tensor) -> torch.Tensor:
        """The best constant of one group."""
        m = self._moments
        means: torch.Tensor = (m.y[g] - m.x[g][self._index[g]] @ (self._before[g] + change)) / m.count
        return means


def least_squares(
    moments: PatchSums, weight: torch.Tensor, kept: torch.Tensor, *, ridge: float, constant: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights [outputs, columns] on the columns that stay, and the constant [outputs], nearest to the answers.

    Args:
        weight: [outputs, columns] as they are. What the data say nothing about stays so: the ridge, a share of the
            mean of the diagonal, pulls towards them and not towards zero.
        kept: [groups, columns] or [columns]. constant: whether there is one (else it is zero).
    """
    fit = Fit(moments, weight, kept, constant=constant)
    return fit.weights(fit.changes(ridge))


def ridge_for(moments: PatchSums, weight: torch.Tensor, kept: torch.Tensor, *, ridge: float, constant: bool) -> float:
    """The ridge as it is set; where samples are few, that of several with which one half of them fits the other best.

    As `least_squares`. With a larger ridge the error falls and then rises: it is followed down from the middle.
    """
    if moments.halves is None or not all(half.count for half in moments.halves):
        return ridge
    shown, held = (Fit(half, weight, kept, constant=constant, compared=True) for half in moments.halves)
    tried = (ridge, *(one for one in _RIDGES if one > ridge))

    @cache
    def error(place: int) -> float:
        return held.rise(shown.changes(tried[place]), shown)

    place = (len(tried) - 1) // 2
    while place + 1 < len(tried) and error(place + 1) < error(place):
        place += 1
    while place and error(place - 1) <= error(place):
        place -= 1
    return tried[place]


def _solved(square: torch.Tensor, right: torch.Tensor, ridge: float) -> torch.Tensor:
    """(square + r I)⁻¹ right with r a share of the mean of the diagonal, raised until the factorisation succeeds."""
    mean = float(square.diagonal().mean(dtype=torch.float64))
    if square.dtype == torch.float32 and ridge < _SINGLE:
        return _solved(square.double(), right.double(), ridge).float()
    if mean <= 0:
        return torch.zeros_like(right)  # inputs that are always zero
    if ridge == 0:
        exact: torch.Tensor = torch.linalg.pinv(square, hermitian=True) @ right
        return exact
    while True:
        damped = square.clone()
        damped.diagonal().add_(ridge * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            solved: torch.Tensor = torch.cholesky_solve(right, factor)
            return solved
        ridge *= 10
