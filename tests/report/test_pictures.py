"""Pictures: proportions, escaping, and numbers no float can divide."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.report.page.pictures import Series, Spot, decades, lines, nice, overlaid, paired, scatter

FINITE = st.floats(-1e150, 1e150)


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_nice_numbers_hold_the_data(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice(low, high)
    slack = 1e-6 * max(abs(low), abs(high), high - low if math.isfinite(high - low) else 0.0)
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(ticks)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (3.0, 16.0, [0.0, 5.0, 10.0, 15.0, 20.0]),
        (0.0, 0.0, [-0.5, -0.25, 0.0, 0.25, 0.5]),
    ],
)
def test_nice(low: float, high: float, ticks: list[float]) -> None:
    assert nice(low, high) == pytest.approx(ticks)


@given(
    st.lists(st.one_of(st.none(), FINITE), min_size=1, max_size=12).filter(lambda ys: any(y is not None for y in ys))
)
def test_any_line_is_drawn_inside_its_picture(ys: list[float | None]) -> None:
    points = [(float(k + 1), y) for k, y in enumerate(ys)]
    picture = lines([Series("a", points)], label="a<b>&\"'", form=str, end=float(len(ys)), stages=[(0.0, "train")])
    svg = ElementTree.fromstring(picture)
    assert svg.get("aria-label") == "a<b>&\"'"
    where = [pair.split(",") for line in svg.iter("polyline") for pair in line.get("points", "").split()]
    where += [[dot.get("cx", ""), dot.get("cy", "")] for dot in svg.iter("circle")]
    assert len(where) == sum(y is not None for y in ys)
    for x, y in where:
        assert 0 <= float(x) <= 340
        assert 0 <= float(y) <= 200


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(-1.2, 2.15, [-2, -1, 0, 1, 2, 3]), (0.0, 0.0, [0, 1]), (-7.0, 12.0, [-7, -3, 1, 5, 9, 13])],
)
def test_decades(low: float, high: float, ticks: list[float]) -> None:
    assert decades(low, high) == ticks


def test_a_logarithmic_axis() -> None:
    series = Series("a", [(1.0, 0.1), (2.0, None), (3.0, 10.0)])
    svg = ElementTree.fromstring(lines([series], label="", form=lambda y: f"{y:g}", end=3.0, logarithmic=True))
    heights = [float(dot.get("cy", "")) for dot in svg.iter("circle")]
    assert heights == [170.0, 20.0]
    said = [text.text for text in svg.findall("text[@class='tick']")]
    assert said[:3] == ["0.1", "1", "10"]


def test_a_thousand_epochs_are_thinned_and_keep_the_last() -> None:
    series = Series("a", [(float(k), float(k)) for k in range(10_000)])
    svg = ElementTree.fromstring(lines([series], label="", form=str, end=9999.0))
    points = svg.findall("polyline")[0].get("points", "").split()
    assert len(points) <= 602
    assert points[-1].split(",")[0] == "328.0"  # the right edge


def test_stage_names_stand_where_there_is_room() -> None:
    series = Series("a", [(float(k), 1.0) for k in range(1, 101)])
    svg = ElementTree.fromstring(
        lines([series], label="", form=str, end=100.0, stages=[(0.0, "pretrain"), (50.0, "train"), (98.0, "finetune")])
    )
    said = [text.text for text in svg.findall("text[@class='stage-name']")]
    assert said == ["pretrain", "train"]
    assert len(svg.findall("line[@class='stage']")) == 2


def test_labels_of_the_scatter_do_not_meet() -> None:
    spots = [Spot(0.5, 0.9, "first", "dot"), Spot(0.5, 0.9001, "second", "square"), Spot(1.0, 0.9, "dense", "ring")]
    svg = ElementTree.fromstring(
        scatter(spots, [(1.0, 0.9), (0.5, 0.9)], label="", what="accuracy", form=lambda x: f"{x:.0%}")
    )
    heights = [float(text.get("y", "")) for text in svg.findall("text[@class='name']") if text.text != "dense"]
    assert abs(heights[0] - heights[1]) >= 12


def test_bars_keep_their_proportions() -> None:
    was, left = ElementTree.fromstring(overlaid(32, 24, 64))
    assert (was.get("width"), left.get("width")) == ("50", "37.5")
    was, left = ElementTree.fromstring(paired(1.0, 2.0, 2.0))
    assert (was.get("width"), left.get("width")) == ("50", "100")
    assert ElementTree.fromstring(overlaid(0, 0, 0))[0].get("width") == "0"
