"""The partitions of the paper: by k-means, and two that it compares it with; and how many clusters filters deserve."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from secateur._protocols import FloatArray, IntArray
from secateur.methods.kit.clustering import kmeans


def even(rows: FloatArray, clusters: int, *, seed: int = 0, restarts: int = 10) -> IntArray:
    """Neighbours: contiguous ranges whose sizes differ by one at most, the larger ones first."""
    size, more = divmod(len(rows), clusters)
    return np.repeat(np.arange(clusters), [size + (k < more) for k in range(clusters)])


def biased(rows: FloatArray, clusters: int, *, seed: int = 0, restarts: int = 10) -> IntArray:
    """One large cluster first, all others of one channel."""
    return np.maximum(np.arange(len(rows)) - (len(rows) - clusters), 0)


def spread(rows: FloatArray) -> FloatArray:
    """How far each row is from those before it, when the farthest row is always taken next.

    With the r highest as centres no row is farther from one than the score of the next: where scores fall off soon, few
    clusters do.
    """
    points = np.asarray(rows, dtype=np.float64)
    square = (points**2).sum(1)
    first = int(square.argmax())
    score = np.zeros(len(points))
    nearest, taken = np.full(len(points), np.inf), first
    for _ in range(len(points)):
        score[taken] = nearest[taken]
        nearest = np.minimum(nearest, np.maximum(square + square[taken] - 2 * points @ points[taken], 0.0))
        nearest[taken] = -np.inf
        taken = int(nearest.argmax())
    score[first] = score[np.isfinite(score)].max(initial=0.0)
    result: FloatArray = np.sqrt(score)
    return result


#: Name -> function from rows and a number of clusters to the number of each row's cluster.
CLUSTERINGS: Mapping[str, Callable[..., IntArray]] = {"kmeans": kmeans, "even": even, "biased": biased}
