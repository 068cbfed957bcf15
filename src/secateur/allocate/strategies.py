"""The allocators: in which order blocks are worth keeping, and how far down that order the budget reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from secateur._protocols import FloatArray, IntArray
from secateur.allocate.blocks import Blocks, Bounds, last_sizes, longest, refill

#: Steps in which score per cost nears its bound, marginal costs taken anew in each; 64 kept up to 1.1% more score.
_STEPS = 8


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
    limits, widths = bounds.values(), blocks.full.copy()
    everything = np.arange(len(blocks.score))
    marginal = np.ones(len(widths))
    for left in range(_STEPS, 0, -1):
        excess = np.maximum(bounds.one(widths) - limits, 0.0)
        if not excess.any():
            break
        marginal = _marginal(blocks, bounds, widths, excess)
        kept = everything[blocks.end <= widths[blocks.group]]
        target = Bounds(bounds.costs, dict(zip(bounds.limits, limits + excess * ((left - 1) / left), strict=True)))
        widths = longest(blocks, _by_worth(blocks, marginal, kept), blocks.floors, target)
    return refill(blocks, _by_worth(blocks, marginal, everything), widths, bounds)


def _by_worth(blocks: Blocks, marginal: FloatArray, chosen: IntArray) -> IntArray:
    """Return the `chosen` blocks by score per cost, highest first; blocks that cost nothing come first of all.

    What has a negative score does harm, and the more the dearer it is: it is worth score times cost. Adding a number to
    all scores instead, so that none is negative, would leave nothing but the cost to decide.
    """
    tiny = np.finfo(np.float64).tiny
    # dividing by the largest cost and score keeps ratios finite and leaves their order alone
    cost = (marginal / max(float(marginal.max(initial=0.0)), tiny))[blocks.group[chosen]]
    score = (blocks.score / max(float(np.abs(blocks.score).max(initial=0.0)), tiny))[chosen]
    paid = np.maximum(cost, tiny)
    worth = np.where(score > 0, score / paid, score * paid)
    worth[cost <= 0] = np.inf
    # ties: by score where nothing is paid, then the cheaper, then the earlier group, whose blocks stay bottom first
    return chosen[np.lexsort((cost, np.where(cost <= 0, -score, 0.0), -worth))]


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
