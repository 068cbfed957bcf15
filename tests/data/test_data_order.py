"""Random order and draws: functions of their arguments alone, fair between classes, the same under any version."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.data.order import balanced, permutation, rank_slice, stratified, uniform, words

SEEDS = st.integers(0, 2**64 - 1)
LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


def test_the_words_are_these_under_any_version_of_numpy():
    assert words(2, seed=0, purpose="order").tolist() == [3100667157243707539, 7238126350576973276]
    assert permutation(6, seed=3, purpose="order", epoch=2).tolist() == [4, 0, 1, 5, 2, 3]


@given(st.integers(0, 200), SEEDS, st.integers(0, 1000))
@settings(max_examples=60)
def test_a_permutation_holds_each_number_once(count, seed, epoch):
    order = permutation(count, seed=seed, purpose="order", epoch=epoch)
    assert sorted(order) == list(range(count))
    assert (order == permutation(count, seed=seed, purpose="order", epoch=epoch)).all()


@given(st.tuples(SEEDS, st.integers(0, 9), st.integers(0, 9)), st.tuples(SEEDS, st.integers(0, 9), st.integers(0, 9)))
@settings(max_examples=100)
def test_another_seed_epoch_or_batch_gives_other_words(one, two):
    first, second = (words(4, seed=s, purpose="x", epoch=e, batch=b).tolist() for s, e, b in (one, two))
    assert (first == second) == (one == two)


def test_another_purpose_gives_other_words():
    assert words(4, seed=0, purpose="x").tolist() != words(4, seed=0, purpose="y").tolist()


def test_uniform_numbers_fill_the_unit_interval():
    drawn = uniform((20_000,), seed=1, purpose="x")
    assert 0 <= drawn.min() < 0.001
    assert 0.999 < drawn.max() < 1
    assert np.abs(np.histogram(drawn, bins=10, range=(0, 1))[0] - 2000).max() < 200


@given(st.integers(0, 300), st.integers(1, 9))
@settings(max_examples=100)
def test_ranks_divide_a_batch_without_gap_or_overlap(count, world):
    parts = [list(range(count))[rank_slice(count, rank, world)] for rank in range(world)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(LABELS, st.data(), SEEDS)
@settings(max_examples=100)
def test_a_balanced_subset_takes_as_many_of_each_class_as_there_can_be(labels, data, seed):
    count = data.draw(st.integers(0, len(labels)))
    chosen = balanced(labels, count, seed=seed)
    assert len(set(chosen)) == count
    assert (np.diff(chosen) > 0).all()
    there = np.bincount(labels, minlength=5)
    taken = np.bincount(labels[chosen], minlength=5)
    most = taken.max(initial=0)
    assert all(n >= most - 1 or n == available for n, available in zip(taken, there, strict=True))
    assert set(balanced(labels, count // 2, seed=seed)) <= set(chosen)  # a smaller one is a part of it


@given(LABELS, st.data(), SEEDS)
@settings(max_examples=100)
def test_a_stratified_share_has_the_proportions_of_the_whole(labels, data, seed):
    count = data.draw(st.integers(0, len(labels)))
    chosen = stratified(labels, count, seed=seed)
    assert len(set(chosen)) == count
    expected = np.bincount(labels, minlength=5) * count / len(labels)
    assert (np.abs(np.bincount(labels[chosen], minlength=5) - expected) <= 1).all()


def test_subsets_depend_on_the_seed():
    labels = np.arange(100) % 10
    assert balanced(labels, 50, seed=0).tolist() != balanced(labels, 50, seed=1).tolist()
    assert stratified(labels, 50, seed=0).tolist() != stratified(labels, 50, seed=1).tolist()
