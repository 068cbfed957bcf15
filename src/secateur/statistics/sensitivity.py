"""Empirical sensitivities: the largest share that a channel has in any output of a layer that reads it.

For one sample, filter i and output position p, with the positive (or negative) weights W and inputs a alone,

    share of channel j = Σ_κ W[i, j, κ] a[j, κ, p] / Σ_j' Σ_κ W[i, j', κ] a[j', κ, p]                    kernel: sum

and s_j is its maximum over samples, filters, positions and the four pairs of signs; with kernel: max the
largest single product κ stands above the line. What a layer reads is looked at in blocks of patches. The shares of one
block are never all in memory: it takes `BLOCK` numbers for the patches and `_PIECE` for shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_max
from secateur._protocols import FloatArray, IntArray
from secateur.statistics.gather import Collector
from secateur.statistics.patches import Lattice, patches

Kernel = Literal["sum", "max"]

#: Sums that are no larger have no shares: nothing flows there.
NOTHING = 1e-7
#: Shares computed at once: they should stay in a processor's cache.
_PIECE = {"cpu": 1 << 18, "cuda": 1 << 26}
#: Columns of patches taken at once.
_LENGTH = {"cpu": 1 << 9, "cuda": 1 << 13}


class Sensitivities(Collector):
    """s_j of every channel in every layer that reads it, in one pass.

    of: by layer, for each position of its input, [inputs]. positions, kernel sizes: of each layer, by name.
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
        self.positions: dict[str, int] = {}
        self._units: dict[str, list[_Units]] = {}

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hooks on the layers that read channels, save transposed convolutions."""
        for name, table in self.tables.items():
            layer: Any = model.get_submodule(name)
            if not isinstance(layer, _ConvTransposeNd):
                self._units[name] = _units(table, getattr(layer, "groups", 1), layer.weight)
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
            self.of[name] = torch.zeros(len(self.tables[name]), device=x.device)
        weight = layer.weight.detach().float()
        signs = [x.clamp(min=0)] + ([(-x).clamp(min=0)] if bool((x < 0).any()) else [])
        for part in signs:
            for block in patches(layer, part.float(), lattice, getattr(layer, "groups", 1)):
                for number, units in enumerate(self._units[name]):
                    for signed in (weight, -weight):
                        units.raise_(self.of[name], block[number, :-1], signed.clamp(min=0), self.kernel)

    def total(self) -> None:
        """The maxima over all processes."""
        self.of = {name: global_max(found) for name, found in sorted(self.of.items())}

    def channels(self, count: int) -> FloatArray:
        """s [count] of every channel: the largest of all layers that read it."""
        result = np.zeros(count + 1)
        for name, found in self.of.items():
            np.maximum.at(result, self.tables[name], found.double().cpu().numpy())
        return result[:-1]


class _Units:
    """What one group of a convolution reads as one: the positions of each channel, and all kernel places there.

    Channels with equally many positions are computed together.
    """

    def __init__(self, rows: slice, first: int, sets: list[IntArray], kernel: int) -> None:
        """rows: of the weight. first: position of its first input. sets: positions of channels, each [units, k]."""
        self.rows, self.first, self.kernel = rows, first, kernel
        self.sets = [torch.from_numpy(each) for each in sets]

    def raise_(self, best: torch.Tensor, block: torch.Tensor, weight: torch.Tensor, kind: Kernel) -> None:
        """best[position] = max of itself and the share of the channel there. block: patches [columns, length]."""
        flat = weight[self.rows].flatten(1)
        device = block.device.type
        for piece in block.split(_LENGTH.get(device, _LENGTH["cuda"]), 1):
            below = flat @ piece
            inverse = torch.where(below > NOTHING, 1.0 / below, 0.0)  # [filters, length]
            for positions in self.sets:
                index = positions.to(block.device)
                columns = (index[:, :, None] * self.kernel + torch.arange(self.kernel, device=index.device)).flatten(1)
                found = _largest(piece, flat, inverse, columns, kind, _PIECE.get(device, _PIECE["cuda"]))
                at = index + self.first
                best[at] = torch.maximum(best[at], found[:, None])


def _largest(
    block: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor, columns: torch.Tensor, kind: Kernel, most: int
) -> torch.Tensor:
    """max over filters and positions of the shares [units]. columns: [units, k] of the block and of the weight."""
    filters, length = inverse.shape
    step = max(1, most // (filters * length))
    found = []
    for some in columns.split(step):
        k = some.shape[1]
        if k == 1 or kind == "max":  # the weight does not depend on the position, so it can wait
            shares = block[some.flatten()][:, None] * inverse  # [units · k, filters, length]
            top = shares.amax(2) * weight.T[some.flatten()]
            found.append(top.amax(1).view(-1, k).amax(1))
        else:
            shares = weight.T[some].mT @ block[some]  # [units, filters, k] @ [units, k, length]
            found.append(shares.mul_(inverse).amax((1, 2)))
    return torch.cat(found)


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
