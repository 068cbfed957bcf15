"""The gradient of every sample's loss with respect to a mask on each channel, shared by all layers that read it.

A channel c has one mask m_c, multiplied with it wherever a layer reads it. For one reader with the input A and
G = dL/d(A m), dL_n/dm_c = Σ_positions A[n, c] G[n, c]; a mask that is shared has the sum over its readers. It costs one
product and one sum for each input of a layer, and no memory but the inputs, which training keeps anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_sum
from secateur._protocols import IntArray
from secateur.errors import ModelError
from secateur.graph import Graph
from secateur.graph.channels import module_of
from secateur.graph.modules import output_tensors
from secateur.statistics.gather import Collector

_Depthwise = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def filters(graph: Graph) -> dict[str, IntArray]:
    """Depthwise convolutions, which make and read a channel at once, with the channel at each position of the input.

    Channels are numbered through all groups; -1: of none.
    """
    modules = dict(graph.model.named_modules())
    found: dict[str, IntArray] = {}
    first = 0
    for group in graph.groups:
        for member in group.producers():
            name = module_of(member.name)
            layer = modules.get(name)
            if member.dim or not member.name.endswith(".weight") or not isinstance(layer, _Depthwise):
                continue
            if 1 < layer.in_channels == layer.groups:
                table = found.setdefault(name, np.full(layer.in_channels, -1, dtype=np.int64))
                times = layer.out_channels // layer.in_channels
                table[member.index // times] = np.arange(first, first + group.width)[:, None]
        first += group.width
    return found


class Shared:
    """Masks in front of the layers that read channels, and the gradients of the loss with respect to them.

    While `watching`, what layers give to a backward pass is noted; `take` then gives the gradients of one batch.
    """

    def __init__(self, tables: Mapping[str, IntArray], channels: int) -> None:
        """tables: the channel at each position of every reading layer's input, -1: of none. channels: of all groups."""
        self.channels = channels
        self._of = {name: _Table(table) for name, table in tables.items() if (table >= 0).any()}
        self._seen: list[tuple[str, torch.Tensor]] = []

    def hooks(self, model: nn.Module, alive: torch.Tensor | None = None, *, watching: bool) -> list[RemovableHandle]:
        """Put masks in front of the layers of `model`. alive: bool [channels], None: all."""
        handles = []
        for name, table in self._of.items():
            mask = None if alive is None else table.mask(alive)
            if watching or mask is not None:
                before = partial(self._before, name, mask, watching)
                handles.append(model.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True))
        return handles

    @contextmanager
    def on(self, model: nn.Module, alive: torch.Tensor | None = None, *, watching: bool) -> Iterator[None]:
        """The masks are there inside only; what was noted is forgotten at the beginning."""
        self._seen = []
        handles = self.hooks(model, alive, watching=watching)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(
        self, name: str, mask: torch.Tensor | None, watching: bool, layer: nn.Module, args: Any, keywords: Any
    ) -> Any:
        x: torch.Tensor = args[0] if args else keywords["input"]
        linear = isinstance(layer, nn.Linear)
        masked = x if mask is None else x * (mask if linear else mask.view(-1, *[1] * (x.dim() - 2))).to(x)
        if watching and torch.is_grad_enabled() and x.is_floating_point():
            if not masked.requires_grad:
                masked = masked.detach().requires_grad_()
            elif masked is x:  # a tensor of this reader's own, so that its gradient is not that of other readers
                masked = x.view_as(x)
            source, version = x.detach(), x._version
            masked.register_hook(lambda slope: self._note(name, source, slope, version, linear))
        return ((masked, *args[1:]), keywords) if args else (args, keywords | {"input": masked})

    def _note(self, name: str, x: torch.Tensor, slope: torch.Tensor, version: int, linear: bool) -> None:
        if x._version != version:
            raise ModelError(
                f"What {name} reads is overwritten before the backward pass: make that operator work out of place."
            )
        with torch.no_grad():
            self._seen.append((name, _inner(x, slope, linear)))

    @torch.no_grad()
    def take(self, samples: int) -> torch.Tensor | None:
        """dL_n/dm [samples, channels] of the last batch, float32; None if no backward pass was seen."""
        seen, self._seen = self._seen, []
        if not seen:
            return None
        total = seen[0][1].new_zeros(samples, self.channels)
        for name, found in seen:
            if len(found) % samples:
                raise ModelError(
                    f"{name} reads {len(found)} rows where the batch has {samples} samples, so that their gradients "
                    "cannot be told apart: put the samples into the first dimension, or ignore what this layer reads."
                )
            if len(found) != samples:  # windows, tokens or regions of one sample belong together
                found = found.view(samples, -1, found.shape[1]).sum(1)
            self._of[name].add(total, found)
        return total


class _Table:
    """Which channel is at each position of one layer's input."""

    def __init__(self, table: IntArray) -> None:
        """table: channel numbers, -1: of none."""
        inside = np.flatnonzero(table >= 0)
        order = inside[np.argsort(table[inside], kind="stable")]
        channels, counts = np.unique(table[inside], return_counts=True)
        self._table = torch.from_numpy(table)
        self._channels, self._order = torch.from_numpy(channels), torch.from_numpy(order)
        self._counts = torch.from_numpy(counts)
        self._equal = int(counts[0]) if (counts == counts[0]).all() else 0
        self._plain = self._equal == 1 and bool((order == np.arange(len(table))).all())

    def mask(self, alive: torch.Tensor) -> torch.Tensor | None:
        """One number for each position of the input, None where all channels are alive."""
        self._table = self._table.to(alive.device)
        given = alive[self._table] | (self._table < 0)
        return None if bool(given.all()) else given

    def add(self, total: torch.Tensor, found: torch.Tensor) -> None:
        """total[:, channel] += the sum over the channel's positions."""
        self._channels, self._order = self._channels.to(found.device), self._order.to(found.device)
        if not self._plain:
            found = found[:, self._order]
        if self._equal > 1:
            found = found.view(len(found), -1, self._equal).sum(2)
        channels = self._channels if self._equal else self._channels.repeat_interleave(self._counts.to(found.device))
        total.index_add_(1, channels, found)


def _inner(x: torch.Tensor, slope: torch.Tensor, linear: bool) -> torch.Tensor:
    """Σ x · slope over all but the first dimension and that of the features, [rows, positions]."""
    product = x.float() * slope.float()
    if linear:
        return product.flatten(1, -2).sum(1) if product.dim() > 2 else product
    return product.flatten(2).sum(2)


class Fisher(Collector):
    """Σ_n (dL_n/dm_c)² of every channel: the empirical Fisher information of its mask.

    squares: [channels], float64 where the device has it. Memory: the inputs of all reading layers for one batch.
    """

    gradients = True

    def __init__(self, tables: Mapping[str, IntArray], channels: int, device: torch.device) -> None:
        """tables: see `Shared`."""
        self._shared = Shared(tables, channels)
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.squares = torch.zeros(channels, dtype=kind, device=device)

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hooks in front of every reading layer."""
        return self._shared.hooks(model, watching=True)

    def see(self, output: Any, target: Any) -> None:
        """Add the squares of one batch."""
        found = self._shared.take(len(output_tensors(output)[0]))
        if found is not None:
            self.squares += found.to(self.squares.dtype).square().sum(0)

    def total(self) -> None:
        """Over all processes."""
        self.squares = global_sum(self.squares)
