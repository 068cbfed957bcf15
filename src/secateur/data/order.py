"""Which image comes when: every random choice is a pure function of a seed and of what it is for.

Built on raw 64-bit words, whose sequence numpy guarantees, so that the same seed means the same under any version.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_HALF = (1 << 32) - 1


def words(count: int, *, seed: int, purpose: str, epoch: int = 0, batch: int = 0) -> NDArray[np.uint64]:
    """`count` random 64-bit words that depend on nothing but the other arguments; two purposes never share a stream."""
    entropy = (seed & _HALF, (seed >> 32) & _HALF, zlib.crc32(purpose.encode()), epoch, batch)
    return np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(count)


def uniform(shape: tuple[int, ...], *, seed: int, purpose: str, epoch: int = 0, batch: int = 0) -> NDArray[np.float64]:
    """Numbers from 0 up to, but not including, 1."""
    raw = words(math.prod(shape), seed=seed, purpose=purpose, epoch=epoch, batch=batch)
    return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53


def permutation(count: int, *, seed: int, purpose: str, epoch: int = 0) -> Indices:
    """The numbers below `count` in random order."""
    return np.argsort(words(count, seed=seed, purpose=purpose, epoch=epoch), kind="stable").astype(np.int64)


def rank_slice(count: int, rank: int, world: int) -> slice:
    """The contiguous part of a batch of `count` that process `rank` of `world` takes; sizes differ by at most one."""
    return slice(rank * count // world, (rank + 1) * count // world)


def balanced(labels: NDArray[Any], count: int, *, seed: int) -> Indices:
    """`count` positions, drawn at random, with as many of each class as there can be; sorted.

    A class that runs out leaves its share to the others. A smaller count with the same seed gives a part of a larger.
    """
    turn, _ = _turns(labels, seed, "balanced subset")
    return _first(turn.astype(np.float64), labels, count, seed, "balanced subset ties")


def stratified(labels: NDArray[Any], count: int, *, seed: int) -> Indices:
    """`count` positions, drawn at random, with each class's share of them as in the whole; sorted."""
    turn, size = _turns(labels, seed, "stratified share")
    return _first((turn + 0.5) / size, labels, count, seed, "stratified share ties")


def _turns(labels: NDArray[Any], seed: int, purpose: str) -> tuple[Indices, Indices]:
    """For every position its place in a random order of its class, and the size of that class."""
    order = permutation(len(labels), seed=seed, purpose=purpose)
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, start, size = np.unique(labels[by_class], return_index=True, return_counts=True)
    turn, total = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    turn[by_class] = np.arange(len(labels)) - np.repeat(start, size)
    total[by_class] = np.repeat(size, size)
    return turn, total


def _first(key: NDArray[np.float64], labels: NDArray[Any], count: int, seed: int, purpose: str) -> Indices:
    """The `count` positions of the smallest keys; between classes with the same key, a random one comes first."""
    classes, number = np.unique(labels, return_inverse=True)
    luck = permutation(len(classes), seed=seed, purpose=purpose)[number]
    return np.sort(np.lexsort((luck, key))[:count]).astype(np.int64)
