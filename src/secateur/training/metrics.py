"""metrics.jsonl: one object a line for every epoch of every stage, cut back when a run goes on from an older point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur._files import append_line, keep_lines, whole_lines


class Metrics:
    """The file of one run; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line, whole, to the disk."""
        if self.path is None:
            return
        append_line(self.path, strict(row), what="The metrics")

    def rewind(self, stage: str, step: int) -> None:
        """Forget what happened after optimiser step `step` of `stage`, later stages included, and a torn last line."""
        if self.path is None or not self.path.exists():
            return
        rows = whole_lines(self.path, what="The metrics")
        past = (k for k, row in enumerate(rows) if row.get("stage") == stage and row.get("step", 0) > step)
        keep_lines(self.path, rows[: next(past, len(rows))], what="The metrics")


def strict(value: Any) -> Any:
    """The same value as JSON knows it: what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
