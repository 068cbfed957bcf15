"""Networks that have lost channels, measured on held-out images with no more work than the question needs.

What runs before the first layer that changed gives what it gave before, and is not computed again. Where the question
is whether a bar is reached, images are looked at until the rest cannot change the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from secateur.graph.modules import clone_module, output_tensors
from secateur.methods.cap.ranking import Ranked
from secateur.statistics.held_out import HeldOut

_Result = TypeVar("_Result")
#: Bytes of outputs that are kept; layers that find no room are computed in every run.
_MOST = 1 << 30


class KeptOutputs:
    """What the layers of a network gave to each piece of data, until they, or layers before them, change.

    An output counts up to the place where its layer ended: what runs inside a layer is a part of it. Copies are kept
    and handed out, so that what is written into them in place, in whatever way, is written anew in every run.
    """

    def __init__(self, model: nn.Module, most: int = _MOST) -> None:
        """Keep what convolutions and linear layers of `model` give; it is nobody else's. most: bytes."""
        self._room = most
        self._places: dict[str, int] = {}  # in the order in which layers begin
        self._weights = {name: [*module.parameters(recurse=False)] for name, module in model.named_modules()}
        self._uses = _Uses(self._weights)
        self._outputs: dict[tuple[int, str], tuple[torch.Tensor, int]] = {}  # with the place where their layer ended
        self._right: dict[int, float] = {}  # of each piece: what ended before this place is what it was
        self._piece, self._ran = 0, 0
        for name, module in model.named_modules():
            if isinstance(module, (_ConvNd, nn.Linear)):
                module.forward = partial(self._run, name, module.forward)  # type: ignore[method-assign]

    def run(self, piece: int, call: Callable[[], _Result]) -> _Result:
        """What `call` gives, which runs the network on this piece."""
        self._piece, self._ran = piece, 0
        drawn = _draws()
        with nullcontext() if self._right else self._uses.noted(lambda: self._ran - 1):
            result = call()
        if _draws() != drawn:  # what is kept would be of another draw than what is around it
            self._room = 0
            self._outputs.clear()
        self._right[piece] = float("inf")
        return result

    def changed(self, layers: Collection[str]) -> None:
        """These layers have other weights, or what comes behind them has."""
        places = (min(self._places.get(n, 0), *map(self._uses.first, self._weights.get(n, ()))) for n in layers)
        first = min(places, default=float("inf"))
        self._right = {piece: min(place, first) for piece, place in self._right.items()}

    def _run(self, name: str, forward: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        place = self._places.setdefault(name, len(self._places))
        if place < self._ran:  # runs again, or in another order than before: only the first call is kept
            return forward(*args, **keywords)
        key = self._piece, name
        output, end = self._outputs.get(key, (None, 0))
        if output is not None and end <= self._right.get(self._piece, 0):
            self._ran = end
            return output.clone()
        self._ran = place + 1
        found = forward(*args, **keywords)
        if isinstance(found, torch.Tensor):
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[int, str], output: torch.Tensor) -> None:
        before, _ = self._outputs.pop(key, (None, 0))
        self._room += 0 if before is None else before.nbytes
        if output.nbytes <= self._room:
            self._room -= output.nbytes
            self._outputs[key] = output.clone(), self._ran


class _Uses(TorchFunctionMode):
    """The place of the layer that began last when a weight was first used: plain functions may use it, too."""

    def __init__(self, weights: Mapping[str, Sequence[nn.Parameter]]) -> None:
        super().__init__()
        self._first = {id(weight): float("inf") for several in weights.values() for weight in several}
        self._place: Callable[[], int] = int

    def first(self, weight: nn.Parameter) -> float:
        """The place from which on nothing is what it was, if this weight has changed."""
        return self._first[id(weight)]

    @contextmanager
    def noted(self, place: Callable[[], int]) -> Iterator[None]:
        """Note what is used in here. place: of the layer that began last."""
        self._place = place
        with self:
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in output_tensors([list(args), kwargs or {}]):
            if id(value) in self._first:
                self._first[id(value)] = min(self._first[id(value)], self._place())
        return func(*args, **(kwargs or {}))


def _draws() -> list[bytes]:
    """The states of the generators that a forward may draw from."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])
    return [state.numpy().tobytes() for state in states]


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
        self._kept: KeptOutputs | None = None  # from the first piece on: a loss is measured on all at once
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
        if self._kept is None:
            self._kept = KeptOutputs(self._twin)
        right, labels = self._kept.run(seen.pieces, partial(self._held.right, self._twin, seen.pieces))
        seen.pieces, seen.right, seen.labels = seen.pieces + 1, seen.right + right, seen.labels + labels

    def _write(self, counts: Sequence[int]) -> None:
        for number, (unit, now, count) in enumerate(zip(self._ranked, self._now, counts, strict=True)):
            if now != count:
                unit.write(self._twin, self._dense, count)
                if self._kept is not None:
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
