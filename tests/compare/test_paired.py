"""Differences to the best, paired over seeds: tests, intervals and Holm's correction by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from secateur.compare.paired import NONE, T_TEST, WILCOXON, differences


def test_a_paired_t_test_of_three_seeds() -> None:
    finals = {"a": {0: 0.62, 1: 0.60, 2: 0.64}, "b": {0: 0.60, 1: 0.585, 2: 0.615}, "c": {0: 0.61, 1: 0.62, 2: 0.62}}
    found = differences(finals, "a")
    assert list(found) == ["b", "c"]
    b = found["b"]
    assert (b["n"], b["test"]) == (3, T_TEST)
    assert math.isclose(b["difference"], 0.02)  # 0.02, 0.015, 0.025: s = 0.005
    t = 0.02 / (0.005 / math.sqrt(3))
    assert math.isclose(b["p"], 2 * stats.t.sf(t, 2))
    half = 4.302652729911275 * 0.005 / math.sqrt(3)  # t(0.975, 2)
    assert math.isclose(b["low"], 0.02 - half)
    assert math.isclose(b["high"], 0.02 + half)
    # Holm over two: the smaller p twice, the larger once
    assert math.isclose(b["p_holm"], 2 * b["p"])
    assert math.isclose(found["c"]["p_holm"], max(found["c"]["p"], 2 * b["p"]))
    assert b["significant"] is True  # p = 0.0203, with Holm 0.0406
    assert found["c"]["significant"] is False


def test_six_seeds_are_ranked() -> None:
    ahead = {seed: 0.6 + seed / 100 for seed in range(6)}
    behind = {seed: value - 0.01 - seed / 1000 for seed, value in ahead.items()}
    found = differences({"a": ahead, "b": behind}, "a")["b"]
    assert found["test"] == WILCOXON
    assert math.isclose(found["p"], 2 / 2**6)  # all six of one sign
    assert found["significant"] is True


@pytest.mark.parametrize(("methods", "seeds"), [(2, 7), (3, 7), (10, 6), (10, 9), (24, 10)])
def test_ranks_are_used_where_they_can_say_something_of_so_many_methods(methods: int, seeds: int) -> None:
    """All seeds of one sign, and far apart: significant, however many methods share the level."""
    best = {seed: 0.9 + seed / 1000 for seed in range(seeds)}
    others = {f"m{k}": {seed: value - 0.1 - (seed + k) / 1000 for seed, value in best.items()} for k in range(methods)}
    found = differences({"a": best, **others}, "a")
    assert all(each["significant"] for each in found.values())
    ranked = 2 / 2**seeds * methods < 0.05
    assert {each["test"] for each in found.values()} == {WILCOXON if ranked else T_TEST}


@pytest.mark.parametrize(
    ("own", "p"), [({0: 0.6}, None), ({0: 0.6, 1: 0.7}, 1.0), ({7: 0.5}, None)], ids=["one", "the same", "none shared"]
)
def test_what_cannot_be_told_is_no_difference(own: dict[int, float], p: float | None) -> None:
    found = differences({"a": {0: 0.6, 1: 0.7}, "b": own}, "a")["b"]
    assert found["significant"] is False
    assert found["p"] == p
    assert (found["test"] == NONE) == (p is None)
