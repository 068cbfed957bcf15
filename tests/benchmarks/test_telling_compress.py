"""What the page of `compress` beside single methods says, from results in worked numbers."""

from __future__ import annotations

from typing import Any

import _compress_page
import pytest


def _result(compress: tuple[float, ...], l1: tuple[float, ...], fpgm: tuple[float, ...]) -> dict[str, Any]:
    named = {"compress": compress, "l1": l1, "fpgm": fpgm}
    rows = [
        {"name": name, "seed": seed, "figure": figure, "flops": 0.5, "took": 118.0, "time": 120.0,
         "budget": "flops=0.5", "said": ["MIoU before 1%", "Chosen: l1."]}
        for name, figures in named.items() for seed, figure in enumerate(figures)
    ]  # fmt: skip
    about = {"date": "2026-11-30T00:00", "commit": "abc", "command": "c", "versions": {}, "python": "3.11"}
    return {**about, "device": "a CPU", "threads": 1, "headline": "accuracy", "original": 0.9, "rows": rows}


GOOD = _result((0.80, 0.82, 0.84), (0.80, 0.81, 0.82), (0.70, 0.72, 0.74))
POOR = _result((0.70, 0.71, 0.72), (0.75, 0.72, 0.75), (0.70, 0.70, 0.70))


def test_the_lead_is_over_the_method_with_the_best_mean() -> None:
    for result, gap in ((GOOD, 1.0), (POOR, -3.0)):
        best, found = _compress_page.lead(result)
        assert best == "l1"
        assert found == pytest.approx(gap)


def test_the_summary_counts_and_names_the_worst_and_what_is_missing() -> None:
    said = _compress_page._summary({"resnet20": GOOD, "segmenter": POOR})
    assert "In 1 of 2 it is at least as good" in said
    assert "**3.0 points worse on A segmenter**" in said
    assert "Of the 2 differences with several seeds none is below zero by more than chance." in said
    assert "Not measured: VGG-16-BN on CIFAR-10, MobileNetV2 on photographs." in said
    # gaps 0, 1, 2: mean 1, t(0.975, 2) x 1 / sqrt(3) = 2.48
    assert "| `l1` | +1.0 | -1.5 to +3.5 |" in said
    assert "nowhere more than 1 point worse" in _compress_page._summary({"resnet20": GOOD})


def test_a_network_has_its_figures_by_seed_and_what_was_said() -> None:
    text = "\n".join(_compress_page._section("resnet20", GOOD))
    assert "| `compress` | 82.00 | 80.0 82.0 84.0 |  |  | 50.0% | 118 |" in text
    assert "| `fpgm` | 72.00 | 70.0 72.0 74.0 | +10.00 |" in text
    assert "Seed 1: Chosen: l1." in text
    assert "MIoU before" not in text


def test_a_strangers_path_has_its_commands_times_and_accuracies() -> None:
    rows = [{"command": "git clone ADDRESS", "seconds": 0.3}, {"command": "secateur compress", "seconds": 175.6}]
    about = {**GOOD, "images": 3000, "tested": 10_000, "accuracy": {"before": 0.5103, "after": 0.499}, "rows": rows}
    text = "\n".join(
        _compress_page._stranger({**about, "compress": {"said": ["Other.", "Measured on x: 2.20x faster."]}})
    )
    assert "| `secateur compress` | 176 |" in text
    assert "51.0% before, 49.9% after. Measured on x: 2.20x faster." in text
