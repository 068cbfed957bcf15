"""Means and covariances of what layers read, as the columns of their weights meet it, from one pass over the data.

For input patches x of a layer (columns as in `weight.flatten(1)`: channel, then place in the kernel; zero padding is
part of them), over images and output positions:

    mu = E[x]        Sigma = E[(x - mu)(x - mu)^T]        W Sigma W^T = covariance of the layer's outputs

Layers that read the same tensor in the same way have one Sigma.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_sum, rank, world
from secateur.errors import ConfigError, InputError
from secateur.statistics.gather import Collector
from secateur.statistics.maps import MOST_PLACES, PixelProducts, by_pixel
from secateur.statistics.patches import BLOCK, EXACT, Lattice, add_square, mirrored, patches

#: Channels from which on maps are looked at: of fewer, products of pixels are too small to be fast.
_FEW_CHANNELS = 32


@dataclass(frozen=True, eq=False)
class Moment:
    """Of the inputs of one layer, group by group of a grouped convolution; float64.

    mean: [groups, columns]. covariance: [groups, columns, columns]. count: patches seen.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int


@dataclass(frozen=True)
class _Read:
    """One tensor that a layer read in this batch, kept alive so that its identity is its own."""

    tensor: torch.Tensor
    version: int
    geometry: tuple[Any, ...]
    layer: str


