"""What a criterion gives: one number for every channel of every group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur._protocols import FloatArray


class Scores(dict[str, FloatArray]):
    """Scores by group name, and in `provenance` how they were found; `allocate` copies that into the plan."""

    def __init__(self, scores: Mapping[str, FloatArray], provenance: Mapping[str, Any]) -> None:
        """Hold the scores and their provenance (JSON values)."""
        super().__init__(scores)
        self.provenance: dict[str, Any] = dict(provenance)
