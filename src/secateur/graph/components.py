"""Connected components of tied slots: the one call in which the channels of a network fall out."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from secateur.graph.labels import Ids


def components(size: int, ties: list[tuple[Ids, Ids]], links: Collection[int] = ()) -> Ids:
    """The connected component of every slot.

    Ties number `links` are to an axis nothing else had touched: it points there, which leaves few edges to search.
    """
    parent = np.arange(size, dtype=np.int64)
    if links:
        ends, starts = _joined([ties[k] for k in links])
        parent[starts] = ends
    for _ in range(_JUMPS):
        further = parent[parent]
        if np.array_equal(further, parent):
            left = [pair for k, pair in enumerate(ties) if k not in links]
            if not left:
                return parent
            rows, columns = _joined(left)
            return _connected(size, parent[rows], parent[columns])[parent]
        parent = further
    return _connected(size, *_joined(ties))  # pointers in a circle: search all edges


_JUMPS = 64  # pointers reach their end in at most the logarithm of their longest chain


def _joined(ties: list[tuple[Ids, Ids]]) -> tuple[Ids, Ids]:
    return np.concatenate([a for a, _ in ties]), np.concatenate([b for _, b in ties])


def _connected(size: int, rows: Ids, columns: Ids) -> Ids:
    edges = sp.coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return component.astype(np.int64)
