"""Means and covariances of what layers read, as the columns of their weights meet it, from one pass over the data.

For input patches x of a layer (columns as in `weight.flatten(1)`: channel, then place in the kernel; zero padding is
part of them), over images and output positions:

    mu = E[x]        Sigma = E[(x - mu)(x - mu)^T]        W Sigma W^T = covariance of the layer's outputs

Layers that read the same tensor in the same way have one Sigma.
"""

from __future__ import annotations

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
from secateur.statistics.patches import EXACT, Lattice, add_square, mirrored, patches


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

    Sums are taken in float64 around the first patch seen, so that an input that never changes has no variance at all;
    of more than `EXACT` columns, block by block, whose products are made in the precision of the input.
    Memory: 8 (columns + 1)^2 bytes a layer (170 MB for 512 channels under a 3x3 kernel), and one block of patches.
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
        if not self._counts(name, module, args[0] if args else keywords["input"]):
            return
        if isinstance(module, _ConvNd):
            if output.ndim == len(module.kernel_size) + 1:  # a single image without a batch
                x, output = x[None], output[None]
            sizes = output.shape[2:]
        else:
            sizes = output.shape[1:-1]
        like = self._like[name]
        for block in patches(module, x, Lattice(sizes, self.positions, self._draw), len(like)):
            wide = like.shape[1] > EXACT and block.dtype == torch.float32
            values = block.to(like.device, torch.float32 if wide else torch.float64)
            if name not in self._totals:
                self._shifts[name] = values[:, :, :1].to(torch.float64, copy=True)
                self._shifts[name][:, -1] = 0.0  # the one behind the patch stays
                self._totals[name] = like.new_zeros(like.shape[0], like.shape[1], like.shape[1])
            add_square(self._totals[name], values.sub_(self._shifts[name].to(values)), 1.0)

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
        leaving = [name] if source != name else [other for other in self._source if self._source[other] == name]
        for other in leaving:
            if other != source:
                self._source[other] = other
                self._totals[other], self._shifts[other] = self._totals[source].clone(), self._shifts[source]
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
