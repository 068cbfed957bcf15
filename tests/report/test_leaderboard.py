"""A comparison's leaderboard as Markdown and HTML: right figures, nothing foreign becomes markup, nothing is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from _board import HOSTILE, board, empty_board, hostile_board
from test_html import Page

from secateur.compare.leaderboard import means, paired
from secateur.report.board.pictures import curves, rivals
from secateur.report.board.tables import kinds, legend, mean_table, places, run_table, time_table
from secateur.report.leaderboard import markdown, write_leaderboard
from secateur.report.page.fairness import fairness

CASES: dict[str, Callable[[], dict[str, Any]]] = {"full": board, "hostile": hostile_board, "empty": empty_board}
WORDS = {"aria-label", "class", "role", "aria-hidden", "preserveAspectRatio", "text-anchor"}


def html(folder: Path, document: dict[str, Any]) -> str:
    return write_leaderboard(folder, document).read_text(encoding="utf-8")


def test_means_are_shown_the_best_first() -> None:
    table = mean_table(board(), "flops=0.5")
    assert [row[0] for row in table.rows] == ["dense", "bwcp", "scratch", "l1+batchnorm", "l1", "nap", "cwb"]
    first = dict(zip(table.head, table.rows[1], strict=True))
    assert first == {
        "method": "bwcp", "final": "61.00 ± 0.40", "against the best": "best mean",
        "faster, PyTorch": "1.60 (1.50 to 1.70)", "behind the best": "–", "MACs left": "49.8",
        "parameters left": "50.0", "cut": "30.50 ± 0.20", "dense": "–", "bound used": "yes", "proof": "exact, 1.5e-07",
        "seeds": "3",
    }  # fmt: skip
    behind = dict(zip(table.head, table.rows[2], strict=True))["behind the best"]
    assert re.fullmatch(r"0\.50 \(0\.\d\d to 0\.\d\d\)", behind)
    assert table.vital == 3
    assert mean_table(board(), "flops=0.3").rows[1][1] == "53.00"  # one seed has no deviation
    assert dict(zip(table.head, table.rows[5], strict=True))["bound used"] == "no"


def test_methods_within_chance_are_ties() -> None:
    made = board()
    for row in made["rows"]:
        if row["label"] == "scratch":  # as good as the best on average, seed by seed another
            row["accuracy"]["final"] += (-0.006, 0.0, 0.006)[row["seed"]]
    made["paired"] = paired(made["rows"])
    assert places(made, "flops=0.5") == {
        "bwcp": "best mean", "scratch": "tie", "dense": "above",
        "cwb": "below", "nap": "below", "l1": "below", "l1+batchnorm": "below",
    }  # fmt: skip
    assert set(places(made, "flops=0.3").values()) == {"best mean", "–"}  # one seed cannot rank methods
    del made["paired"]  # as documents of earlier versions
    assert places(made, "flops=0.5") == {}


def test_what_is_not_significant_is_grey_and_said_to_be_so(tmp_path: Path) -> None:
    made = board()
    for row in made["rows"]:
        if row["label"] == "l1":
            row["latency"]["pytorch"] |= {"ratio": 1.1, "low": 0.9, "high": 1.3}
        if row["label"] == "scratch":
            row["accuracy"]["final"] += (-0.006, 0.0, 0.006)[row["seed"]]
    made["means"], made["paired"] = means(made["rows"]), paired(made["rows"])
    table = mean_table(made, "flops=0.5")
    grey = {(table.rows[row][0], table.head[column]) for row, column in table.grey}
    assert grey == {
        ("l1", "faster, PyTorch"), ("scratch", "against the best"), ("scratch", "behind the best"),
    }  # fmt: skip
    assert dict(zip(table.head, table.rows[-3], strict=True))["faster, PyTorch"] == "1.10 (0.90 to 1.30) n.s."
    page = html(tmp_path, made)
    assert '<td class="n unsure">1.10<small>0.90 to 1.30 n.s.</small></td>' in page
    assert '<td class="n">1.60<small>1.50 to 1.70</small></td>' in page


def test_tables_stand_by_kind_of_budget() -> None:
    made = board()
    for row, budget in zip(
        made["rows"][:3], ("params=0.5", "latency=0.6@onnxruntime", "flops=0.5,params=2M"), strict=True
    ):
        row["budget"] = budget
    made["means"] = means(made["rows"])
    assert kinds(made) == {
        "Equal FLOPs": ["flops=0.5", "flops=0.3"],
        "Equal parameters": ["params=0.5"],
        "Equal latency": ["latency=0.6@onnxruntime"],
        "Other budgets": ["flops=0.5,params=2M"],
    }
    assert [line for line in markdown(made).splitlines() if line.startswith("## Equal p")] == [
        "## Equal parameters: params=0.5"
    ]


def test_networks_that_differ_from_image_to_image_are_marked() -> None:
    made = board()
    assert "†" not in markdown(made)
    for row in made["rows"]:
        row["expected"] = {"macs": 6_000_000, "images": 64} if row["label"] == "nap" else None
    made["means"] = means(made["rows"])
    assert "| 49.8† |" in markdown(made)
    assert "the mean over images" in markdown(made)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({}, "in percent of the test images."),
        ({"name": "detection", "headline": "mAP"}, "mAP on the test images in percent."),
        ({"name": "super_resolution", "headline": "PSNR", "unit": "dB"}, "PSNR on the test images."),
    ],
)
def test_the_legend_says_what_is_measured(task: dict[str, str], words: str) -> None:
    assert f"over seeds, {words} Final:" in legend({"means": [], "task": task})


def test_times_and_runs_are_listed() -> None:
    times = {row[:2]: row[2:] for row in time_table(board()).rows}
    assert times["bwcp", "flops=0.5"] == ("260", "0.25", "90", "60", "–", "–", "13")
    runs = run_table(board())
    assert len(runs.rows) == 24
    assert next(row for row in runs.rows if row[0] == "bwcp") == (
        "bwcp", "0", "flops=0.5", "60.60", "1.60 (1.50 to 1.70)", "49.8%", "50.0%", "30.30", "–", "60.60",
        "5.970M", "40K", "13", "2.000", "1.250", "1.5e-07", "023456789a",
    )  # fmt: skip


def test_counts_that_are_means_over_images_are_called_so() -> None:
    document = board()
    assert not any("(mean)" in cell for row in run_table(document).rows for cell in row)
    document["rows"][0]["mean_over"] = 256
    assert [cell for row in run_table(document).rows for cell in row if "mean" in cell] == ["5.970M (mean)"]


def test_fairness_names_every_kind_and_its_epochs() -> None:
    said = fairness(board())
    assert len(said) == 8
    assert "(13 epochs)" in said[0]
    for line, parts in zip(
        said[1:],
        (
            ("bwcp: no base weights, and no fine-tuning", "for 13 epochs"),
            ("cwb: no base weights", "for 1 epoch, with a constant learning rate of 0.1", "for 12 epochs, with the"),
            ("nap: same base weights", "in the first 2", "the other 1 follow the cut"),
            ("l1 and l1+batchnorm: same base weights", "(3 epochs)"),
            ("scratch: no base weights", "for 13 epochs"),
            ("dense: nothing is cut", "3 epochs of fine-tuning"),
            ("last step (train) and those of the epoch that is best on the validation images (fine-tuning)",),
        ),
        strict=True,
    ):
        assert all(part in line for part in parts), line


def test_the_page_has_all_of_it(tmp_path: Path) -> None:
    page = Page(html(tmp_path, board()))
    assert "ResNet-8-B on CIFAR-10: 6 methods compared" in page.words
    assert "At flops=0.5, bwcp has the highest mean, 61.00 ± 0.40% (3 seeds), and all others are sig" in page.words
    assert "(paired t test, n = 3, Holm over 6 networks, 5%)" in page.words
    assert "At flops=0.3, bwcp has the highest mean, 53.00% (1 seed); one seed cannot rank methods." in page.words
    assert "61.00% accuracy of bwcp, the best mean with 49.8% of the MACs and 50.0% of the parameters" in page.words
    assert "significantly the best" in page.words
    assert "accuracy of the dense network trained for as many epochs" in page.words
    assert "faster on PyTorch: bwcp 95% interval 1.50× to 1.70×" in page.words
    assert "Of 26 runs, 1 failed and 1 is not finished yet." in page.words
    assert "nap, seed 0, flops=0.3 failed: The budget | is <out> of reach." in page.text("absent")
    assert "l1+batchnorm, seed 0, flops=0.3 is not finished" in page.text("absent")
    assert "A note of nap." in page.text("methods")
    assert "secateur compare short.yaml" in page.text("how")
    assert "Images 9,000 for training" in page.text("how")  # a line each, no dump
    assert ("details", {}) in page.tags
    assert json.loads((tmp_path / "leaderboard.json").read_text()) == json.loads(json.dumps(board()))


def test_curves_have_a_point_a_budget_and_bars_over_seeds() -> None:
    picture = curves(board())
    assert picture is not None
    root = ElementTree.fromstring(picture)
    assert len(root.findall("polyline")) == 3  # methods with two budgets
    assert len(root.findall("path[@class='error c0']")) == 1  # three seeds at one of them
    assert len([e for e in root if "mark" in (e.get("class") or "")]) == 10
    half = {r.name: r.points for r in rivals(board())}
    assert [round(p.x, 4) for p in half["bwcp"]] == [0.4975, 0.298]
    one = board()
    one["means"] = [mean for mean in one["means"] if mean["budget"] == "flops=0.5"]
    assert curves(one) is None


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path, case: str) -> None:
    text = html(tmp_path, CASES[case]())
    for tag, attributes in Page(text).tags:
        assert tag not in ("img", "iframe", "object", "embed"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,")), value
    assert "url(" not in text
    assert "@import" not in text
    assert len(re.findall("<script", text)) == 1  # ours, by its hash
    assert "script-src 'sha256-" in text
    assert "Content-Security-Policy" in text


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_well_formed_and_no_python_shows(tmp_path: Path, case: str) -> None:
    text = html(tmp_path, CASES[case]())
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        numbers = [v for e in ElementTree.fromstring(svg).iter() for k, v in e.attrib.items() if k not in WORDS]
        assert not re.search(r"nan|inf|None", " ".join(numbers))
    assert not re.search(r"\bNone\b|\bnan\b|\bTrue\b|\bFalse\b|object at 0x", Page(text).words)
    assert html(tmp_path, CASES[case]()) == text  # the same bytes


def test_hostile_words_are_words(tmp_path: Path) -> None:
    page = Page(html(tmp_path, hostile_board()))
    assert "<b onmouseover=alert(1)>" in page.words
    assert "\u202e" not in page.words
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "<b" not in text.replace("\\<b", "")
    assert "\n# z" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1  # every cell is one cell


def test_markdown_tables_are_whole(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, board())
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 4  # two budgets, times, runs
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert HOSTILE not in text
    assert "| l1+batchnorm | 59.00 ± 0.40 |" in text
