"""Which rows are alike: partitions of n rows into exactly r clusters."""

from __future__ import annotations

import warnings

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
