"""Dimensions that are the product of several (heads and their features, groups of a shuffle): which one is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from secateur.graph.labels import Ids, Ledger, Product


def resolve_products(
    ledger: Ledger, component: Ids, fixes: list[tuple[Ids, str]], attention: str
) -> tuple[list[tuple[Ids, Ids]], list[tuple[Ids, str]]]:
    """Of the axes of every product at most one may be pruned; choose it, tie the slots to it, fix the others.

    Axes that are tied anywhere in the network choose together, so that the two sides of an attention product agree.
    """
    frozen = np.zeros(component.max(initial=0) + 1, dtype=bool)
    for axis, _ in fixes:
        frozen[component[axis]] = True
    cluster, count = _cluster_axes(ledger.products, component)
    head = np.zeros(len(frozen), dtype=bool)
    for axis in ledger.heads:
        head[component[axis]] = True
    worth = np.zeros((count, 2), dtype=np.int64)  # (is a head axis, prunable slots)
    for number, axis, grid in _product_axes(ledger.products, cluster, component):
        free = ~frozen[component[axis]] & ~frozen[grid].any(axis=tuple(range(1, grid.ndim)))
        prunable = len(np.unique(component[axis][free])) if len(axis) > 1 else 0
        worth[number] = np.maximum(worth[number], (bool(head[component[axis]].any()), prunable))
    worth[:, 0] *= 1 if attention == "heads" else -1
    chosen = _choose(ledger.products, cluster, worth)
    return _apply_choice(ledger.products, cluster, chosen, lambda product: _told(product, component, fixes))


def _cluster_axes(products: list[Product], component: Ids) -> tuple[dict[int, int], int]:
    """Axes (by identity) that share a component belong to one cluster."""
    axes = list({id(a): a for p in products for a in p.axes}.values())
    total = int(component.max(initial=0)) + 1
    rows = np.concatenate([np.full(len(a), k) for k, a in enumerate(axes)])
    cols = np.concatenate([component[a] for a in axes]) + len(axes)
    size = len(axes) + total
    graph = sp.coo_matrix((np.ones(len(rows), np.int8), (rows, cols)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    used, numbers = np.unique(labels[: len(axes)], return_inverse=True)
    return {id(a): int(n) for a, n in zip(axes, numbers, strict=True)}, len(used)


def _product_axes(products: list[Product], cluster: dict[int, int], component: Ids) -> Iterable[tuple[int, Ids, Ids]]:
    for product in products:
        grid = component[product.slots]
        for k, axis in enumerate(product.axes):
            yield cluster[id(axis)], axis, np.moveaxis(grid, k, 0)


def _choose(products: list[Product], cluster: dict[int, int], worth: NDArray[np.int64]) -> set[int]:
    """Clusters that stay free, greedily by (head axis, prunable slots); the rivals in their products do not."""
    rivals: dict[int, set[int]] = {}
    selfish: set[int] = set()
    for product in products:
        numbers = [cluster[id(a)] for a in product.axes]
        for k, number in enumerate(numbers):
            rivals.setdefault(number, set()).update(numbers[:k] + numbers[k + 1 :])
            if number in numbers[:k]:
                selfish.add(number)
    order = sorted(rivals, key=lambda n: (-worth[n, 0] if worth[n, 1] > 1 else 1, -worth[n, 1], n))
    chosen: set[int] = set()
    banned = set(selfish)
    for number in order:
        if number not in banned and worth[number, 1] > 1:
            chosen.add(number)
            banned |= rivals[number]
    return chosen


def _apply_choice(
    products: list[Product], cluster: dict[int, int], chosen: set[int], told: Callable[[Product], str]
) -> tuple[list[tuple[Ids, Ids]], list[tuple[Ids, str]]]:
    ties: list[tuple[Ids, Ids]] = []
    fixes: list[tuple[Ids, str]] = []
    for product in products:
        free = [k for k, a in enumerate(product.axes) if cluster[id(a)] in chosen]
        why = f"two sizes multiply{', and the other one is pruned' if free else ''} ({product.where})"
        for k, axis in enumerate(product.axes):
            if k not in free:
                fixes.append((axis, why))
        if not free:
            fixes.append((product.slots.ravel(), told(product) or why))
            continue
        slots = np.moveaxis(product.slots, free[0], 0).reshape(len(product.axes[free[0]]), -1)
        ties.append((slots.ravel(), np.repeat(product.axes[free[0]], slots.shape[1])))
    return ties, fixes


def _told(product: Product, component: Ids, fixes: list[tuple[Ids, str]]) -> str:
    """Why no axis of a product may be pruned, where each is fixed for a reason worth telling; else nothing."""
    reasons = []
    for axis in product.axes:
        own = np.unique(component[axis])
        found = next((reason for ids, reason in fixes if reason and np.isin(component[ids], own).any()), "")
        reasons.append(found)
    return "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""
