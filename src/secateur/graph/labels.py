"""Labels and the ledger: the vocabulary in which one trace describes which indices are coupled.

A *label* gives every dimension of a tensor either None (batch, spatial: never pruned) or an *axis*, an integer array
with one slot id per index. Rules write what they learn into the `Ledger`; `channels.solve` reads it once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secateur.graph.forms import Form

Ids = NDArray[np.int64]
Axis = Ids | None
Label = tuple[Axis, ...]


@dataclass
class Product:
    """A dimension that is the product of several: slot (i, j, ...) lives iff every axis lives at its coordinate."""

    slots: Ids  # shape = one dimension per axis
    axes: tuple[Ids, ...]
    where: str


@dataclass
class Macs:
    """Multiply-accumulates of one operator: `coefficient` times the alive counts of `axes`."""

    op: int
    coefficient: int
    axes: tuple[Ids, ...]


@dataclass
class Grouped:
    """A grouped convolution: its ties number `first` to `last` say that position j of all groups goes together."""

    call: int  # -1: of the run with training branches on
    groups: int
    rows: Ids  # of the weight
    columns: Ids
    source: Ids  # of the input
    first: int
    last: int
    form: Form | None


@dataclass
class Ledger:
    """Everything a trace learned: ids, ties, fixed and inexact slots, products, MACs."""

    size: int = 0
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    fixes: list[tuple[Ids, str]] = field(default_factory=list)  # an empty reason: structural, not worth reporting
    inexacts: list[tuple[Ids, str]] = field(default_factory=list)
    mixed: list[tuple[Ids, str, bool]] = field(default_factory=list)  # values meet along it; of constants alone?
    consumed: list[Ids] = field(default_factory=list)  # axes of weights that an operator sums over
    emitted: list[Ids] = field(default_factory=list)  # axes of weights that go on in what an operator gives
    reduced: list[Ids] = field(default_factory=list)  # axes of which a reduction leaves one value
    decides: bool = False  # the code read a number of the data, and may go another way by it
    heads: list[Ids] = field(default_factory=list)  # batch axes of activation-by-activation products: attention heads
    products: list[Product] = field(default_factory=list)
    macs: list[Macs] = field(default_factory=list)
    grouped: list[Grouped] = field(default_factory=list)
    links: set[int] = field(default_factory=set)  # numbers of ties whose second axis nothing had touched before
    training: bool = False  # the run being recorded is the one with training branches on
    _untouched: set[int] = field(default_factory=set)
    _factored: dict[tuple[bytes, tuple[int, ...]], tuple[Ids, ...]] = field(default_factory=dict)
    _merged: dict[tuple[bytes, ...], Ids] = field(default_factory=dict)

    def fresh(self, count: int) -> Ids:
        """New slot ids, `count` of them."""
        ids = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        return ids

    def parameter(self, count: int) -> Ids:
        """Fresh ids for one dimension of a parameter or buffer; the caller keeps the array alive."""
        ids = self.fresh(count)
        self._untouched.add(id(ids))
        return ids

    def tie(self, a: Ids, b: Ids) -> None:
        """Slot a[i] and slot b[i] are coupled, for every i."""
        if a is b:
            return
        untouched = self._untouched
        if id(a) in untouched and id(b) not in untouched:
            a, b = b, a
        if id(b) in untouched:  # most ties: a parameter meets the activation it belongs to
            self.links.add(len(self.ties))
            untouched.discard(id(a))
            untouched.discard(id(b))
        self.ties.append((a.ravel(), b.ravel()))

    def fix(self, axis: Axis, reason: str) -> None:
        """The slots can never be removed; `reason` is told to the user (empty: not worth telling)."""
        if axis is not None and axis.size:
            self.fixes.append((np.ravel(axis), reason))

    def inexact(self, axis: Axis, reason: str) -> None:
        """Removing one of these slots changes other channels' values."""
        if axis is not None:
            self.inexacts.append((np.ravel(axis), reason))

    def mix(self, axis: Axis, reason: str, constant: bool) -> None:
        """Values of these slots meet in one operator; `constant`: no input had a part in them."""
        if axis is not None and axis.size:
            self.mixed.append((np.ravel(axis), reason, constant))

    def constant(self, count: int) -> Ids:
        """Slots that exist and never change: an unlabelled stretch inside a labelled dimension."""
        ids = self.fresh(count)
        self.fix(ids, "")
        return ids

    def join(self, a: Axis, b: Axis, reason: str) -> Axis:
        """The axis of two dimensions that meet element by element; an unlabelled partner fixes the labelled one."""
        if a is None or b is None:
            self.fix(a, reason)
            self.fix(b, reason)
            return None
        self.tie(a, b)
        return a

    def merge(self, axes: Sequence[Axis], sizes: Sequence[int], where: str) -> Axis:
        """The axis of several adjacent dimensions flattened into one."""
        labelled = [k for k, axis in enumerate(axes) if axis is not None and sizes[k] > 1]
        if not labelled:
            only = [axis for axis in axes if axis is not None]
            return only[0] if len(only) == 1 and math.prod(sizes) == 1 else None
        parts = [axes[k] for k in labelled]
        shape = tuple(sizes[k] if k in labelled else 1 for k in range(len(sizes)))
        if len(parts) == 1:
            slots = parts[0]
            assert slots is not None
        else:
            slots = self._product_slots([p for p in parts if p is not None], where)
        return np.broadcast_to(slots.reshape(shape), tuple(sizes)).ravel()

    def _product_slots(self, axes: list[Ids], where: str) -> Ids:
        key = tuple(a.tobytes() for a in axes)
        if key not in self._merged:
            sizes, periods = tuple(len(a) for a in axes), tuple(_period(a) for a in axes)
            if periods == sizes:
                slots = self.fresh(math.prod(sizes)).reshape(sizes)
                self.products.append(Product(slots, tuple(axes), where))
            else:
                few = self._product_slots([a[:n] for a, n in zip(axes, periods, strict=True)], where)
                slots = np.tile(few, _times(sizes, periods))
            self._merged[key] = slots
            self._factored[slots.tobytes(), sizes] = tuple(axes)
        return self._merged[key]

    def split(self, axis: Axis, sizes: Sequence[int], where: str) -> list[Axis]:
        """The axes of one dimension viewed as several (row-major); the inverse of `merge` where there is one."""
        if axis is None:
            return [None] * len(sizes)
        grid = axis.reshape(tuple(sizes))
        varying = [k for k in range(len(sizes)) if sizes[k] > 1 and not bool((grid == grid.take([0], axis=k)).all())]
        result: list[Axis] = [None] * len(sizes)
        if len(varying) == 1:
            index = tuple(slice(None) if k == varying[0] else 0 for k in range(len(sizes)))
            result[varying[0]] = np.ascontiguousarray(grid[index])
        elif len(varying) > 1:
            index = tuple(slice(None) if k in varying else 0 for k in range(len(sizes)))
            for k, part in zip(varying, self._factors(np.ascontiguousarray(grid[index]), where), strict=True):
                result[k] = part
        elif axis.size == 1:
            result[0] = axis
        return result

    def _factors(self, slots: Ids, where: str) -> tuple[Ids, ...]:
        key = (slots.tobytes(), slots.shape)
        if key not in self._factored:
            periods = tuple(_period(np.moveaxis(slots, k, 0)) for k in range(slots.ndim))
            if periods == slots.shape:
                axes = tuple(self.fresh(n) for n in slots.shape)
                self.products.append(Product(slots, axes, where))
            else:  # heads along the batch: the same ones for every sample
                few = self._factors(np.ascontiguousarray(slots[tuple(map(slice, periods))]), where)
                axes = tuple(np.tile(a, n) for a, n in zip(few, _times(slots.shape, periods), strict=True))
            self._factored[key] = axes
            self._merged[tuple(a.tobytes() for a in axes)] = slots
        return self._factored[key]

    def view(self, label: Label, old: Sequence[int], new: Sequence[int], where: str) -> Label:
        """The label of a tensor of shape `old` viewed as shape `new`, over the common refinement of both shapes."""
        if 0 in old or 0 in new:
            return (None,) * len(new)
        result: list[Axis] = []
        for i0, i1, j0, j1 in _segments(old, new):
            axes, sizes, out = label[i0:i1], old[i0:i1], new[j0:j1]
            if len(axes) == 1 and len(out) == 1:
                result.append(axes[0])
                continue
            result += self._view_segment(axes, sizes, out, where)
        return tuple(result)

    def _view_segment(self, axes: Label, sizes: Sequence[int], out: Sequence[int], where: str) -> list[Axis]:
        # dimensions of size one come and go freely; what is left often matches one to one
        solid = [(a, n) for a, n in zip(axes, sizes, strict=True) if n > 1]
        kept = [n for n in out if n > 1]
        if [n for _, n in solid] == kept:
            queue = iter(a for a, _ in solid)
            lone = [a for a, n in zip(axes, sizes, strict=True) if n == 1 and a is not None]
            ones = iter(lone if len(lone) == 1 else [])
            return [next(queue) if n > 1 else next(ones, None) for n in out]
        merged = self.merge([a for a, _ in solid], [n for _, n in solid], where)
        if merged is None:
            return [None] * len(out)
        return self.split(merged, out, where) if len(out) > 1 else [merged]


def _period(slots: Ids) -> int:
    """After how many rows the rows of `slots` come again, from first to last; how many there are if they do not."""
    count, first = len(slots), slots.reshape(len(slots), -1)[:, 0]
    for period in np.flatnonzero(first == first[0])[1:].tolist():
        if count % period == 0 and bool(
            (slots == np.tile(slots[:period], (count // period,) + (1,) * (slots.ndim - 1))).all()
        ):
            return int(period)
    return count


def _times(sizes: Sequence[int], periods: Sequence[int]) -> tuple[int, ...]:
    return tuple(n // p for n, p in zip(sizes, periods, strict=True))


def _segments(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[int, int, int, int]]:
    """Cut two shapes of equal product into the smallest runs of dimensions with equal products."""
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        a = b = 1
        if i < len(old):
            a, i = old[i], i + 1
        if j < len(new):
            b, j = new[j], j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        # leftover ones at the end of either shape belong to the last run
        if i == len(old) or j == len(new):
            while i < len(old) and old[i] == 1:
                i += 1
            while j < len(new) and new[j] == 1:
                j += 1
        yield i0, i, j0, j
