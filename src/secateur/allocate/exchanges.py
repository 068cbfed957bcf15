"""The last percent of a budget, where blocks are too large for what is left of it: some are kept in place of others.

An allocator takes blocks in the order of their worth and skips those that do not fit. What it leaves over is less than
any block costs, which is much where a network is small; then a block more here and a smaller one less there uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from secateur._protocols import FloatArray, IntArray
from secateur.allocate.blocks import Blocks, Bounds

#: Most exchanges that are looked at before one is made; it bounds how many blocks change places at once.
_MOST = 1 << 14


def exchanged(blocks: Blocks, bounds: Bounds, widths: IntArray, close: float) -> IntArray:
    """Return widths [groups] within the bounds that use the nearest one to the share `close`, beginning at `widths`.

    In an exchange one group keeps some blocks more, and another some less or none does. Of those that use enough, the
    one that loses the least score is made, and the search is over; while there is none, the one that uses most is, as
    long as that is more than before. Ties fall to the earlier groups, then to fewer blocks.
    """
    legal, worth = _tables(blocks)
    groups = np.arange(len(widths))
    tops = np.diff(blocks.first)
    levels = (legal[:, 1:] <= widths[:, None]).sum(1)  # optional blocks that are kept
    reach = max(1, math.isqrt(_MOST // max(len(widths) ** 2, 1)))
    best = float(used(bounds, widths[None])[0])
    while best < close:
        moves = np.array(list(_moves(levels, tops, reach)), dtype=np.int64).reshape(-1, 4)
        tried = np.repeat(levels[None], len(moves), axis=0)
        tried[np.arange(len(moves)), moves[:, 0]] += moves[:, 1]
        tried[np.arange(len(moves)), moves[:, 2]] -= moves[:, 3]
        shares = used(bounds, legal[groups, tried])
        if shares.max(initial=best) <= best:
            break
        enough = np.flatnonzero(shares >= close)
        kept = worth[groups, tried[enough]].sum(1)
        chosen = int(enough[np.argmax(kept)]) if len(enough) else int(np.argmax(shares))
        levels, best = tried[chosen], float(shares[chosen])
    return np.asarray(legal[groups, levels], dtype=np.int64)


def used(bounds: Bounds, widths: IntArray) -> FloatArray:
    """The share of the bound that is nearest, for each of the widths [n, groups]; -1 where one is not met."""
    costs, limits = bounds.evaluate(widths), bounds.values()
    shares = (costs / np.maximum(limits, np.finfo(np.float64).tiny)).max(axis=1)
    return np.where((costs <= limits).all(axis=1), shares, -1.0)


def _moves(levels: IntArray, tops: IntArray, reach: int) -> Iterator[tuple[int, int, int, int]]:
    """(group, how many blocks it keeps more, another group, how many it keeps less)."""
    room = [(min(top - at, reach), min(at, reach)) for at, top in zip(levels.tolist(), tops.tolist(), strict=True)]
    for more, (above, _) in enumerate(room):
        for up in range(1, above + 1):
            yield more, up, more, 0
            for less, (_, below) in enumerate(room):
                if less != more:
                    yield from ((more, up, less, down) for down in range(1, below + 1))


def _tables(blocks: Blocks) -> tuple[IntArray, FloatArray]:
    """Widths and the score of all optional blocks kept [groups, most of them + 1], by group and how many are kept.

    What stands behind a group's last block is never asked for; its widths are beyond all others.
    """
    shape = (len(blocks.full), int(np.diff(blocks.first).max(initial=0)) + 1)
    widths, worth = np.full(shape, np.iinfo(np.int64).max, dtype=np.int64), np.zeros(shape)
    widths[:, 0] = blocks.floors
    for group, (begin, end) in enumerate(zip(blocks.first[:-1].tolist(), blocks.first[1:].tolist(), strict=True)):
        widths[group, 1 : end - begin + 1] = blocks.end[begin:end]
        worth[group, 1 : end - begin + 1] = np.cumsum(blocks.score[begin:end] * blocks.size[begin:end])
    return widths, worth
