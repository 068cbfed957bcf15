"""Who wants to know is told while layer shapes are measured, on the command line too; nobody else is."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))

from _small import recipe

import secateur
from secateur import cli, runs
from secateur.latency import table
from secateur.methods import method
from secateur.models import create
from secateur.training import Silent, make_progress

pytestmark = pytest.mark.usefixtures("made_up")

IMAGE = torch.zeros(1, 3, 32, 32)
BUDGET = "latency=0.6@pytorch"
Seen = list[tuple[int, int, str]]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_AT_ONCE", 40)


def sound(seen: Seen) -> bool:
    """From nothing to all, in steps."""
    total = seen[0][1]
    return seen == [(done, total, "pytorch") for done in [*range(0, total, 40), total]] and len(seen) > 2


class Told(Silent):
    """Remembers what was measured."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.ended = 0

    def measured(self, done: int, total: int, runtime: str) -> None:
        self.seen.append((done, total, runtime))

    def end_stage(self) -> None:
        self.ended += 1


def test_pruning_tells_a_watcher_and_says_nothing_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    seen: Seen = []
    secateur.prune(create("resnet8"), IMAGE, budget=BUDGET, watch=lambda *told: seen.append(told))
    assert sound(seen)
    again: Seen = []
    secateur.prune(create("resnet8"), IMAGE, budget=BUDGET, watch=lambda *told: again.append(told))
    secateur.prune(create("resnet8"), IMAGE, budget="flops=0.6", watch=lambda *told: again.append(told))
    assert again == []  # all is known, or nothing is to be
    secateur.prune(create("resnet8", num_classes=7), IMAGE, budget=BUDGET)  # another last layer is measured
    assert capfd.readouterr() == ("", "")


def test_a_method_tells_a_watcher(capfd: pytest.CaptureFixture[str]) -> None:
    seen: Seen = []
    method("l1").factory(create("resnet8"), IMAGE, budget=BUDGET, watch=lambda *told: seen.append(told))
    assert sound(seen)
    assert capfd.readouterr() == ("", "")


def test_a_run_tells_its_progress(tmp_path: Path) -> None:
    told = Told()
    asked = recipe(f"budget={BUDGET}")
    runs.start(asked, tmp_path / "run", progress=told)
    assert sound(told.seen)
    assert told.ended > 0


def test_a_run_that_is_refused_leaves_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    told = Told()
    monkeypatch.setattr(table, "timed", fail)
    with pytest.raises(KeyboardInterrupt):
        runs.start(recipe(f"budget={BUDGET}"), tmp_path / "run", progress=told)
    assert (len(told.seen), told.ended) == (1, 1)


# ------------------------------------------------------------------------------------------------- the command line


def prune(*options: str) -> Any:
    result = CliRunner().invoke(cli.app, ["prune", "zoo:resnet8", "--no-verify", "--budget", BUDGET, *options])
    assert result.exit_code == 0, result.stderr
    return result


def test_the_command_shows_how_far_it_is() -> None:
    lines = prune().stderr.splitlines()
    total = lines[-1].split()[3]
    assert lines[0] == f"measuring layer shapes 0 of {total} on pytorch"
    assert lines[1] == f"measuring layer shapes 40 of {total} on pytorch"
    assert lines[-1] == f"measuring layer shapes {total} of {total} on pytorch"
    assert prune().stderr == ""  # the second time there is nothing to measure


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_the_command_is_silent_where_it_should_be(option: str) -> None:
    result = prune(option)
    assert result.stderr == ""
    assert result.stdout == "" if option == "--quiet" else json.loads(result.stdout)["plan"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = make_progress(stream=stream)
    for done in (0, 64, 412):
        progress.measured(done, 412, "onnxruntime")
    shown = stream.getvalue()
    assert "measuring layer shapes" in shown
    assert "64 of 412 on onnxruntime" in shown
    assert "━" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("412 of 412")  # the cursor is back, though nobody ended anything
    progress.measured(0, 10, "pytorch")
    progress.end_stage()  # what an error left
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("0 of 10 on pytorch")


def test_json_lines() -> None:
    stream = io.StringIO()
    progress = make_progress(json=True, stream=stream)
    progress.measured(64, 412, "onnxruntime")
    progress.end_stage()  # of no stage
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line == {"event": "measured", "done": 64, "total": 412, "runtime": "onnxruntime"}
