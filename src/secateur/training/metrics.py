"""metrics.jsonl: one object a line for every epoch of every stage, cut back when a run goes on from an older point."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur._files import parse_json, said, write_text
from secateur.errors import RunError


class Metrics:
    """The file of one run; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line, whole, to the disk."""
        if self.path is None:
            return
        line = json.dumps(strict(row), allow_nan=False, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            raise RunError(f"The metrics cannot be written to {str(self.path)!r}: {said(problem)}.") from problem

    def rewind(self, stage: str, step: int) -> None:
        """Forget what happened after optimiser step `step` of `stage`, later stages included, and a torn last line."""
        if self.path is None or not self.path.exists():
            return
        try:
            text = self.path.read_bytes().decode(errors="replace")
        except OSError as problem:
            raise RunError(f"The metrics {str(self.path)!r} cannot be read: {said(problem)}.") from problem
        kept = []
        for line in text.splitlines(keepends=True):
            row = _row(line)
            if row is None or (row.get("stage") == stage and row.get("step", 0) > step):
                break
            kept.append(line)
        if len(whole := "".join(kept)) != len(text):
            write_text(self.path, whole, what="The metrics")


def strict(value: Any) -> Any:
    """The same value as JSON knows it: what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _row(line: str) -> dict[str, Any] | None:
    """One line's object; None for a line that a crash tore."""
    if not line.endswith("\n"):
        return None
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
