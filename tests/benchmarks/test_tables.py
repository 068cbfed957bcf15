"""The pages of results are what the results say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "tables.py"


def test_pages_are_made_from_the_results() -> None:
    spec = importlib.util.spec_from_file_location("benchmark_tables", FILE)  # docs/ has a module of this name too
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    stale = [path.name for path, text in tables.pages().items() if not path.exists() or path.read_text() != text]
    assert not stale, f"run python benchmarks/tables.py: {stale}"
