"""What `align` means for groups: the widths of layers are multiples of it, and a layer may be several groups.

Where one channel of a group is several indices of a layer (a head, a position in each group of a convolution), fewer
channels than `align` are enough. Where the width of a layer that is a multiple itself is several groups whose own
widths are none, they go together: all stay whole, or each becomes a multiple, or each loses one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from secateur._protocols import BoolArray, GraphLike, IntArray
from secateur.graph.sides import Sides

_NAMED = 4  # layers named in one sentence
#: What is left of the use of a budget, at least, when the inputs of layers are straightened too.
_CLOSE = 0.95


@runtime_checkable
class _Sided(Protocol):
    """A graph that knows of what its layers are made."""

    def sides(self) -> Sides: ...


@dataclass(frozen=True, eq=False)
class Alignment:
    """The layers whose widths are to be multiples of `align`, and how many channels of each group make one step.

    whole [groups]: widths of the original. sides: None for a graph made by hand, whose channels are one index each.
    """

    align: int
    whole: IntArray
    sides: Sides | None
    steps: IntArray

    @classmethod
    def of(cls, graph: GraphLike, align: int) -> Alignment:
        """What it means for the layers of a graph."""
        whole = np.array([group.width for group in graph.groups], dtype=np.int64)
        sides = graph.sides() if align > 1 and isinstance(graph, _Sided) else None
        return cls(align, whole, sides, np.full(len(whole), align) if sides is None else _steps(sides, align))

    def grid(self, lowest: IntArray) -> tuple[IntArray, IntArray]:
        """Floors and steps, for least widths before alignment.

        A group lies at multiples of its step, unless a layer it is part of only is a multiple if the group loses
        multiples: beside channels that have to stay.
        """
        rests = np.zeros_like(self.whole)
        while True:
            floors = lowest + (rests - lowest) % self.steps
            stuck = floors >= self.whole
            floors = np.minimum(floors, self.whole)
            moved = self._carrying(np.where(stuck, self.whole, rests), stuck)
            if not moved.any():
                return floors, self.steps
            rests[moved] = self.whole[moved] % self.steps[moved]

    def _carrying(self, rests: IntArray, stuck: BoolArray) -> BoolArray:
        """Groups that must make up for what others leave in a layer: there multiples of their steps are none of it."""
        moved = np.zeros(len(self.whole), dtype=np.bool_)
        if self.sides is None:
            return moved
        loose = ~stuck & (rests != self.whole % self.steps)
        for side in np.flatnonzero(self._aligned() & ~self.sides.reads):
            owned = self.sides.owned[side]
            if (self.sides.sizes[side] - owned @ (self.whole - rests)) % self.align:
                moved |= loose & (owned > 0)
        return moved

    def _aligned(self) -> BoolArray:
        """Sides that are multiples in the original."""
        assert self.sides is not None
        return np.asarray(self.sides.sizes % self.align == 0)

    def crooked(self, widths: IntArray, *, inputs: bool = True) -> IntArray:
        """Sides that are no multiples at these widths [groups], though they are in the original; layers' outputs only
        without `inputs`."""
        if self.sides is None:
            return np.zeros(0, dtype=np.int64)
        counted = self._aligned() & (inputs | ~self.sides.reads)
        return np.flatnonzero(counted & (self.sides.kept(widths, self.whole) % self.align != 0))

    def odd(self, widths: IntArray, floors: IntArray, *, inputs: bool) -> BoolArray:
        """Groups that stay whole, are no multiple of their step, need not stay, and make a layer crooked."""
        found = np.zeros(len(widths), dtype=np.bool_)
        between = (widths == self.whole) & (floors < self.whole) & ((self.whole - floors) % self.steps != 0)
        for side in self.crooked(widths, inputs=inputs):
            assert self.sides is not None
            found |= between & (self.sides.owned[side] > 0)
        return found

    def tops(self, floors: IntArray) -> IntArray:
        """The largest widths [groups] on the grid, where the whole is none of it."""
        result: IntArray = self.whole - (self.whole - floors) % self.steps
        return result

    def note(self, widths: IntArray) -> str:
        """The sentence on layers that are no multiples although they were; empty where there are none."""
        crooked = self.crooked(widths)
        if not len(crooked):
            return ""
        assert self.sides is not None
        kept = self.sides.kept(widths, self.whole)
        told = [f"{self.sides.names[side]} {kept[side]}" for side in crooked[:_NAMED]]
        more = f" and {len(crooked) - _NAMED} more" if len(crooked) > _NAMED else ""
        return (
            f"align={self.align} does not hold for {', '.join(told)}{more}: such a layer joins several widths "
            "that are not multiples of it, which cannot all be made multiples, or only by wasting the budget."
        )


def _steps(sides: Sides, align: int) -> IntArray:
    """The fewest channels of each group that are a multiple of `align` in every side it has a part in.

    A side of fewer indices than `align` never is one, so it counts only where a group has no other.
    """
    each = align // np.gcd(sides.owned, align)  # 1 where a group has no part
    wide = sides.sizes >= align
    parts = (sides.owned[wide] > 0).any(axis=0)
    steps = np.lcm.reduce(each[wide], axis=0, initial=1)
    return np.where(parts, steps, align).astype(np.int64)


def straight(
    alignment: Alignment,
    floors: IntArray,
    choose: Callable[[IntArray], IntArray],
    used: Callable[[IntArray], float],
) -> IntArray:
    """The widths an allocator chooses so that layers made of several groups are multiples, too.

    Groups that would leave such a layer crooked lose their last block, and the allocator chooses again. What layers
    read is straightened only where that leaves little of the budget unused.

    Args:
        choose: widths [groups] of largest widths [groups]. used: the share of the budget that widths use.
    """
    tops = alignment.whole.copy()
    widths = choose(tops)
    for inputs in (False, True):
        tried, limit = widths, tops.copy()
        while (odd := alignment.odd(tried, floors, inputs=inputs)).any():
            limit[odd] = alignment.tops(floors)[odd]
            tried = choose(limit)
        if not inputs or used(tried) >= _CLOSE * used(widths):
            widths, tops = tried, limit
    return widths
