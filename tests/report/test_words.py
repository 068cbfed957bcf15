"""Numbers and names as the report writes them."""

from __future__ import annotations

import pytest

from secateur.report.page import words


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (12, "12"),
        (1000, "1K"),
        (999_999, "1M"),
        (41_075_328, "41.08M"),
        (125_485_706, "125.5M"),
        (4_089_184_256, "4.089G"),
        (1e20, "1e+20"),
        (0.25, "0.2500"),
        (None, "not known"),
    ],
)
def test_count(number: float | None, text: str) -> None:
    assert words.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.012345, "0.0123 ms"), (4.1, "4.10 ms"), (123.4, "123 ms"), (12_345.6, "12,346 ms"), (None, "not measured")],
)
def test_milliseconds(number: float | None, text: str) -> None:
    assert words.milliseconds(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(3.41, "3.41 s"), (60, "1 min"), (252, "4 min 12 s"), (3780, "1 h 3 min"), (7200, "2 h"), (None, "not measured")],
)
def test_seconds(number: float | None, text: str) -> None:
    assert words.seconds(number) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [(-0.0051, "−0.51 points"), (0.012, "+1.20 points"), (0.0, "±0.00 points"), (-1e-7, "±0.00 points")],
)
def test_points(difference: float, text: str) -> None:
    assert words.points(difference) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999 bytes"), (582_448, "582.4 kB"), (1_104_232, "1.104 MB"), (None, "not known")]
)
def test_size(number: int | None, text: str) -> None:
    assert words.size(number) == text


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("zoo:resnet56", "ResNet-56"),
        ("zoo:vgg16_bn", "VGG-16-BN"),
        ("timm:efficientnet_b0", "efficientnet_b0"),
        ("mine.nets:build", "nets:build"),
        ("folder/nets.py:build", "nets.py:build"),
        ("timm:resnet50.a1_in1k", "resnet50.a1_in1k"),
        (None, "A network"),
    ],
)
def test_network(reference: str | None, name: str) -> None:
    assert words.network(reference) == name


def test_plain_says_what_is_null() -> None:
    assert words.plain({"a": None, "b": [1, 2.5, True], "c": {"d": "x"}}) == "a: none, b: (1, 2.5, yes), c: (d: x)"
    assert words.plain([]) == "none"
    assert words.plain(None) == "none"


def test_long_texts_are_cut_and_say_so() -> None:
    assert words.brief("x" * 700).endswith("… (700 characters)")
    assert words.shortened("a" * 40 + "b" * 40, 21) == "a" * 10 + "…" + "b" * 10


def test_several() -> None:
    assert words.several([]) == ""
    assert words.several(["a"]) == "a"
    assert words.several(["a", "b", "c"]) == "a, b and c"
    assert words.several(list("abcdefgh"), 2) == "a, b and 6 more"


def test_moment() -> None:
    assert words.moment("2026-11-21T09:02:11Z") == "2026-11-21 09:02 UTC"
    assert words.moment("2026-11-21T09:02:11.5+02:00") == "2026-11-21 09:02 UTC+02:00"
    assert words.moment("yesterday") == "yesterday"
