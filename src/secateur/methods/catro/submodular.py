"""Widths by a submodular utility: the gain of a channel shrinks with what its group has, and is weighed by its cost.

U(I_1, ..., I_L) = sum_l log(1 + beta sum_{c in I_l} s_lc) of shares s_l >= 0, each group's adding up to 1, is monotone
and submodular: a concave function of a modular sum, a group. Greedily the channel with the largest gain per cost that
fits is added next, from the floors up, costs as they are at the widths reached (Hu et al., arXiv:2110.10921, as far as
it is known; the utility is a reconstruction).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from secateur._protocols import FloatArray, IntArray
from secateur.allocate.blocks import Blocks, Bounds
from secateur.allocate.exchanges import used
from secateur.allocate.strategies import uniform
from secateur.methods.kit.aim import CLOSE

#: A wide group is filled in at most so many steps, until the budget is near.
_STEPS = 128
#: How much of U it may cost to use the budget up.
_DEAR = 0.01


def shares(scores: FloatArray) -> FloatArray:
    """Nonnegative scores as shares of their sum; equal shares where all are 0."""
    peak = float(scores.max(initial=0.0))
    if peak <= 0:
        return np.full(len(scores), 1.0 / max(len(scores), 1))
    scaled = scores / peak
    return np.asarray(scaled / scaled.sum())


def utility(kept: Sequence[FloatArray], beta: float) -> float:
    """U of groups of which these shares are kept."""
    return float(sum(np.log1p(beta * float(part.sum())) for part in kept))


class _Stacks:
    """The shares that each group has at every width it may take."""

    def __init__(self, blocks: Blocks, ranked: Sequence[FloatArray], beta: float) -> None:
        sums = [np.concatenate([[0.0], np.cumsum(values)]) for values in ranked]
        self.worth = [np.log1p(beta * values) for values in sums]  # U of a group by its width
        self.ends = [blocks.end[a:b] for a, b in zip(blocks.first[:-1], blocks.first[1:], strict=True)]

    def utility(self, widths: IntArray) -> float:
        return float(sum(worth[width] for worth, width in zip(self.worth, widths.tolist(), strict=True)))

    def next(self, group: int, width: int, step: int) -> int:
        """The width `step` blocks above, or as far as there are any; the same where there is none."""
        ends = self.ends[group]
        at = int(np.searchsorted(ends, width, side="right"))
        return int(ends[min(at + step, len(ends)) - 1]) if at < len(ends) else width


def greedy(blocks: Blocks, bounds: Bounds, ranked: Sequence[FloatArray], beta: float) -> IntArray:
    """Widths within the bounds; `ranked` holds each group's shares, descending.

    The better of the greedy widths and of the same share of every group, for greed by gain per cost alone has no
    guarantee. Where bounds are products of widths, a gain per cost can only fall while others grow, so a heap of old
    values that are checked when they come up finds the largest (a peak of activations is no such bound). Where more
    than a hundredth of the budget is left, channels are exchanged if that costs less than a hundredth of U.
    """
    stacks = _Stacks(blocks, ranked, beta)
    found = [_climb(blocks, bounds, stacks, blocks.floors), uniform(blocks, bounds)]
    best = max(found, key=stacks.utility)
    if used(bounds, best[None])[0] >= CLOSE:
        return best
    nearer = [_climb(blocks, bounds, stacks, row) for row in _exchanged(blocks, bounds, stacks, best)]
    least = (1 - _DEAR) * stacks.utility(best)
    worthy = [best, *(widths for widths in nearer if stacks.utility(widths) >= least)]
    return max(worthy, key=lambda widths: (min(used(bounds, widths[None])[0], CLOSE), stacks.utility(widths)))


def _exchanged(blocks: Blocks, bounds: Bounds, stacks: _Stacks, widths: IntArray) -> Iterator[IntArray]:
    """Widths with one more block in one group and as few less as possible in another, for all pairs that fit.

    Where channels are too large for the budget to be used up, one of these leaves less of it.
    """
    for group in np.flatnonzero(widths < blocks.full).tolist():
        for other in np.flatnonzero(widths > blocks.floors).tolist():
            ends = stacks.ends[other]
            less = np.concatenate([[blocks.floors[other]], ends[ends < widths[other]]])
            if other == group:
                continue
            tried = np.repeat(widths[None], len(less), axis=0)
            tried[:, group], tried[:, other] = stacks.next(group, int(widths[group]), 1), less
            fitting = np.flatnonzero(bounds.fit(tried))
            if len(fitting):
                yield tried[fitting[-1]]


def _climb(blocks: Blocks, bounds: Bounds, stacks: _Stacks, start: IntArray) -> IntArray:
    """Add steps to the widths `start` until nothing fits."""
    widths, limits = start.copy(), bounds.values()
    steps = np.array([max(1, len(ends) // _STEPS) for ends in stacks.ends], dtype=np.int64)
    now = bounds.one(widths)

    def look(group: int) -> tuple[float, int, FloatArray]:
        """Gain per cost of a group's next step, the width it leads to, and what all would cost."""
        width = int(widths[group])
        wider = stacks.next(group, width, int(steps[group]))
        tried = widths.copy()
        tried[group] = wider
        cost = bounds.one(tried)
        gain = float(stacks.worth[group][wider] - stacks.worth[group][width])
        price = float(((cost - now) / limits).sum())
        return (gain / price if price > 0 else np.inf), wider, cost

    heap = [(-look(k)[0], k) for k in range(len(widths)) if widths[k] < blocks.full[k]]
    heapq.heapify(heap)
    while heap:
        _, group = heapq.heappop(heap)
        worth, wider, cost = look(group)
        if heap and -worth > heap[0][0]:
            heapq.heappush(heap, (-worth, group))  # it has fallen behind another
            continue
        if (cost <= limits).all():
            widths[group], now = wider, cost
            if wider < blocks.full[group]:
                heapq.heappush(heap, (-look(group)[0], group))
        elif steps[group] > 1:
            steps[group] = max(1, int(steps[group]) // 4)
            heapq.heappush(heap, (-look(group)[0], group))
        # else: what does not fit now never will
    return widths
