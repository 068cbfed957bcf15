"""How much of one channel's map there is in another's: inner products of the maps a layer reads, and least squares.

s = <A_i, A_j> / <A_j, A_j>        makes |A_i - s A_j|² smallest over all samples and positions
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_sum
from secateur._protocols import FloatArray, IntArray
from secateur.statistics.gather import Collector
from secateur.statistics.patches import BLOCK, add_square, mirrored


class Likeness(Collector):
    """<A_i, A_j> of all channels i and j of a group, as one layer reads them, over samples and positions.

    Memory: 8 · width² bytes for each group in front of each of its readers (2 MB for 512 channels), whatever is shown,
    and one block of maps. Products are made and summed in double precision.
    """

    def __init__(self, places: Mapping[str, Mapping[str, IntArray]]) -> None:
        """places: {layer: {group: [width, k]}}, where each channel is in what the layer reads."""
        self._places = places
        self._upper: dict[tuple[str, str], torch.Tensor] = {}

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hooks in front of the layers."""
        device = next(model.parameters()).device
        for name, groups in self._places.items():
            for group, index in groups.items():
                shape = (1, len(index), len(index))
                self._upper[name, group] = torch.zeros(shape, dtype=torch.float64, device=device)
            layer = model.get_submodule(name)
            yield layer.register_forward_pre_hook(partial(self._read, name), with_kwargs=True)

    @torch.no_grad()
    def _read(self, name: str, layer: nn.Module, args: Any, keywords: Any) -> None:
        maps: torch.Tensor = (args[0] if args else keywords["input"]).detach()
        last = maps.movedim(-1 if isinstance(layer, nn.Linear) else 1, -1)
        spots = last.reshape(-1, last.shape[-1])
        for group, index in self._places[name].items():
            columns = torch.from_numpy(np.ascontiguousarray(index.T)).flatten().to(maps.device)  # k by k
            for part in spots.split(max(BLOCK // index.size, 1)):
                block = part[:, columns].double().view(-1, len(index)).T  # a map is all that one channel has there
                add_square(self._upper[name, group], block[None], 1.0)

    def total(self) -> None:
        """Add up over processes."""
        self._upper = {key: global_sum(self._upper[key]) for key in sorted(self._upper)}

    def scales(self, layer: str, group: str, gone: IntArray, stays: IntArray) -> FloatArray:
        """s of the maps of channels `gone` by those of channels `stays`, pair by pair; 0 where the latter are zero."""
        products = mirrored(self._upper[layer, group])[0].cpu().numpy()
        own = products[stays, stays]
        alive = own > 0
        result: FloatArray = np.where(alive, products[gone, stays] / np.where(alive, own, 1.0), 0.0)
        return result
