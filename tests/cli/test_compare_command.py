"""`secateur compare`: what it prints, in which form, how it ends, and that every refusal is one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))

from _contest import recipe

from secateur import cli, runs


def run(*arguments: object) -> Any:
    """The command in this process."""
    return CliRunner().invoke(cli.app, ["compare", *map(str, arguments)])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe."""
    (tmp_path / "c.yaml").write_text(recipe("train.epochs=1", "train.warmup=0").to_yaml())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_shows_the_means_and_where_the_leaderboard_is() -> None:
    found = run("c.yaml", "--no-dense", "--methods", "l1, scratch", "--seeds", 2, "--first-seed", 5)
    assert found.exit_code == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == "flops=0.6"
    assert lines[-1] == "Leaderboard: runs/compare/leaderboard.html"
    assert {line.split()[0] for line in lines if "±" in line} == {"l1", "scratch"}
    assert max(map(len, lines)) <= 80
    told = found.stderr.splitlines()
    assert told[0] == "[0:00] 4 runs: 0 finished before, 4 to do."
    assert sum("begun." in line for line in told) == 6  # two base networks
    assert sum("; 0 left] " in line for line in told) == 1
    assert {p.name for p in Path("runs/compare/runs").iterdir()} == {
        f"{label}-{seed}-flops=0.6" for label in ("l1", "scratch") for seed in (5, 6)
    }
    again = run("c.yaml", "--no-dense", "--methods", "l1,scratch", "--seeds", 2, "--first-seed", 5)
    assert again.stdout == found.stdout
    assert again.stderr.splitlines() == ["[0:00] 4 runs: 4 finished before, 0 to do."]


def test_for_programs() -> None:
    given = ("--no-dense", "--methods", "scratch", "--seeds", 1, "--out", "x", "--set", "finetune.epochs=1", "--set")
    found = run("c.yaml", *given, "finetune.warmup=0", "--budget", "flops=0.7", "--budget", "flops=0.5", "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout) == json.loads(Path("x/leaderboard.json").read_text())
    events = [json.loads(line) for line in found.stderr.splitlines()]
    assert {e["event"] for e in events} == {"cell"}
    assert [(e["state"], e["left"]) for e in events] == [
        ("plan", 2), ("begun", 2), ("finished", 1), ("begun", 1), ("finished", 0),
    ]  # fmt: skip
    assert {e["cell"] for e in events[1:]} == {"scratch-0-flops=0.7", "scratch-0-flops=0.5"}


def test_quiet_says_where_the_page_is() -> None:
    found = run("c.yaml", "--no-dense", "--methods", "scratch", "--seeds", 1, "-q")
    assert (found.stdout, found.stderr) == ("runs/compare/leaderboard.html\n", "")


def test_settings_of_methods() -> None:
    found = run("c.yaml", "--no-dense", "--methods", "l1,scratch", "--seeds", 1, "--with", "l1.reduce=mean", "-q")
    assert found.exit_code == 0, found.stderr
    results = json.loads(Path("runs/compare/runs/l1-0-flops=0.6/results.json").read_text())
    assert results["method"]["settings"]["reduce"] == "mean"
    assert json.loads(Path("runs/compare/leaderboard.json").read_text())["settings"] == {"l1": {"reduce": "mean"}}


def test_a_failed_run_makes_the_exit_code_1() -> None:
    found = run("c.yaml", "--no-dense", "--methods", "scratch,l1", "--seeds", 1, "--with", "scratch.plan=nowhere.json")
    assert found.exit_code == 1
    assert "scratch, seed 0, flops=0.6 failed: " in found.stdout
    assert "nowhere.json" in found.stdout
    assert "nowhere.json" in Path("runs/compare/leaderboard.html").read_text()
    assert "scratch, seed 0, flops=0.6: failed: " in found.stderr


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["secateur", "compare", "c.yaml", "--out", "a b"])
    monkeypatch.setattr(runs.stages.Stages, "_prune", interrupted)
    found = run("c.yaml", "--no-dense", "--methods", "l1", "--out", "a b", "-q")
    assert found.exit_code == 130
    said = "error: Interrupted: the same command continues from here, secateur compare c.yaml --out 'a b'.\n"
    assert found.stderr == said
    monkeypatch.setattr("secateur.compare.prepare", interrupted)
    found = run("c.yaml", "--no-dense", "--methods", "l1", "--out", "other", "-q")
    assert (found.exit_code, found.stderr) == (130, "error: Interrupted before anything was written.\n")


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "no methods": (("c.yaml",), "--methods"),
    "no method in it": (("c.yaml", "--methods", ","), "No method is named"),
    "no such recipe": (("d.yaml", "--methods", "l1"), "'d.yaml' cannot be read"),
    "unknown method": (("c.yaml", "--methods", "l1,bwpc"), "did you mean 'bwcp'?"),
    "unknown repair": (("c.yaml", "--methods", "l1+batchnrm"), "did you mean 'batchnorm'?"),
    "no seeds": (("c.yaml", "--methods", "l1", "--seeds", 0), "--seeds"),
    "no jobs": (("c.yaml", "--methods", "l1", "--jobs", 0), "--jobs"),
    "bad budget": (("c.yaml", "--methods", "l1", "--budget", "flop=0.5"), "did you mean 'flops'?"),
    "bad setting": (("c.yaml", "--methods", "l1", "--with", "l1"), "METHOD.KEY=VALUE"),
    "a setting in a value": (("c.yaml", "--methods", "l1", "--with", "l1.a=1", "--with", "l1.a.b=1"), "has a value"),
    "unknown setting": (("c.yaml", "--methods", "l1", "--with", "l1.redcue=mean"), "did you mean 'l1.reduce'?"),
    "setting of another": (("c.yaml", "--methods", "l1", "--with", "nap.ridge=1"), "which is not compared"),
    "unknown key": (("c.yaml", "--methods", "l1", "--set", "finetun.epochs=1"), "did you mean"),
    "no fine-tuning": (("c.yaml", "--methods", "l1", "--set", "finetune=null"), "finetune is missing"),
    "no such data": (("c.yaml", "--methods", "l1", "--set", "data={name: cifar10, path: nowhere}"), "nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence_and_leave_nothing(name: str) -> None:
    arguments, part = REFUSED[name]
    found = run(*arguments)
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    lines = found.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert part in lines[0]
    assert not Path("runs").exists()


def test_help_has_examples_and_every_option() -> None:
    found = run("--help")
    assert found.exit_code == 0
    for part in (
        "Examples:", "--methods", "--seeds", "--first-seed", "--budget", "--out", "--jobs", "--threads", "--set",
        "--with", "--json", "--quiet",
    ):  # fmt: skip
        assert part in found.stdout
