"""A family of channels in the order of what the rest cannot take over, and the weights any number of them leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from secateur._protocols import IntArray
from secateur.methods.cap.forward_selection import ForwardSelection, forward_order
from secateur.methods.kit.reading import Family, Reading
from secateur.repair.compensation import has_place
from secateur.statistics.moments import Moments


class Ranked:
    """A family with its channels in order, and what its layers become for any number of them.

    order, gains: of `forward_order`. removable: how many channels may go.
    """

    def __init__(
        self,
        family: Family,
        model: nn.Module,
        moments: Moments,
        floors: Sequence[int],
        *,
        rescale: Literal["norm", "always", "never"] = "norm",
        ridge: float = 1e-6,
    ) -> None:
        """Rank the channels by forward selection; `floors` of each group are moved to the front.

        rescale, ridge: as the method's settings.
        """
        self.family = family
        self.readings = [reading for reading in family.readings if reading.layer in moments]
        self._rescale = [
            rescale == "always" or (rescale == "norm" and reading.norm is not None) for reading in self.readings
        ]
        self._place = [has_place(model, reading.layer, reading.norm) for reading in self.readings]
        self._moments = moments
        self._selections = self._select(model, ridge)
        order, gains = forward_order(self._selections, family.width)
        first = np.concatenate([[True] * 0, *self._firsts(order, floors)])
        if not first[order[: int(first.sum())]].all():  # the least widths come first in every group
            self._selections = self._select(model, ridge)
            order, gains = forward_order(self._selections, family.width, first)
        self.order, self.gains = order, gains
        self._whole = [selection.outputs(selection.weight) for selection in self._selections]
        self.removable = family.width - int(first.sum())

    def _firsts(self, order: IntArray, floors: Sequence[int]) -> Iterator[Any]:
        place = np.argsort(order, kind="stable")
        for places, floor in zip(self.family.split(place).values(), floors, strict=True):
            yield np.argsort(np.argsort(places)) < floor

    def _select(self, model: nn.Module, ridge: float) -> list[ForwardSelection]:
        result = []
        for reading, place in zip(self.readings, self._place, strict=True):
            moment = self._moments[reading.layer]
            sigma, mean = moment.covariance[reading.block], moment.mean[reading.block]
            if not place:
                sigma = sigma + torch.outer(mean, mean)  # without a constant there is no other centre than zero
            weight = reading.matrix(model).to(sigma)
            result.append(ForwardSelection(weight, sigma, reading.parts, reading.fixed, ridge=ridge))
        return result

    def tails(self) -> np.ndarray:
        """For each channel, from 0 to 1 and falling in their order: what is lost with it and all behind it."""
        tail = np.cumsum(self.gains[::-1])[::-1]
        tail = tail + 1e-12 * np.arange(len(tail), 0, -1) / len(tail)
        result = np.empty(len(tail))
        result[self.order] = tail / (1.0 + tail)
        return result

    @torch.no_grad()
    def write(self, model: Any, dense: Any, removed: int) -> None:
        """Give the layers of `model` the weights they have when the last `removed` channels go."""
        stay = self.family.width - removed
        for reading, selection, whole, scaled, place in zip(
            self.readings, self._selections, self._whole, self._rescale, self._place, strict=True
        ):
            columns = selection.ends[stay]
            weight = selection.corrected(columns)
            if scaled and removed:
                weight = weight * _growth(whole, selection.outputs(weight, columns))[:, None]
            layer, origin = model.get_submodule(reading.layer), dense.get_submodule(reading.layer)
            layer.weight[reading.rows] = weight.view_as(layer.weight[reading.rows]).to(layer.weight)
            if place:
                mean = self._moments[reading.layer].mean[reading.block]
                _add(model, dense, reading, layer, origin, (selection.weight - weight) @ mean)


def _growth(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """What brings variances back to what they were."""
    usable = after > 1e-12 * before
    return torch.where(usable, before / torch.where(usable, after, 1.0), 1.0).sqrt()


def _add(model: Any, dense: Any, reading: Reading, layer: Any, origin: Any, added: torch.Tensor) -> None:
    if layer.bias is not None:
        layer.bias[reading.rows] = origin.bias[reading.rows] + added.to(layer.bias)
        return
    norm, was = model.get_submodule(reading.norm), dense.get_submodule(reading.norm)
    norm.running_mean[reading.rows] = was.running_mean[reading.rows] - added.to(norm.running_mean)
