"""Terminals of 80 and 120 columns: no line is longer, and no word of a table is broken."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from _board import board
from _folder import documents, write

from secateur import cli
from secateur._summary import Summary
from secateur.cli._base import tell
from secateur.graph import Cost
from secateur.methods import METHODS
from secateur.report.board.tables import mean_table
from secateur.report.latency_tables import latency_tables
from secateur.report.run_tables import headline_table
from secateur.report.tables import _before_after, fitting, listing, summed_up
from secateur.training import make_progress
from secateur.training.progress import describe

WIDTHS = (80, 120)
ROW = {
    "stage": "finetune", "epoch": 188, "headline": "accuracy", "unit": "share", "train_loss": 10.2345,
    "train_accuracy": 0.98765, "validation_loss": 10.3456, "validation_accuracy": 0.97654, "images_per_second": 12345.6,
    "method": {"flops": 0.5, "channels": 123_456, "strength": 0.00012, "soft_accuracy": 0.9, "hard_accuracy": 0.89},
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=WIDTHS)
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TERM", "xterm")
    return int(request.param)


def told(*arguments: str) -> list[str]:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return [line.rstrip() for line in result.stdout.splitlines()]


def printed(what: Any, columns: int) -> list[str]:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=columns).print(what)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def fits(lines: list[str], columns: int) -> None:
    wide = [line for line in lines if len(line) > columns]
    assert not wide, wide


def test_methods_take_a_line_and_their_idea_one_or_two(columns: int) -> None:
    lines = told("methods")
    fits(lines, columns)
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert {row.name for row in METHODS} <= {line.split()[0] for line in heads}  # no name is broken
    assert len(lines) < 4 * len(METHODS)


@pytest.mark.parametrize("name", ["nap", "metapruning"])
def test_one_method(name: str, columns: int) -> None:
    fits(told("methods", name), columns)


def test_prune(columns: int) -> None:
    lines = told("prune", "zoo:lenet5", "--budget", "flops=0.5")
    fits(lines, columns)
    assert sum("━" in line or "╸" in line for line in lines) == 4  # a bar for every group


def test_where_there_is_no_room_there_are_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "46")
    lines = told("prune", "zoo:lenet5", "--budget", "flops=0.5")
    fits(lines, 46)
    assert not any("━" in line for line in lines)


def test_predicted_latencies_are_milliseconds() -> None:
    before = Cost(1000, 100, 10, 5, latency=18_760)
    after = replace(before, latency=9_329)
    result = SimpleNamespace(before=before, after=after, averaged=after, plan=SimpleNamespace(widths={}))
    result.graph = SimpleNamespace(groups=())
    lines = printed(_before_after(result), 80)  # type: ignore[arg-type]
    assert any(line.split() == ["predicted", "latency,", "ms", "18.760", "9.329", "49.7%"] for line in lines)


def test_an_epoch_is_one_line_and_the_bar_beside_it_is_whole(columns: int) -> None:
    stream = Terminal()
    progress = make_progress(stream=stream)
    progress.start_stage("finetune", 200, 400)
    progress.step(10.2345, "accuracy 98.8%", 12345.6, {"step": 80_000, "epoch": 200, **ROW["method"]})  # type: ignore[dict-item]
    progress.epoch(ROW)
    progress.end_stage()
    lines = [re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", line) for line in re.split("[\r\n]+", stream.getvalue())]
    fits([line.rstrip() for line in lines], columns)
    assert any(line.startswith("finetune 188/200: ") and "validation 10.3456, 97.7%" in line for line in lines)
    bar = next(line for line in reversed(lines) if "100%" in line)
    assert all(part in bar for part in ("finetune 200/200", "loss 10.23", "0:00:00"))
    assert "…" not in stream.getvalue()


def test_an_epoch_keeps_what_fits() -> None:
    whole = describe(ROW, 200)
    assert "hard accuracy 89.0%" in whole
    for room in (40, 60, 80, 100, 120, 300):
        line = describe(ROW, 200, room)
        assert len(line) <= max(room, len("finetune 188/200: loss 10.2345, accuracy 98.8%"))
    assert describe(ROW, 200, 300) == whole
    assert "12,346 images/s" in describe(ROW, 200, 90)


def test_the_headline_of_a_run(columns: int, tmp_path: Path) -> None:
    lines = printed(headline_table(write(tmp_path / "run", documents())), columns)
    fits(lines, columns)
    rows = [line for line in lines if line.startswith(" ") and "MACs" in line]
    assert rows
    assert "left" in rows[0]  # in one line


def test_a_comparison_shows_as_many_columns_as_fit(columns: int) -> None:
    table = mean_table(board(), "flops=0.5")
    shown = fitting([table.head, *table.rows], columns)
    lines = printed(listing(table.head[:shown], [row[:shown] for row in table.rows], right=table.head[1:]), columns)
    fits(lines, columns)
    assert len([line for line in lines if line and "─" not in line]) == 1 + len(table.rows)  # none in two lines
    assert shown < len(table.head)
    more = [row[: shown + 1] for row in (table.head, *table.rows)]
    wide = listing(table.head[: shown + 1], more[1:], right=table.head[1:])
    assert max(map(len, printed(wide, 400))) >= columns  # with the edge that is stripped, one more would not fit


def timed(low: float, high: float) -> dict[str, Any]:
    times = {"median_ms": 123.456, "p10_ms": 101.234, "p90_ms": 934.56}
    ratio = {"median": (low + high) / 2, "low": low, "high": high}
    return {"runtime": "onnxruntime", "dense": times, "pruned": times, "ratio": ratio, "said": "so and so " * 20}


def test_latencies_begin_with_how_much_faster(columns: int) -> None:
    document = {
        "model": "small", "against": "zoo:resnet56", "skipped": [], "batch_size": 1, "threads": 1, "repeats": 30,
        "device": "cpu", "versions": {"torch": "2.13.0"}, "runtimes": [timed(1.5, 2.5), timed(0.94, 2.61)],
    }  # fmt: skip
    lines = printed(latency_tables(document), columns)
    assert max(map(len, lines)) <= columns
    head = next(line for line in lines if "runtime" in line)
    assert head.index("faster") < head.index("against") < head.index("model")
    assert sum("ONNX Runtime" in line and "2.00x (1.50 to 2.50)" in line for line in lines) == 1
    assert sum("ONNX Runtime" in line and "not significant (0.94 to 2.61)" in line for line in lines) == 1
    assert any("101 to 935" in line for line in lines) == (columns == 120)


TRIED = ("tried", "accuracy", "flops left", "stage", "rounds", "seconds")
NAMES = {
    "short": "fpgm with least_squares, global",
    "usual": "fpgm with least_squares, global, sgd 0.01, taught",
    "long": "group_fisher with least_squares and distillation, measured, align 8, sgd 0.01, taught",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_what_compress_tells_breaks_between_words_and_no_row_in_two(name: str, columns: int) -> None:
    said = "Chosen: fpgm, 84.2% straight after the cut, place 1; others: " + ", ".join(["least_squares (83.9%)"] * 9)
    rows = [(name, "84.2%", "50.0%", "finalists", "12", "345"), ("l1, global", "8.1%", "49.9%", "race", "0", "4")]
    lines = printed(summed_up(Summary((said,), TRIED, tuple(rows), ("Verified.",))), columns)
    fits(lines, columns)
    text = " ".join(" ".join(lines).split())
    assert said in text
    assert text.endswith("Verified.")
    row = next(line for line in lines if "84.2%" in line and "50.0%" in line)  # the figures that decide, in one line
    assert ("345" in row) == (columns == 120 and name != NAMES["long"])
    assert set(name.replace(",", " ").split()) <= set(text.replace(",", " ").split())  # no word is broken


SENTENCES = (
    "error: The run in 'runs/a' is not finished (it has no results.json): continue it with `secateur run --resume a`.",
    "[0:10; 3 left] l1, seed 0, flops=0.5: failed: torchmetrics cannot be imported (torchvision::nms is missing)",
    "warning: The method mine of mine.py cannot be loaded (No module named 'a_library_that_is_not_there').",
)


@pytest.mark.parametrize("said", SENTENCES)
def test_sentences_break_between_words_in_a_terminal_alone(
    said: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        monkeypatch.setattr(sys, "stderr", stream)
        tell(said)
    lines = terminal.getvalue().splitlines()
    fits(lines, columns)
    assert " ".join(lines) == said
    assert pipe.getvalue() == f"{said}\n"


def test_a_path_longer_than_the_terminal_is_not_broken(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    tell(f"error: There is no folder {'/a-b' * 40}: give another.")
    assert terminal.getvalue().splitlines()[1].startswith("/a-b" * 40)
