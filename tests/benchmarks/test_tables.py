"""The pages of results are what the results say."""

from __future__ import annotations

import tables


def test_pages_are_made_from_the_results() -> None:
    stale = [path.name for path, text in tables.pages().items() if not path.exists() or path.read_text() != text]
    assert not stale, f"run python benchmarks/tables.py: {stale}"
