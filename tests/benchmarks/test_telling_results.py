"""What pages say of how and against what results were measured."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import _record
import pytest
from _markdown import circumstances

ROOT = Path(__file__).parents[2]
ABOUT = {
    "date": "2026-11-29T20:00:00", "command": "python x.py", "versions": {"torch": "2.13.0"}, "python": "3.11.7",
    "device": "cpu", "threads": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "shared"),
    [
        ({}, False),
        ({"load": 1.9}, False),
        ({"load": 2.1}, True),
        ({"load": 3.9, "jobs": 3}, False),
        ({"load": 9}, True),
    ],
)
def test_figures_that_were_taken_beside_other_work_say_so(more: dict[str, Any], shared: bool) -> None:
    told = circumstances({**ABOUT, **more})
    assert ("Other work shared the cores" in told) == shared
    assert told.startswith("Measured 2026-11-29 with `python x.py`: torch 2.13.0, Python 3.11.7, cpu, 1 thread.")


def test_a_census_is_held_against_an_earlier_one() -> None:
    spec = importlib.util.spec_from_file_location(
        "benchmark_tables", Path(__file__).parents[2] / "benchmarks/tables.py"
    )
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)

    def row(name: str, share: float, status: str = "exact") -> dict[str, Any]:
        return {"name": name, "status": status, "prunable_macs": share, "macs": 100, "macs_after": 25}

    before = {"date": "2026-11-21", "commit": "abc", "rows": [row("same", 1.0), row("less", 0.9), row("word", 0.5)]}
    now = [row("same", 1.0), row("less", 0.8), row("word", 0.5, "inexact"), row("new", 1.0)]
    title, text, table = tables._changes(now, before)
    assert title == "## Changes"
    assert "of 3 networks in both, 1 have the same share" in text
    assert "in 1 the share fell" in text
    assert "| less | 90.0% | 80.0% | 25.0% | 25.0% | exact |" in table
    assert "| word |" in table
    assert "| same |" not in table
    assert "| new |" not in table


def test_commands_can_be_given_at_the_root_of_the_repository() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "benchmarks" / "results").rglob("*.json"))
    scripts = set(re.findall(r'"command": "python (\S+\.py)', text))
    assert len(scripts) > 20
    assert not [script for script in scripts if not (ROOT / script).is_file()]


@pytest.mark.parametrize("folder", [ROOT, ROOT / "benchmarks"])
def test_a_script_is_recorded_as_it_is_called_at_the_root(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [os.path.relpath(ROOT / "benchmarks" / "demo.py"), "--runs", "3"])
    assert _record.environment()["command"] == "python benchmarks/demo.py --runs 3"
