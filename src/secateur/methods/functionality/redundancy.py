"""Which channels are there several times: of every cluster the weakest go, and the last of it only in the end.

γ: how much outputs depend on a channel [width]; labels: its cluster [width]; ρ: the share of redundant ones gone.
"""

from __future__ import annotations

import numpy as np

from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.methods.kit.clustering import ordered


def going(labels: IntArray, gamma: FloatArray) -> FloatArray:
    """The ρ at which each channel goes first: up to 1 what is redundant; the last of each cluster later, the weakest
    first."""
    width, clusters = len(labels), int(labels.max()) + 1
    result, free = np.full(width, np.inf), width - clusters
    for number in range(1, free + 1):
        gone = removed(labels, gamma, number)
        result[gone] = np.minimum(result[gone], number / free)
    last = np.flatnonzero(np.isinf(result))
    result[last[np.argsort(gamma[last], kind="stable")]] = 1.0 + np.arange(1, len(last) + 1) / clusters
    return result


def removed(labels: IntArray, gamma: FloatArray, number: int) -> BoolArray:
    """Which `number` channels go: shares of clusters by `split`, in each the smallest γ; the last of each stays."""
    labels = ordered(labels)
    order = np.lexsort((gamma, labels))
    sizes = np.bincount(labels)
    place = np.empty(len(labels), dtype=np.int64)  # in its cluster, weakest first
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    gone: BoolArray = place < split(sizes, number)[labels]
    return gone


def split(sizes: IntArray, number: int) -> IntArray:
    """Divide removals among clusters in proportion to |S| - 1, by largest remainder; the first of equals."""
    spare = np.asarray(sizes, dtype=np.int64) - 1
    total = int(spare.sum())
    number = min(int(number), total)
    if not number:
        return np.zeros_like(spare)
    shares, left = np.divmod(number * spare, total)
    most = np.argsort(-left, kind="stable")[: number - int(shares.sum())]
    shares[most] += 1
    return np.asarray(shares)
