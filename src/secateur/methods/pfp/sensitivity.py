"""Empirical sensitivities: the largest share that a channel has in any output of a layer that reads it.

For one sample, filter i and output position p, with the positive (or negative) weights W and inputs a alone,

    share of channel j = Σ_κ W[i, j, κ] a[j, κ, p] / Σ_j' Σ_κ W[i, j', κ] a[j', κ, p]                    kernel: sum

and s_j is its maximum over samples, filters, positions and the four pairs of signs; with kernel: max the
largest single product κ stands above the line. Beside these maxima stands a channel's share of all that flows into the
layer's sums, over all samples, filters and positions at once. What a layer reads is looked at in blocks of patches.
The shares of one block are never all in memory: it takes `BLOCK` numbers for the patches and `_PIECE` for shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_max, global_sum
from secateur._protocols import FloatArray, IntArray
from secateur.statistics.gather import Collector
from secateur.statistics.patches import Lattice, patches

Kernel = Literal["sum", "max"]

#: Sums that are no larger have no shares: nothing flows there.
NOTHING = 1e-7
#: Shares computed at once: they should stay in a processor's cache.
_PIECE = {"cpu": 1 << 18, "cuda": 1 << 26}
#: Columns of patches taken at once.
_LENGTH = {"cpu": 1 << 10, "cuda": 1 << 13}
#: More than one pair in so many to be looked at: then all are, which is less work for each.
_DENSE = 4
#: Fewer than one pair in so many: then looking at promising ones first would be more work.
_FEW = 32
#: Parts of the positions for which bounds are taken.
_BLOCKS = 32
#: For rounding, in bounds.
_SLACK = 1.0 + 1e-5


class Sensitivities(Collector):
    """s_j of every channel in every layer that reads it, in one pass.

    of: by layer, for each position of its input, [inputs]. flow: likewise, the share of Σ |W| |a| over everything that
    the layer sums up. positions: how many outputs of a filter there are, by layer.
    """

    def __init__(
        self,
        tables: Mapping[str, IntArray],
        *,
        kernel: Kernel = "sum",
        positions: int | None = None,
        draw: float = 0.5,
    ) -> None:
        """tables: the channel at each position of a layer's input, -1: of none.

        positions: most output positions looked at in an image, on a lattice that begins at the share `draw` of its
            step; None: all.
        """
        self.tables, self.kernel, self._most, self._draw = tables, kernel, positions, (draw,)
        self.of: dict[str, torch.Tensor] = {}
        self.flow: dict[str, torch.Tensor] = {}
        self._weighed: dict[str, torch.Tensor] = {}  # Σ |W| over filters, [groups, columns]
        self._inputs: dict[str, torch.Tensor] = {}  # Σ |a| over samples and positions, likewise
        self.positions: dict[str, int] = {}
        self._units: dict[str, list[_Units]] = {}

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hooks on the layers that read channels, save transposed convolutions."""
        for name, table in self.tables.items():
            layer: Any = model.get_submodule(name)
            if not isinstance(layer, _ConvTransposeNd):
                groups = getattr(layer, "groups", 1)
                self._units[name] = _units(table, groups, layer.weight)
                self._weighed[name] = layer.weight.detach().double().abs().unflatten(0, (groups, -1)).sum(1).flatten(1)
                yield layer.register_forward_hook(partial(self._look, name))

    @torch.no_grad()
    def _look(self, name: str, layer: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        x, conv = args[0].detach(), isinstance(layer, _ConvNd)
        shape = output.shape
        if conv and output.dim() == len(layer.kernel_size) + 1:
            x, shape = x[None], output[None].shape
        sizes = shape[2:] if conv else shape[1:-1]
        lattice = Lattice(sizes, self._most, self._draw)
        self.positions[name] = lattice.total
        if name not in self.of:
            self.of[name] = torch.zeros(len(self.tables[name]), dtype=torch.float32, device=x.device)
        weight = layer.weight.detach().float()
        signs = [x.clamp(min=0)] + ([(-x).clamp(min=0)] if bool((x < 0).any()) else [])
        for units in self._units[name]:
            units.read(weight)
        for part in signs:
            for block in patches(layer, part.float(), lattice, getattr(layer, "groups", 1)):
                seen = block[:, :-1].sum(2, dtype=torch.float64)
                self._inputs[name] = self._inputs[name] + seen if name in self._inputs else seen
                for number, units in enumerate(self._units[name]):
                    units.raise_(self.of[name], block[number, :-1], self.kernel)

    def total(self) -> None:
        """The maxima and sums over all processes."""
        self.of = {name: global_max(found) for name, found in sorted(self.of.items())}
        for name in self.of:
            flow = (self._weighed[name] * global_sum(self._inputs[name])).view(len(self.tables[name]), -1).sum(1)
            self.flow[name] = flow / flow.sum().clamp_min(1e-300)

    def channels(self, count: int) -> FloatArray:
        """s [count] of every channel: the largest of all layers that read it."""
        result = np.zeros(count + 1)
        for name, found in self.of.items():
            np.maximum.at(result, self.tables[name], found.double().cpu().numpy())
        return np.minimum(result[:-1], 1.0)  # rounding


class _Units:
    """What one group of a convolution reads as one: the positions of each channel, and all kernel places there.

    Channels with equally many positions are computed together.
    """

    def __init__(self, rows: slice, first: int, sets: list[IntArray], kernel: int) -> None:
        """rows: of the weight. first: position of its first input. sets: positions of channels, each [units, k]."""
        self.rows, self.first = rows, first
        self.sets = [torch.from_numpy(each) for each in sets]
        places = np.arange(kernel)
        self.columns = [torch.from_numpy((each[:, :, None] * kernel + places).reshape(len(each), -1)) for each in sets]
        self._weights: list[tuple[torch.Tensor, list[torch.Tensor]]] = []

    def read(self, weight: torch.Tensor) -> None:
        """Take the positive and the negative weights: [filters, columns], and [filters, units, k] for every set."""
        flat = weight[self.rows].flatten(1)
        self.sets = [each.to(flat.device) for each in self.sets]
        self.columns = [each.to(flat.device) for each in self.columns]
        signed = [flat.clamp(min=0), (-flat).clamp(min=0)]
        self._weights = [(some, [some[:, columns] for columns in self.columns]) for some in signed if some.any()]

    def raise_(self, best: torch.Tensor, block: torch.Tensor, kind: Kernel) -> None:
        """best[position] = max of itself and the share of the channel there. block: patches [columns, length]."""
        device = block.device.type
        for piece in block.split(_LENGTH.get(device, _LENGTH["cuda"]), 1):
            top = piece.amax(0)
            scaled = torch.where(top > 0, piece / top, 0.0)  # shares do not see it, and sums below the line get alike
            for flat, weights in self._weights:
                below = flat @ scaled
                inverse = torch.where(below * top > NOTHING, 1.0 / below, 0.0)  # [filters, length]
                for positions, columns, weight in zip(self.sets, self.columns, weights, strict=True):
                    at = positions + self.first
                    shares = _Shares(scaled, weight, inverse, columns, kind, _PIECE.get(device, _PIECE["cuda"]))
                    best[at] = shares.above(best[at[:, 0]])[:, None]


class _Shares:
    """The shares of many units in all filters and positions of one piece, of which only the largest are computed.

    inputs: [columns, length]; weight: [filters, units, k]; inverse: 1 / sums [filters, length]; columns: [units, k].
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        inverse: torch.Tensor,
        columns: torch.Tensor,
        kind: Kernel,
        most: int,
    ) -> None:
        self.inputs, self.weight, self.inverse, self.columns = inputs, weight.contiguous(), inverse, columns
        self.kind, self.most = kind, most

    def above(self, best: torch.Tensor) -> torch.Tensor:
        """max(best, the largest share) of every unit [units].

        W a R <= W max(a) max(R) with the maxima over positions: pairs of filter and unit for which that is not above
        what is known already need no look. Where many are left, each unit begins with its most promising ones.
        """
        peak = self.inputs.amax(1)[self.columns]
        bound = self._over_places(self.weight * peak) * self.inverse.amax(1)[:, None] * _SLACK
        filters, units = torch.nonzero((bound > best) & (best < 1.0), as_tuple=True)
        if len(units) * _FEW > bound.numel():
            spot = _rows(self.inputs, self.columns).sum(1).argmax(1)
            there = self._over_places(self.weight * self.inputs[self.columns, spot[:, None]]) * self.inverse[:, spot]
            best = torch.maximum(best, there.amax(0))
            best = self._with(best, bound.argmax(0), torch.arange(len(best), device=best.device))
            filters, units = torch.nonzero((bound > best) & (best < 1.0), as_tuple=True)
        filters, units = self._hopeful(best, filters, units)
        if len(units) * _DENSE > bound.numel():
            return torch.maximum(best, self._all())
        return self._with(best, filters, units)

    def _hopeful(
        self, best: torch.Tensor, filters: torch.Tensor, units: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of these pairs those whose bound is above `best` in some of `_BLOCKS` parts of the positions."""
        short = -self.inputs.shape[1] % _BLOCKS
        peak = F.pad(self.inputs, (0, short)).unflatten(1, (_BLOCKS, -1)).amax(2)  # [columns, blocks]
        steep = F.pad(self.inverse, (0, short)).unflatten(1, (_BLOCKS, -1)).amax(2) * _SLACK
        kept = []
        step = max(1, self.most // (self.columns.shape[1] * _BLOCKS))
        for i, j in zip(filters.split(step), units.split(step), strict=True):
            tops, weight = _rows(peak, self.columns[j]), self._weights(i, j)  # [pairs, k, blocks], [pairs, k]
            over = (tops * weight[:, :, None]).amax(1) if self.kind == "max" else torch.bmm(weight[:, None], tops)[:, 0]
            kept.append(over.mul_(_rows(steep, i)).amax(1) > best[j])
        keep = torch.cat(kept)
        return filters[keep], units[keep]

    def _over_places(self, products: torch.Tensor) -> torch.Tensor:
        if products.shape[-1] == 1:
            return products[..., 0]
        return products.sum(-1) if self.kind == "sum" else products.amax(-1)

    def _with(self, best: torch.Tensor, filters: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """max(best, shares of these pairs)."""
        step = max(1, self.most // (self.columns.shape[1] * self.inputs.shape[1]))
        for i, j in zip(filters.split(step), units.split(step), strict=True):
            inputs, weight = _rows(self.inputs, self.columns[j]), self._weights(i, j)  # [pairs, k, length], [pairs, k]
            if inputs.shape[1] == 1:
                found = inputs[:, 0].mul_(_rows(self.inverse, i)).amax(1) * weight[:, 0]
            elif self.kind == "max":
                found = (inputs.mul_(_rows(self.inverse, i)[:, None]).amax(2) * weight).amax(1)
            else:
                found = torch.bmm(weight[:, None], inputs)[:, 0].mul_(_rows(self.inverse, i)).amax(1)
            best = best.scatter_reduce(0, j, found, "amax")
        return best

    def _weights(self, filters: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Those of pairs [pairs, k]."""
        found: torch.Tensor = self.weight.flatten(0, 1).index_select(0, filters * self.weight.shape[1] + units)
        return found

    def _all(self) -> torch.Tensor:
        """The largest share of every unit, by looking at all of them."""
        filters, length = self.inverse.shape
        found = []
        for some, weight in zip(
            *(x.split(max(1, self.most // (filters * length)), d) for x, d in self._by_unit()), strict=True
        ):
            k = some.shape[1]
            if k == 1 or self.kind == "max":  # the weight does not depend on the position, so it can wait
                top = (_rows(self.inputs, some.flatten())[:, None] * self.inverse).amax(2)  # [units · k, filters]
                found.append((top * weight.permute(1, 2, 0).flatten(0, 1)).amax(1).view(-1, k).amax(1))
            else:
                shares = weight.transpose(0, 1) @ _rows(self.inputs, some)  # [units, filters, k] @ [units, k, length]
                found.append(shares.mul_(self.inverse).amax((1, 2)))
        return torch.cat(found)

    def _by_unit(self) -> tuple[tuple[torch.Tensor, int], tuple[torch.Tensor, int]]:
        return (self.columns, 0), (self.weight, 1)


def _rows(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """values[at], several times as fast: whole rows are copied."""
    found: torch.Tensor = values.index_select(0, at.flatten()).unflatten(0, at.shape)
    return found


def _units(table: IntArray, groups: int, weight: torch.Tensor) -> list[_Units]:
    """For every group of a convolution, what it reads as one."""
    inputs, outputs = len(table) // groups, len(weight) // groups
    kernel = weight[0, 0].numel()
    found = []
    for group in range(groups):
        part = table[group * inputs : (group + 1) * inputs]
        sets: dict[int, list[IntArray]] = {}
        loose = np.flatnonzero(part < 0)
        if len(loose):  # of no channel that may go: each by itself
            sets[1] = list(loose[:, None])
        for channel in np.unique(part[part >= 0]):
            at = np.flatnonzero(part == channel)
            sets.setdefault(len(at), []).append(at)
        rows = slice(group * outputs, (group + 1) * outputs)
        found.append(_Units(rows, group * inputs, [np.stack(each) for each in sets.values()], kernel))
    return found
