"""The ledger: views of labels, products of widths, and the solver's groups."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from secateur.graph.components import components
from secateur.graph.labels import Ledger


def axis(ledger: Ledger, size: int) -> np.ndarray:
    return ledger.fresh(size)


def test_fresh_ids_never_repeat() -> None:
    ledger = Ledger()
    assert np.array_equal(np.concatenate([ledger.fresh(3), ledger.fresh(0), ledger.fresh(2)]), np.arange(5))


def test_splitting_into_one_varying_part_needs_no_product() -> None:
    ledger = Ledger()
    a = axis(ledger, 6)
    assert ledger.split(np.repeat(a, 4), (6, 4), "")[1] is None
    assert np.array_equal(ledger.split(np.repeat(a, 4), (6, 4), "")[0], a)
    assert np.array_equal(ledger.split(np.tile(a, 4), (4, 6), "")[1], a)
    assert ledger.products == []


def test_merge_with_an_unlabelled_dimension_repeats() -> None:
    ledger = Ledger()
    a = axis(ledger, 3)
    assert np.array_equal(ledger.merge((a, None), (3, 2), ""), [0, 0, 1, 1, 2, 2])
    assert np.array_equal(ledger.merge((None, a), (2, 3), ""), [0, 1, 2, 0, 1, 2])
    assert ledger.merge((None, None), (2, 3), "") is None


@given(st.lists(st.integers(2, 5), min_size=2, max_size=4))
def test_splitting_and_merging_are_inverse(sizes: list[int]) -> None:
    ledger = Ledger()
    whole = axis(ledger, math.prod(sizes))
    parts = ledger.split(whole, sizes, "here")
    assert [len(p) for p in parts] == sizes
    assert np.array_equal(ledger.merge(parts, sizes, "here"), whole)
    assert all(p is q for p, q in zip(parts, ledger.split(whole, sizes, "again"), strict=True))
    assert len(ledger.products) == 1


@given(st.lists(st.integers(2, 5), min_size=2, max_size=4))
def test_merging_and_splitting_are_inverse(sizes: list[int]) -> None:
    ledger = Ledger()
    parts = [axis(ledger, n) for n in sizes]
    whole = ledger.merge(parts, sizes, "here")
    assert whole is not None
    assert len(np.unique(whole)) == math.prod(sizes)
    assert all(np.array_equal(p, q) for p, q in zip(parts, ledger.split(whole, sizes, "here"), strict=True))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[int], list[int], list[bool]]:
    """Two shapes of equal product, and which dimensions of the first are labelled."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), min_size=1, max_size=5))

    def gather(numbers: list[int]) -> list[int]:
        shape, current = [], 1
        for n in numbers:
            current *= n
            if draw(st.booleans()):
                shape.append(current)
                current = 1
            if draw(st.integers(0, 4)) == 0:
                shape.append(1)
        return [*shape, current] if current > 1 or not shape else shape

    old, new = gather(primes), gather(primes)
    return old, new, [draw(st.booleans()) for _ in old]


@given(shapes())
def test_a_view_there_and_back_is_the_same_label(case: tuple[list[int], list[int], list[bool]]) -> None:
    old, new, labelled = case
    ledger = Ledger()
    label = tuple(axis(ledger, n) if take else None for n, take in zip(old, labelled, strict=True))
    seen = ledger.view(label, old, new, "")
    assert [None if a is None else len(a) for a in seen] == [
        None if a is None else n for a, n in zip(seen, new, strict=True)
    ]
    back = ledger.view(seen, new, old, "")
    for a, b, n in zip(label, back, old, strict=True):
        if n > 1 and a is not None:
            assert b is not None
            assert np.array_equal(a, b)


@given(shapes())
def test_a_view_labels_every_element_as_numpy_reshapes_it(case: tuple[list[int], list[int], list[bool]]) -> None:
    """Where no product is needed, the label of each element is what reshaping the ids themselves gives."""
    old, new, labelled = case
    ledger = Ledger()
    one = next((k for k, take in enumerate(labelled) if take and old[k] > 1), None)
    if one is None:
        return
    ids = axis(ledger, old[one])
    label = tuple(ids if k == one else None for k in range(len(old)))
    seen = ledger.view(label, old, new, "")
    if ledger.products:
        return
    shape = [1] * len(old)
    shape[one] = -1
    elements = np.broadcast_to(ids.reshape(shape), old).reshape(new)
    varying = [k for k, a in enumerate(seen) if a is not None and new[k] > 1]
    assert len(varying) <= 1
    if varying:
        shape = [1] * len(new)
        shape[varying[0]] = -1
        assert np.array_equal(np.broadcast_to(seen[varying[0]].reshape(shape), new), elements)


def test_joining_with_nothing_freezes() -> None:
    ledger = Ledger()
    a = axis(ledger, 4)
    assert ledger.join(a, None, "because") is None
    assert [(ids.tolist(), why) for ids, why in ledger.fixes] == [([0, 1, 2, 3], "because")]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_are_those_of_a_plain_union_find(pairs: list[tuple[int, int]]) -> None:
    parent = list(range(20))

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in pairs:
        parent[root(a)] = root(b)
    found = components(20, [(np.array([a]), np.array([b])) for a, b in pairs])
    for i in range(20):
        for j in range(20):
            assert (found[i] == found[j]) == (root(i) == root(j))
