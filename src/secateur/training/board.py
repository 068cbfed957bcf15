"""The rows of metrics.jsonl for TensorBoard too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.errors import ConfigError


class Board:
    """Writes to `folder`, which is made with the first row."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "engine.tensorboard needs TensorBoard: pip install tensorboard, or set engine.tensorboard: false."
            ) from error
        self._make, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def add(self, row: Mapping[str, Any]) -> None:
        """One epoch's numbers under STAGE/NAME, over the optimiser steps of the stage."""
        if self._writer is None:
            self._writer = self._make(str(self._folder))
        for name, value in {**row, **row.get("method", {})}.items():
            if isinstance(value, int | float) and name not in ("epoch", "step"):
                self._writer.add_scalar(f"{row['stage']}/{name}", value, row["step"])
        self._writer.flush()
