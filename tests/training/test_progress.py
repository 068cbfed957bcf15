"""What is shown: lines for logs, bars for people, JSON for programs, nothing on request."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from _toy import ToyMethod, make_engine, short, toy_net

from secateur.training import Progress, Silent, make_progress
from secateur.training.progress import Bars, JsonLines, Lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(progress: Progress, folder: Path | None = None) -> None:
    method = ToyMethod(toy_net())
    make_engine(folder, progress=progress).fit("train", method, short(epochs=2), method=method)


def test_the_right_one_is_chosen() -> None:
    assert isinstance(make_progress(quiet=True), Silent)
    assert isinstance(make_progress(stream=io.StringIO()), Lines)
    assert isinstance(make_progress(stream=Terminal()), Bars)
    assert isinstance(make_progress(json=True, quiet=True, stream=Terminal()), JsonLines)


def test_one_line_an_epoch() -> None:
    stream = io.StringIO()
    run(make_progress(stream=stream))
    first, second = stream.getvalue().splitlines()
    assert first.startswith("train 1/2: loss ")
    assert "; validation " in first
    assert "; strength 0.00" in second
    assert "; flops 50.0%; " in second
    assert second.endswith(" images/s")


def test_json_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = make_progress(json=True, stream=stream)
    progress.say("Hello.")
    run(progress, tmp_path)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in found] == ["note", "stage", "epoch", "epoch", "end"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "event"} for line in found[2:4]] == rows


def test_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = make_progress(stream=stream)
    run(progress)
    shown = stream.getvalue()
    for words in ("train 2/2", "loss", "flops 50.0%", "images/s", "100%", "left"):
        assert words in shown
    progress.say("[red] is no markup here")
    assert "[red] is no markup here" in stream.getvalue()
    progress.end_stage()  # once more is harmless


def test_silence() -> None:
    run(Silent())


def test_trials_of_a_search_are_told() -> None:
    lines, rows, bars = io.StringIO(), io.StringIO(), Terminal()
    for progress in (make_progress(stream=lines), make_progress(json=True, stream=rows), make_progress(stream=bars)):
        progress.trial(17, 90, "71.2%")
        progress.end_stage()
    assert lines.getvalue() == "trial 17 of 90, best 71.2%\n"
    assert json.loads(rows.getvalue()) == {"event": "trial", "done": 17, "total": 90, "best": "71.2%"}
    assert "trial 17 of 90, best" in bars.getvalue()
