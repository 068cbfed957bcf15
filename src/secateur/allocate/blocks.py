"""Groups as stacks of blocks, and the search for the tallest stacks that stay within the bounds.

A group's channels, best first, are cut into its smallest legal width (always kept) and blocks that each lead to the
next legal width. A plan keeps the lowest blocks of every stack, so alignment, minimum widths and ratios hold by
construction, and an allocator is nothing but an order of blocks in which those of one stack come bottom first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from secateur._protocols import BoolArray, CostLike, CostModelLike, FloatArray, GraphLike, IntArray
from secateur.allocate.constraints import Constraints

#: Width vectors evaluated in one call while bisecting; three calls then settle 30,000 blocks.
_SECTIONS = 32
#: Largest number of width vectors in one call, which bounds memory.
_BATCH = 256


def whole_cost(graph: GraphLike) -> CostLike:
    """Costs of the original as attributes, from the cost model itself so that fractions are exact."""
    full = graph.costs.evaluate(np.array([group.width for group in graph.groups], dtype=np.int64))
    found: CostLike = SimpleNamespace(**{name: float(value) for name, value in full.items()})
    return found


@dataclass(frozen=True)
class Blocks:
    """All optional blocks, group after group, bottom first.

    group: number of the block's group; size: its channels; end: the group's width once it is kept; score: mean score
    of its channels; first: [groups + 1] where each group's blocks begin; floors, full: smallest and whole width of
    each group.
    """

    group: IntArray
    size: IntArray
    end: IntArray
    score: FloatArray
    first: IntArray
    floors: IntArray
    full: IntArray


def stack(
    ranked: Sequence[FloatArray], floors: IntArray, constraints: Constraints, steps: IntArray | None = None
) -> Blocks:
    """Cut groups into blocks; `ranked` holds each group's scores, descending.

    floors, steps: of `constraints.grid`; without steps every channel is one index of its layers.
    """
    sizes, ends, scores = [], [], []
    each = [None] * len(floors) if steps is None else steps.tolist()
    for values, floor, step in zip(ranked, floors.tolist(), each, strict=True):
        end = constraints.ends(len(values), floor, step)
        start = np.concatenate([[floor], end[:-1]]).astype(np.int64)[: len(end)]
        ends.append(end)
        sizes.append(end - start)
        scores.append(_means(values, start, end))
    counts = np.array([len(end) for end in ends], dtype=np.int64)
    return Blocks(
        group=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
        size=_joined(sizes, np.int64),
        end=_joined(ends, np.int64),
        score=_joined(scores, np.float64),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        floors=floors,
        full=np.array([len(values) for values in ranked], dtype=np.int64),
    )


def _joined(parts: list[IntArray] | list[FloatArray], dtype: type) -> np.ndarray:
    """Concatenate, with the right type even for no parts at all."""
    return np.concatenate([np.zeros(0, dtype=dtype), *parts])


def _means(values: FloatArray, start: IntArray, end: IntArray) -> FloatArray:
    """Return the mean of each run values[start:end] of descending values, itself descending."""
    if not len(end):
        return np.zeros(0)
    # dividing first keeps sums of huge scores finite; rounding could still raise a mean above the one before
    sums = np.add.reduceat(values / (end - start).max(), start)
    return np.minimum.accumulate(sums * ((end - start).max() / (end - start)))


@dataclass(frozen=True)
class Bounds:
    """A cost model and the limits its costs must not exceed."""

    costs: CostModelLike
    limits: Mapping[str, float]

    def evaluate(self, widths: IntArray) -> FloatArray:
        """Return the bounded costs [n, limits] of the widths [n, groups]."""
        parts = [self.costs.evaluate(widths[begin : begin + _BATCH]) for begin in range(0, len(widths), _BATCH)]
        columns = [np.concatenate([np.asarray(part[name], dtype=np.float64) for part in parts]) for name in self.limits]
        return np.stack(columns, axis=1)

    def one(self, widths: IntArray) -> FloatArray:
        """Return the bounded costs [limits] of one vector of widths."""
        row: FloatArray = self.evaluate(widths[None])[0]
        return row

    def values(self) -> FloatArray:
        """Return the limits as a vector."""
        return np.array(list(self.limits.values()), dtype=np.float64)

    def fit(self, widths: IntArray) -> BoolArray:
        """Say for each of the widths [n, groups] whether it is within every limit."""
        return np.asarray((self.evaluate(widths) <= self.values()).all(axis=1), dtype=np.bool_)


def longest(blocks: Blocks, order: IntArray, base: IntArray, bounds: Bounds, *, near: bool = False) -> IntArray:
    """Return the widths after adding to `base` as many blocks as fit, in the given order and without skipping any.

    `base` itself must fit. Costs grow with every block, so sections narrow down the number; `near` tries small
    numbers first.
    """
    widths, low, high = base, 0, len(order) + 1  # `low` blocks fit and give `widths`, `high` blocks do not
    while high - low > 1:
        if near:
            counts = low + np.unique(np.minimum(1 << np.arange(_SECTIONS), high - low - 1))
            near = False
        else:
            counts = np.unique(np.linspace(low, high, _SECTIONS + 2).astype(np.int64)[1:-1])
            counts = counts[(counts > low) & (counts < high)]
        tried = widths + _added(blocks, order[low : counts[-1]], counts - low)
        fitting = int(np.count_nonzero(bounds.fit(tried)))
        if fitting < len(counts):
            high = int(counts[fitting])
        if fitting:
            widths, low = tried[fitting - 1], int(counts[fitting - 1])
    return widths


def _added(blocks: Blocks, order: IntArray, counts: IntArray) -> IntArray:
    """Return the channels [counts, groups] that the first `count` >= 1 blocks of the order add to each group."""
    groups = len(blocks.full)
    section = np.searchsorted(counts, np.arange(len(order)), side="right")
    cells = np.bincount(
        section * groups + blocks.group[order], weights=blocks.size[order], minlength=len(counts) * groups
    )
    return np.cumsum(cells.reshape(len(counts), groups), axis=0).astype(np.int64)


def refill(blocks: Blocks, order: IntArray, widths: IntArray, bounds: Bounds) -> IntArray:
    """Spend what is left: add blocks in the given order, skipping those that do not fit, until none fits.

    A block that does not fit now never will, since costs only grow; so every round closes at least one group for good.
    """
    opened = widths < blocks.full
    while opened.any():
        candidates = np.flatnonzero(opened)
        tried = np.repeat(widths[None], len(candidates), axis=0)
        tried[np.arange(len(candidates)), candidates] += next_sizes(blocks, widths)[candidates]
        opened[candidates[~bounds.fit(tried)]] = False
        left = order[opened[blocks.group[order]] & (blocks.end[order] > widths[blocks.group[order]])]
        widths = longest(blocks, left, widths, bounds, near=True)
        opened &= widths < blocks.full
    return widths


def next_sizes(blocks: Blocks, widths: IntArray) -> IntArray:
    """Return the size of the block above each group's width, 0 for whole groups."""
    return _sizes_at(blocks, widths, 0)


def last_sizes(blocks: Blocks, widths: IntArray) -> IntArray:
    """Return the size of the topmost optional block within each group's width, 0 for groups at their floor."""
    return _sizes_at(blocks, widths, -1)


def _sizes_at(blocks: Blocks, widths: IntArray, shift: int) -> IntArray:
    """Return the size of the block `shift` places from the first that lies above each width."""
    kept = np.bincount(blocks.group[blocks.end <= widths[blocks.group]], minlength=len(widths))
    place = blocks.first[:-1] + kept + shift
    inside = (place >= blocks.first[:-1]) & (place < blocks.first[1:])
    sizes = np.zeros(len(widths), dtype=np.int64)
    sizes[inside] = blocks.size[place[inside]]
    return sizes
