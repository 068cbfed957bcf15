"""Networks that have lost channels, measured on held-out images with no more work than the question needs.

What runs before the first layer that changed gives what it gave before, and is not computed again. Where the question
is whether a bar is reached, images are looked at until the rest cannot change the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateur.graph.modules import clone_module
from secateur.methods.cap.ranking import Ranked
from secateur.statistics.held_out import HeldOut

#: Bytes of outputs that are kept; layers that find no room are computed in every run.
_MOST = 1 << 30


class KeptOutputs:
    """What the layers of a network gave to each piece of data, until they, or layers before them, change."""

    def __init__(self, model: nn.Module, most: int = _MOST) -> None:
        """Keep what convolutions and linear layers of `model` give; it is nobody else's. most: bytes."""
        self._room = most
        self._places: dict[str, int] = {}  # in the order of execution
        self._outputs: dict[tuple[int, str], tuple[torch.Tensor, int]] = {}  # with the version at which it is right
        self._right: dict[int, float] = {}  # of each piece: layers before this place give what they gave
        self._piece, self._ran = 0, 0
        for name, module in model.named_modules():
            if isinstance(module, (_ConvNd, nn.Linear)):
                module.forward = partial(self._run, name, module.forward)  # type: ignore[method-assign]

    def run(self, piece: int, call: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        """What `call` gives, which runs the network on this piece."""
        self._piece, self._ran = piece, 0
        result = call()
        self._right[piece] = float("inf")
        return result

    def changed(self, layers: Collection[str]) -> None:
        """These layers have other weights, or what comes behind them has."""
        first = min((self._places.get(name, 0) for name in layers), default=float("inf"))
        self._right = {piece: min(place, first) for piece, place in self._right.items()}

    def _run(self, name: str, forward: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        place = self._places.setdefault(name, len(self._places))
        if place < self._ran:  # runs again, or in another order than before: only the first call is kept
            return forward(*args, **keywords)
        self._ran = place + 1
        key = self._piece, name
        output, version = self._outputs.get(key, (None, 0))
        if output is not None and place < self._right.get(self._piece, 0) and output._version == version:
            return output
        found = forward(*args, **keywords)
        if isinstance(found, torch.Tensor):
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[int, str], output: torch.Tensor) -> None:
        size = output.nbytes
        before, _ = self._outputs.pop(key, (None, 0))
        self._room += 0 if before is None else before.nbytes
        if size <= self._room:
            self._room -= size
            self._outputs[key] = output, output._version


@dataclass
class _Seen:
    """How a network did on the first pieces."""

    pieces: int = 0
    right: int = 0
    labels: int = 0


class TrialNetworks:
    """A twin of the network in which units lose channels, and how good it is; no state is measured twice."""

    def __init__(self, model: nn.Module, ranked: Sequence[Ranked], held: HeldOut) -> None:
        self._dense, self._ranked, self._held = model, ranked, held
        self._twin = clone_module(model, lambda tensor: tensor.detach().clone()).eval()
        self._kept = KeptOutputs(self._twin)
        self._now = [0] * len(ranked)
        self._seen: dict[tuple[int, ...], _Seen] = {}
        self._losses: dict[tuple[int, ...], float] = {}

    def removed(self, shares: Sequence[float]) -> list[int]:
        """Channels that go from every unit."""
        wanted = [int(unit.family.width * share) for unit, share in zip(self._ranked, shares, strict=False)]
        counts = [min(count, unit.removable) for count, unit in zip(wanted, self._ranked, strict=False)]
        return counts + [0] * (len(self._ranked) - len(counts))

    def quality(self, shares: Sequence[float]) -> float:
        """Of the twin, with these shares of the units gone: see `HeldOut.measure`."""
        counts = tuple(self.removed(shares))
        if self._held.by_accuracy:
            seen = self._seen.setdefault(counts, _Seen())
            while seen.pieces < len(self._held.pieces()):
                self._look(counts, seen)
            return self._held.share(seen.right)
        if counts not in self._losses:
            self._write(counts)
            self._losses[counts] = self._held.measure(self._twin)
        return self._losses[counts]

    def reaches(self, shares: Sequence[float], bar: float) -> bool:
        """Whether `quality` is at least `bar`; an accuracy is measured on as many images as tell that."""
        if not self._held.by_accuracy:
            return self.quality(shares) >= bar
        counts = tuple(self.removed(shares))
        seen = self._seen.setdefault(counts, _Seen())
        while self._held.share(seen.right) < bar <= self._held.share(self._held.labels - seen.labels + seen.right):
            if seen.pieces == len(self._held.pieces()):
                break
            self._look(counts, seen)
        return self._held.share(seen.right) >= bar

    def _look(self, counts: tuple[int, ...], seen: _Seen) -> None:
        """Show the next piece."""
        self._write(counts)
        right, labels = self._kept.run(seen.pieces, partial(self._held.right, self._twin, seen.pieces))
        seen.pieces, seen.right, seen.labels = seen.pieces + 1, seen.right + right, seen.labels + labels

    def _write(self, counts: Sequence[int]) -> None:
        for number, (unit, now, count) in enumerate(zip(self._ranked, self._now, counts, strict=True)):
            if now != count:
                unit.write(self._twin, self._dense, count)
                self._kept.changed([reading.layer for reading in unit.readings])
                self._now[number] = count

    def widths(self, shares: Sequence[float]) -> dict[str, float]:
        """What is left of every group."""
        result: dict[str, float] = {}
        for unit, count in zip(self._ranked, self.removed(shares), strict=True):
            kept = np.zeros(unit.family.width, dtype=np.bool_)
            kept[unit.order[: unit.family.width - count]] = True
            result.update({name: float(mask.sum()) for name, mask in unit.family.split(kept).items()})
        return result
