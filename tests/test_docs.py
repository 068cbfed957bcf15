"""Pages of the documentation are what the code says; their programs run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from secateur.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS.parent / "examples"


def test_generated_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    stale = runpy.run_path(str(DOCS / "tables.py"))["main"](["--check"])
    assert not stale, f"{capsys.readouterr().out.strip()}: run python docs/tables.py"


def test_every_method_has_its_row_and_its_section() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    for row in METHODS:
        assert f"| [`{row.name}`](#{row.name}) | {row.paper} | {row.year} |" in page
        assert f"\n## {row.name}\n" in page


def test_every_example_is_on_the_page_of_loops() -> None:
    page = (DOCS / "own-loop.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert path.read_text(encoding="utf-8") in page


def test_the_page_of_loops_runs() -> None:
    page = (DOCS / "own-loop.md").read_text(encoding="utf-8")
    programs = {path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if block not in programs]
    assert len(blocks) == 2
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "own-loop.md", "exec"), names)
    assert callable(names["test_strides"])
