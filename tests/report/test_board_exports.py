"""The leaderboard for papers and programs: CSV, LaTeX, BibTeX, figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from _board import HOSTILE, board, empty_board, hostile_board

from secateur.report.board_exports import bibtex_of, csv_of, latex_of, write_exports


def test_every_run_is_a_line_and_every_figure_a_column() -> None:
    made = board()
    rows = list(csv.DictReader(io.StringIO(csv_of(made))))
    assert len(rows) == len(made["rows"])
    assert float(rows[0]["accuracy.final"]) == made["rows"][0]["accuracy"]["final"]
    assert rows[0]["latency.pytorch.ratio"] == "1.6"
    assert rows[0]["accuracy.dense"] == ""  # not measured
    assert HOSTILE in [row["untimed"] for row in csv.DictReader(io.StringIO(csv_of(hostile_board())))]


def test_latex_has_a_table_a_budget_and_nothing_foreign_is_a_command() -> None:
    text = latex_of(board())
    assert text.count(r"\toprule") == 2
    assert r"61.00 $\pm$ 0.40 & best mean &" in text
    assert not {"−", "–", "±", "†"} & set(text)  # which LaTeX may not know
    made = board()
    made["means"][0]["label"] = r"a_b & \input{x} 50%"
    assert r"a\_b \& \textbackslash{}input\{x\} 50\% &" in latex_of(made)


def test_bibtex_names_the_papers() -> None:
    text = bibtex_of(board())
    assert text.startswith("@misc{bwcp2020,\n  title = {{A Paper}},\n  year = {2020},\n  eprint = {2001.00001},")
    assert text.count("@misc") == 5  # l1+batchnorm is l1's paper, and the whole network has none


@pytest.mark.parametrize("document", [board(), empty_board()], ids=["full", "empty"])
def test_files_are_written(tmp_path: Path, document: dict) -> None:  # type: ignore[type-arg]
    pytest.importorskip("matplotlib")
    names = {path.name for path in write_exports(tmp_path, document)}
    assert {"leaderboard.csv", "leaderboard.tex", "methods.bib"} <= names
    figures = {f"leaderboard-{n}.{e}" for n in (1, 2) for e in ("svg", "pdf")} if document["rows"] else set()
    assert names - figures == {"leaderboard.csv", "leaderboard.tex", "methods.bib"}
    assert all((tmp_path / name).stat().st_size for name in figures)


def test_a_figure_has_the_headline_of_its_task_in_its_unit(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = board()
    made["task"] = {"name": "super_resolution", "headline": "PSNR", "higher_is_better": True, "unit": "dB"}
    write_exports(tmp_path, made)
    picture = (tmp_path / "leaderboard-1.svg").read_text(encoding="utf-8")
    assert "final PSNR at" in picture
    assert "in dB" in picture
    assert "accuracy" not in picture
