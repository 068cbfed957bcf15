"""Intervals of shares: Wilson's as scipy has it, Newcombe's made of them."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from secateur.tasks.chance import beyond, newcombe, wilson


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (200, 200), (0, 500), (981, 1000), (4567, 10_000)])
def test_wilson_is_scipys(right: int, images: int) -> None:
    wanted = binomtest(right, images).proportion_ci(method="wilson")
    assert wilson(right / images, images) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_all_right_is_no_certainty() -> None:
    low, high = wilson(1.0, 200)
    assert (round(low, 3), high) == (0.981, 1.0)


def test_newcombe_by_hand() -> None:
    low, high = newcombe(42 / 70, 56 / 70, 70)
    (l1, u1), (l2, u2) = wilson(42 / 70, 70), wilson(56 / 70, 70)
    assert low == pytest.approx(0.2 - ((0.8 - l2) ** 2 + (u1 - 0.6) ** 2) ** 0.5)
    assert high == pytest.approx(0.2 + ((u2 - 0.8) ** 2 + (0.6 - l1) ** 2) ** 0.5)
    assert (round(low, 3), round(high, 3)) == (0.048, 0.34)


def test_a_difference_is_turned_around_with_its_interval() -> None:
    low, high = newcombe(0.9, 0.8, 300)
    assert newcombe(0.8, 0.9, 300) == pytest.approx((-high, -low))
    assert high < 0


def test_beyond() -> None:
    assert beyond((0.01, 0.2))
    assert beyond((-0.2, -0.01))
    assert not beyond((-0.01, 0.2))
    assert beyond((1.1, 1.2), 1.0)
