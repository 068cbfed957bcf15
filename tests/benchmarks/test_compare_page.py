"""What is kept of a comparison, and the page that is made of it."""

from __future__ import annotations

import sys
import xml.dom.minidom
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))

import _compare_page
import _record
import compare_results
from _contest import contest


def test_the_page_has_the_figures_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = ["flops=0.8", "flops=0.6"]
    document = contest(tmp_path / "a", "l1", "scratch", budgets=budgets, command="secateur compare x").document
    monkeypatch.setattr(_record, "RESULTS", tmp_path / "results")
    assert _compare_page.pages(tmp_path) == {}
    monkeypatch.setattr(sys, "argv", ["compare_results.py", str(tmp_path / "a")])
    compare_results.main()
    text = (tmp_path / "results" / "compare_short.json").read_text()
    assert str(tmp_path) not in text
    made = _compare_page.pages(tmp_path)
    assert set(made) == {tmp_path / "compare.md", tmp_path / "figures" / "compare.svg"}
    page = made[tmp_path / "compare.md"]
    for row in document["rows"]:
        assert f"{100 * row['accuracy']['final']:.2f}" in page
        assert row["plan"].removeprefix("sha256:")[:10] in page
    for part in (
        "## flops=0.8",
        "All columns at flops=0.6",
        "| method | flops=0.8 | flops=0.6 |",
        "secateur compare x",
        "`make compare`",
        "5 epochs in all",
    ):
        assert part in page
    assert page.count("<details") == page.count("</details>") == 6  # what decides is not folded away
    assert page.index("| method | final |") < page.index("<details")
    figure = xml.dom.minidom.parseString(made[tmp_path / "figures" / "compare.svg"]).documentElement
    assert figure is not None
    names = [
        node.firstChild.data for node in figure.getElementsByTagName("text") if node.getAttribute("class") == "name"
    ]
    assert sorted(names) == ["l1", "scratch"]
