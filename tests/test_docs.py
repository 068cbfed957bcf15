"""Pages of the documentation are what the code says; tests/docs/ runs their programs and builds the site."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from secateur.methods import METHODS
from secateur.repair import REPAIRS

DOCS = Path(__file__).parents[1] / "docs"


def test_generated_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    stale = runpy.run_path(str(DOCS / "tables.py"))["main"](["--check"])
    assert not stale, f"{capsys.readouterr().out.strip()}: run python docs/tables.py"


def test_every_method_has_its_row_and_its_page() -> None:
    index = (DOCS / "methods.md").read_text(encoding="utf-8")
    for row in METHODS:
        line = next(
            line for line in index.splitlines() if line.startswith(f"| [`{row.name}`](methods/{row.name}.md) |")
        )
        assert row.paper in line
        assert f", {row.year} | {row.needs} | {row.acts} |" in line
        page = (DOCS / "methods" / f"{row.name}.md").read_text(encoding="utf-8")
        assert row.fidelity in page
        for title in ("Algorithm", "In short", "Using it", "Settings", "Measured"):
            assert f"\n## {title}\n" in page


def test_every_repair_is_on_its_page() -> None:
    page = (DOCS / "repairs.md").read_text(encoding="utf-8")
    for row in REPAIRS:
        assert f"| [`{row.name}`](#{row.name}) |" in page
        assert f"\n### {row.name}\n" in page
        assert f"- **`{row.name}`** " in page  # when to use it
