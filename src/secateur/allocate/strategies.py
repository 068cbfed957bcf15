"""The allocators: in which order blocks are worth keeping, and how far down that order the budget reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from secateur._protocols import FloatArray, IntArray
from secateur.allocate.blocks import Blocks, Bounds, last_sizes, longest, refill

#: Steps in which score per cost approaches its bound; marginal costs are taken anew before each.
_STEPS = 16


def global_threshold(blocks: Blocks, bounds: Bounds) -> IntArray:
    """Keep the best blocks of the whole network: one threshold for all groups."""
    order = np.argsort(-blocks.score, kind="stable")  # stable: ties fall to the earlier group, then the better block
    return refill(blocks, order, longest(blocks, order, blocks.floors, bounds), bounds)


def uniform(blocks: Blocks, bounds: Bounds) -> IntArray:
    """Keep the same share of every group as far as blocks allow; what is left goes to the least kept, best scored."""
    share = blocks.end / blocks.full[blocks.group]
    order = np.lexsort((-blocks.score, share))
    return refill(blocks, order, longest(blocks, order, blocks.floors, bounds), bounds)


def per_cost(blocks: Blocks, bounds: Bounds) -> IntArray:
    """Remove what has the lowest score per cost: what one channel adds to the bounds that are not met yet."""
    # a negative score divided by a high cost would look better than by a low one
    score = blocks.score - min(float(blocks.score.min(initial=0.0)), 0.0)
    limits, widths = bounds.values(), blocks.full.copy()
    order = np.arange(len(score))
    for left in range(_STEPS, 0, -1):
        excess = np.maximum(bounds.one(widths) - limits, 0.0)
        if not excess.any():
            break
        order = _by_worth(blocks, score, _marginal(blocks, bounds, widths, excess))
        target = Bounds(bounds.costs, dict(zip(bounds.limits, limits + excess * ((left - 1) / left), strict=True)))
        kept = order[blocks.end[order] <= widths[blocks.group[order]]]
        widths = longest(blocks, kept, blocks.floors, target)
    return refill(blocks, order, widths, bounds)


def _by_worth(blocks: Blocks, score: FloatArray, marginal: FloatArray) -> IntArray:
    """Return all blocks by score per cost, highest first; blocks that cost nothing come first of all."""
    cost = marginal[blocks.group]
    worth = np.full(len(score), np.inf)
    # dividing by the largest cost and score keeps ratios finite and leaves their order alone
    cost, top = cost / max(float(cost.max(initial=0.0)), np.finfo(np.float64).tiny), float(score.max(initial=0.0))
    np.divide(score / top if top > 0 else score, cost, out=worth, where=cost > 0)
    return np.lexsort((-score, -worth))


def _marginal(blocks: Blocks, bounds: Bounds, widths: IntArray, excess: FloatArray) -> FloatArray:
    """Return what one channel of each group costs, as a share of the excess over the bounds that are not met."""
    sizes = last_sizes(blocks, widths)
    smaller = widths - np.diag(sizes)
    saved = bounds.one(widths) - bounds.evaluate(smaller)
    if not (saved[:, excess > 0] > 0).any():
        # two equal peaks: no single group lowers the maximum, so ask which groups would hold one up alone
        sizes = widths - blocks.floors
        saved = bounds.evaluate(blocks.floors + np.diag(sizes)) - bounds.one(blocks.floors)
    shares = (saved[:, excess > 0] / excess[excess > 0]).sum(axis=1)
    marginal: FloatArray = shares / np.maximum(sizes, 1)
    return marginal


#: Name of an allocator that works from a budget -> function from blocks and bounds to widths.
ALLOCATORS: Mapping[str, Callable[[Blocks, Bounds], IntArray]] = {
    "global": global_threshold,
    "uniform": uniform,
    "per_cost": per_cost,
}