class Moments(Collector):
    """Mean and covariance of the inputs of convolutions and linear layers.

    Sums are taken in float64 around the first patch seen (of maps whose pixels are multiplied, the first pixel), so
    that an input that never changes has no variance at all; of more than `EXACT` columns, block by block, whose
    products are made in the precision of the input.
    Memory: 8 (columns + 1)^2 bytes a layer (170 MB for 512 channels under a 3x3 kernel), at most as much again, and no
    more than `BLOCK` numbers, for maps that wait, and a few blocks of patches or pixels.
    """

    def __init__(self, layers: Iterable[str], *, positions: int | None = None, seed: int = 0) -> None:
        """Watch the layers of these names.

        positions: output positions of an image looked at, at most, on a lattice whose place the seed decides; None:
            all. The lattice is the same in all images, so that batches may be of any size.
        """
        self.layers, self.positions = tuple(dict.fromkeys(layers)), positions
        self._draw = np.random.default_rng([seed, 7]).random(3).tolist()
        self._totals: dict[str, torch.Tensor] = {}  # upper triangles, with the sums in the last column
        self._shifts: dict[str, torch.Tensor] = {}
        self._maps: dict[str, PixelProducts | None] = {}  # None: patches are as good
        self._first: dict[str, torch.Tensor] = {}  # their first pixel
        self._waiting: dict[str, list[torch.Tensor]] = {}  # maps by pixel, around the first
        self._like: dict[str, torch.Tensor] = {}  # an empty tensor of the right shape and place
        self._source: dict[str, str] = {}  # layer -> the one whose sums are its own too
        self._alone: set[str] = set()  # layers that run several times
        self._read: list[_Read] = []
        self._ran: set[str] = set()
        self._found: dict[str, Moment] = {}

    def __contains__(self, name: str) -> bool:
        return self._source.get(name) in self._found

    def __getitem__(self, name: str) -> Moment:
        """The moments of a layer, once all data were seen; ConfigError for a layer that never ran."""
        if name not in self:
            raise ConfigError(f"The layer {name!r} did not run on the data shown: leave it out, or show other data.")
        return self._found[self._source[name]]

    # ------------------------------------------------------------------------------------------------ as a collector

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hook behind every layer, where its input is still what it read."""
        for name in self.layers:
            module: Any = model.get_submodule(name)
            groups = module.groups if isinstance(module, _ConvNd) else 1
            weight: torch.Tensor = module.weight
            device = torch.device("cpu") if weight.device.type == "mps" else weight.device  # which has no float64
            self._like[name] = torch.empty(groups, weight[0].numel() + 1, 0, dtype=torch.float64, device=device)
            yield module.register_forward_hook(partial(self._add, name), with_kwargs=True)

    def see(self, output: Any, target: Any) -> None:
        """Forget the tensors of this batch."""
        self._read.clear()
        self._ran.clear()

    def total(self) -> None:
        """Sums to moments, over all processes."""
        for name in self.layers:
            self._multiply(name)
            if world() > 1:  # a process may have seen nothing, so all agree on nothing but the layers
                self._source[name] = name
                self._gather(name)
            if self._source.get(name) == name and float(self._totals[name][0, -1, -1]):
                if not bool(self._totals[name].sum().isfinite()):
                    raise InputError(f"What {name} reads is not finite: check the images and the weights.")
                self._found[name] = _moment(self._totals.pop(name), self._shifts[name])
        self._totals.clear()

    # ---------------------------------------------------------------------------------------------------- one layer

    def _add(self, name: str, module: Any, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        x: torch.Tensor = (args[0] if args else keywords["input"]).detach()
        if not x.numel() or not self._counts(name, module, args[0] if args else keywords["input"]):
            return
        if isinstance(module, _ConvNd):
            if output.ndim == len(module.kernel_size) + 1:  # a single image without a batch
                x, output = x[None], output[None]
            sizes = output.shape[2:]
        else:
            sizes = output.shape[1:-1]
        like, lattice = self._like[name], Lattice(sizes, self.positions, self._draw)
        wide = like.shape[1] > EXACT and x.dtype == torch.float32
        precision = torch.float32 if wide else torch.float64
        if self._by_maps(name, module, x, lattice):
            for part in x.split(max(1, BLOCK // x[0].numel())):
                self._wait(name, by_pixel(part).to(like.device, precision))
            return
        for block in patches(module, x, lattice, len(like)):
            values = block.to(like.device, precision)
            if name not in self._totals:
                self._shifts[name] = values[:, :, :1].to(torch.float64, copy=True)
                self._shifts[name][:, -1] = 0.0  # the one behind the patch stays
                self._totals[name] = like.new_zeros(like.shape[0], like.shape[1], like.shape[1])
            add_square(self._totals[name], values.sub_(self._shifts[name].to(values)), 1.0)

    def _by_maps(self, name: str, module: Any, x: torch.Tensor, lattice: Lattice) -> bool:
        """Whether products of pixels are fewer than of patches; it is decided by the first maps."""
        products = self._maps.get(name)
        if name not in self._maps:
            plain = isinstance(module, _ConvNd) and module.groups == 1 and module.padding_mode == "zeros"
            small = lattice.total <= MOST_PLACES and math.prod(lattice.step) == 1
            if plain and small and x.shape[1] >= _FEW_CHANNELS:
                products = PixelProducts(module, tuple(x.shape[2:]))
                products = products if products.pays and len(products.table) == lattice.total else None
            self._maps[name] = products
        return products is not None and products.sizes == tuple(x.shape[2:])

    def _wait(self, name: str, pixels: torch.Tensor) -> None:
        """Put maps aside until there are enough of them to multiply."""
        products = self._maps[name]
        assert products is not None
        if name not in self._totals:
            like = self._like[name]
            self._first[name] = pixels[0, 0].clone()
            shift = torch.outer(self._first[name].double(), torch.from_numpy(products.always).to(like))
            self._shifts[name] = torch.cat([shift.flatten(), shift.new_zeros(1)]).view(1, -1, 1)
            self._totals[name] = like.new_zeros(1, like.shape[1], like.shape[1])
        waiting = self._waiting.setdefault(name, [])
        waiting.append(pixels - self._first[name])
        if sum(one.numel() for one in waiting) > min(BLOCK, self._like[name].shape[1] ** 2):
            self._multiply(name)

    def _multiply(self, name: str) -> None:
        """Add the maps that wait.

        With c the first pixel, v a pixel less c or, in the padding, 0, and m 1 or 0 there, a column is v around its
        shift c where its place never meets the padding, and v + m c around 0 elsewhere.
        """
        waiting, products = self._waiting.pop(name, []), self._maps.get(name)
        if not waiting or products is None:
            return
        pixels, total, device = torch.cat(waiting, 1), self._totals[name][0], self._like[name].device
        samples, channels = pixels.shape[1:]
        real = torch.from_numpy(products.table >= 0).to(device, torch.float64)
        seen = pixels.sum(1, dtype=torch.float64)[torch.from_numpy(products.table.clip(0)).to(device)] * real[..., None]
        met = torch.einsum("pk,pmc->kmc", real, seen)  # sums of v at m, where k meets no padding
        both = samples * real.T @ real
        c = self._first[name].double() * torch.from_numpy(~products.always).to(device)[:, None]  # places, channels
        square = total[:-1, :-1].unflatten(1, (channels, -1)).unflatten(0, (channels, -1))
        for k, m, found in products.squares(pixels):
            found += torch.outer(c[k], met[k, m]) + torch.outer(met[m, k] + both[k, m] * c[k], c[m])
            square[:, k, :, m] += found
            if k != m:
                square[:, m, :, k] += found.T
        total[:-1, -1] += (seen.sum(0) + both.diagonal()[:, None] * c).T.flatten()
        total[-1, -1] += samples * len(real)

    def _counts(self, name: str, module: nn.Module, x: torch.Tensor) -> bool:
        """Whether this input is to be added, and not what another layer has added already."""
        if world() > 1:
            return True
        if name in self._ran:
            self._separate(name)
            return True
        self._ran.add(name)
        if name in self._source:
            return self._source[name] == name
        geometry = _geometry(module)
        found = (r for r in self._read if r.tensor is x and r.version == x._version and r.geometry == geometry)
        self._source[name] = next((read.layer for read in found), name)
        if self._source[name] == name:
            self._read.append(_Read(x, x._version, geometry, name))
        return self._source[name] == name

    def _separate(self, name: str) -> None:
        """A layer that runs again has sums of its own from now on, and so have those that shared them."""
        if name in self._alone:
            return
        self._alone.add(name)
        source = self._source[name]
        self._multiply(source)
        leaving = [name] if source != name else [other for other in self._source if self._source[other] == name]
        for other in leaving:
            if other != source:
                self._source[other] = other
                self._totals[other], self._shifts[other] = self._totals[source].clone(), self._shifts[source]
                if source in self._maps:
                    self._maps[other] = self._maps[source]
                if source in self._first:
                    self._first[other] = self._first[source]
        self._read = [read for read in self._read if read.layer != name]

    def _gather(self, name: str) -> None:
        """Add up one layer over processes, around the shift of the first."""
        like = self._like[name]
        size = (like.shape[0], like.shape[1], like.shape[1])
        total, shift = self._totals.get(name), self._shifts.get(name)
        total = like.new_zeros(size) if total is None else mirrored(total)
        shift = like.new_zeros(*like.shape[:2], 1) if shift is None else shift
        common = global_sum(shift if rank() == 0 else torch.zeros_like(shift))
        # x - common = (x - shift) + step, and the sums of x - shift are in the last column
        step, count, sums = shift - common, total[:, -1:, -1:], total[:, :, -1:].clone()
        sums[:, -1] = 0.0
        total = total + sums @ step.mT + step @ sums.mT + count * (step @ step.mT)
        total[:, :-1, -1:] += count * step[:, :-1]
        total[:, -1:, :-1] += count * step[:, :-1].mT
        self._totals[name], self._shifts[name] = global_sum(total), common


def _moment(upper: torch.Tensor, shift: torch.Tensor) -> Moment:
    full = mirrored(upper)
    count = float(full[0, -1, -1])
    full /= count
    mean, covariance = full[:, :-1, -1], full[:, :-1, :-1]
    covariance = torch.baddbmm(covariance, mean.unsqueeze(2), mean.unsqueeze(1), alpha=-1.0)
    return Moment(mean + shift[:, :-1, 0], covariance, int(count))


def _geometry(module: Any) -> tuple[Any, ...]:
    """Layers that agree in this cut the same patches out of the same tensor."""
    if not isinstance(module, _ConvNd):
        return ("linear",)
    keys = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return tuple(getattr(module, key) for key in keys)
