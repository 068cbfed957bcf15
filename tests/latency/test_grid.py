"""Grids: what was measured is kept, what lies between is a staircase that never falls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.latency.grid import Grid, Odd, points, rising


def test_points_are_multiples_and_whole_widths() -> None:
    assert points([64], 16, prunable=True) == (16, 32, 48, 64)
    assert points([3], 16, prunable=True) == (3,)
    assert points([24, 64], 16, prunable=True) == (16, 24, 32, 48, 64)
    assert points([1000, 10], 16, prunable=False) == (10, 1000)
    many = points(range(128, 512, 32), 16, prunable=True)
    assert (many[0], many[-1]) == (16, 480)
    assert len(many) <= 8


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 99),
)
def test_time_rises_with_both_widths(outs: list[int], ins: list[int], step: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = Grid.of({(a, b): float(random.uniform(1, 100)) for a in outs for b in ins}, step)
    a, b = np.meshgrid(np.arange(1.0, 45.0), np.arange(1.0, 45.0), indexing="ij")
    times = grid.at(a, b)
    assert (np.diff(times, axis=0) >= -1e-9).all()
    assert (np.diff(times, axis=1) >= -1e-9).all()
    assert (grid.expected(a, b) == times).all()  # no odd width was measured


def test_measured_pairs_are_kept_where_they_rise() -> None:
    times = {(a, b): float(a * b) for a in (8, 16, 32) for b in (4, 8)}
    grid = Grid.of(times, 8)
    for (a, b), time in times.items():
        assert grid.at(np.array(float(a)), np.array(float(b))) == time


def test_a_width_costs_what_the_next_multiple_costs() -> None:
    grid = Grid.of({(a, 8): float(a) for a in (8, 16, 32)}, 8, (Odd((3.0, 1.0, 0, 0), 1.25), Odd()))
    widths = np.array([1.0, 8.0, 9.0, 16.0, 17.0, 20.0, 24.0, 25.0, 32.0])
    assert grid.at(widths, np.full(9, 8.0)).tolist() == [8, 8, 16, 16, 24, 24, 24, 32, 32]
    assert grid.expected(widths, np.full(9, 8.0)).tolist() == [4, 8, 12, 16, 20, 30, 24, 28, 32]


def test_a_whole_width_that_is_no_multiple_has_its_own_time() -> None:
    grid = Grid.of({(8, 3): 8.0, (16, 3): 16.0, (20, 3): 17.0}, 8, (Odd((2.0, 0, 0, 0)),) * 2)
    assert grid.at(np.array(20.0), np.array(3.0)) == 17.0
    assert grid.expected(np.array(20.0), np.array(3.0)) == 17.0
    assert grid.at(np.array(17.0), np.array(3.0)) == 17.0


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_rising_changes_nothing_that_rises(rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = np.cumsum(np.cumsum(random.uniform(0, 1, (rows, columns)), 0), 1)
    np.testing.assert_allclose(rising(table), table)


def test_rising_shares_noise() -> None:
    assert rising(np.array([[1.0, 3.0, 2.0, 4.0]])).tolist() == [[1.0, 2.5, 2.5, 4.0]]


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 3)])
def test_one_point_is_a_constant(shape: tuple[int, int]) -> None:
    grid = Grid.of({(4 * a, 4 * b): 5.0 for a in range(1, shape[0] + 1) for b in range(1, shape[1] + 1)}, 4)
    assert grid.at(np.array([1.0, 50.0]), np.array([1.0, 50.0])).tolist() == [5.0, 5.0]


@given(st.tuples(*[st.floats(0, 10)] * 4), st.floats(0.5, 2))
def test_a_surface_is_found_again(surface: tuple[float, float, float, float], four: float) -> None:
    a, b, c, d = surface
    found = Odd.of({(o, i): a + b * o + c * i + d * o * i for o in (25, 249) for i in (64, 512)}, four)
    assert found.surface == pytest.approx(surface, abs=1e-6)
    out, into = np.array([60.0, 61.0]), np.array([64.0, 64.0])
    true = a + b * 61 + c * 64 + d * 61 * 64
    assert found.factor(out, out, into, np.array([7.0, 7.0])) == pytest.approx([four, max(true / 7, 0.5)], abs=1e-6)


def test_what_does_not_vary_has_no_term() -> None:
    assert Odd.of({}) == Odd()
    assert Odd.of({(57, 1): 5.0}).surface == pytest.approx((5, 0, 0, 0))
    assert Odd.of({(57, 1): 57.0, (25, 1): 25.0}).surface == pytest.approx((0, 1, 0, 0))
    assert Odd.of({(8, 25): 1.0, (8, 57): 2.0}).surface == pytest.approx((1 - 25 / 32, 0, 1 / 32, 0))
