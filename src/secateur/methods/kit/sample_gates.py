"""Random gates on single channels, drawn anew for every sample, in front of the layers that read the channels.

A channel is removed when nobody reads it, so its gate stands where it is read: in front of every convolution and linear
layer whose weight has slices for it. A gate that is shut does to a sample just what the cut does to all of them, with
whatever lies between (sums, norms, activations that are not zero at zero, concatenations).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._protocols import BoolArray, IntArray
from secateur.errors import ModelError


class SampleGates:
    """The gates of all channels: z = 0 shuts one off for one sample, with probability `rates`; else z / (1 - rate) lets
    it through, so that on average nothing changes.

    z: of the last draw [samples, live], None where all are open; it gets a gradient if that was asked for.
    live: the numbers of the channels it is of.
    """

    def __init__(self, model: nn.Module, tables: Mapping[str, IntArray], rates: torch.Tensor, gated: BoolArray) -> None:
        """Insert hooks; `rates` and `gated` are of every channel."""
        self._all_rates, self._gated = rates, gated
        self._tables = {name: np.where(gated[table], table, -1) for name, table in tables.items()}  # -1 stays -1
        self._tables = {name: table for name, table in self._tables.items() if (table >= 0).any()}
        self.z: torch.Tensor | None = None
        self._factors: torch.Tensor | None = None
        self.narrow(np.ones(len(gated), dtype=np.bool_))
        for name in self._tables:
            model.get_submodule(name).register_forward_pre_hook(partial(self._gate, name), with_kwargs=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleGates:
        """Copies of hooked layers share their gates."""
        return self

    def narrow(self, alive: BoolArray) -> None:
        """Follow a model that has these channels only."""
        self.live = np.flatnonzero(alive & self._gated)
        column = np.full(len(alive) + 1, len(self.live), dtype=np.int64)  # the last column of factors is 1
        column[self.live] = np.arange(len(self.live))
        self.rates = self._all_rates[torch.from_numpy(self.live)]
        self._index = {
            name: torch.from_numpy(column[table[(table < 0) | alive[table]]]) for name, table in self._tables.items()
        }

    def set_rates(self, rates: torch.Tensor) -> None:
        """From now on shut channels with these probabilities, one for every channel."""
        self._all_rates = rates
        self.rates = rates[torch.from_numpy(self.live)]

    def draw(self, samples: int, device: torch.device, key: Sequence[int], *, gradient: bool) -> None:
        """Draw all gates for so many samples: the same whenever the key is."""
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        uniform = torch.rand(
            samples, len(self.live), generator=torch.Generator(device).manual_seed(seed), device=device
        )
        rates = self.rates.to(device)
        self.z = (uniform >= rates).float().requires_grad_(gradient)
        self._set(self.z / (1 - rates))

    def _set(self, factors: torch.Tensor) -> None:
        self._factors = torch.cat([factors, factors.new_ones(len(factors), 1)], 1)

    def clear(self) -> None:
        """Open all gates."""
        self.z = self._factors = None

    @contextmanager
    def fixed(self, kept: BoolArray, device: torch.device) -> Iterator[None]:
        """Inside, only these channels are let through, and as they are."""
        before = self.z, self._factors
        self._set(torch.from_numpy(kept[self.live]).float().to(device)[None])
        try:
            yield
        finally:
            self.z, self._factors = before

    def _gate(self, name: str, layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What a layer gets instead of its input."""
        if self._factors is None:
            return None
        x: torch.Tensor = args[0] if args else keywords["input"]
        index = self._index[name] = self._index[name].to(x.device)
        factors = self._factors[:, index].to(x.dtype)
        if len(factors) not in (1, len(x)):
            if len(x) % len(factors):
                raise ModelError(
                    f"{name} reads {len(x)} rows where the batch has {len(factors)} samples, so that gates cannot tell "
                    "samples apart there: put the samples into the first dimension, or ignore what this layer reads."
                )
            factors = factors.repeat_interleave(len(x) // len(factors), 0)  # windows or tokens, sample by sample
        inner = [1] * (x.dim() - 2)
        shape = [len(factors), *inner, -1] if isinstance(layer, nn.Linear) else [len(factors), -1, *inner]
        gated = x * factors.view(shape)
        return ((gated, *args[1:]), keywords) if args else (args, keywords | {"input": gated})
