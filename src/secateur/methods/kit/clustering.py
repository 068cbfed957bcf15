"""Which rows are alike: partitions of n rows into exactly r clusters, and how many clusters rows deserve."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np

from secateur._protocols import FloatArray, IntArray


def kmeans(rows: FloatArray, clusters: int, *, seed: int = 0, restarts: int = 10) -> IntArray:
    """k-means by Euclidean distance, k-means++ starts, the best of several; no cluster is empty."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = np.asarray(rows, dtype=np.float64)
    if points.shape[1] > points.shape[0]:  # n points span n dimensions at most: the same distances in less space
        values, vectors = np.linalg.eigh(points @ points.T)
        points = vectors * np.sqrt(np.maximum(values, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: seen to below
        found = KMeans(clusters, n_init=restarts, random_state=seed).fit(points).labels_
    return ordered(_filled(found.astype(np.int64), clusters))


def even(rows: FloatArray, clusters: int, *, seed: int = 0, restarts: int = 10) -> IntArray:
    """Neighbours: contiguous ranges whose sizes differ by one at most, the larger ones first."""
    size, more = divmod(len(rows), clusters)
    return np.repeat(np.arange(clusters), [size + (k < more) for k in range(clusters)])


def biased(rows: FloatArray, clusters: int, *, seed: int = 0, restarts: int = 10) -> IntArray:
    """One large cluster first, all others of one channel."""
    return np.maximum(np.arange(len(rows)) - (len(rows) - clusters), 0)


def ordered(labels: IntArray) -> IntArray:
    """The same clusters, numbered in the order of their first rows."""
    _, first, number = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    result: IntArray = rank[number]
    return result


def _filled(labels: IntArray, clusters: int) -> IntArray:
    """Split the largest cluster, its last row going, until there are as many as there should be."""
    labels = np.unique(labels, return_inverse=True)[1]
    while (count := int(labels.max()) + 1) < clusters:
        largest = np.bincount(labels).argmax()
        labels[np.flatnonzero(labels == largest)[-1]] = count
    return labels


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
