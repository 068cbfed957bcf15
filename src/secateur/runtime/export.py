"""Exporters: the narrow network as a file that runs without its Python code, compared with the module it came from.

One thin adapter a format (`exporters/`), found by name in `EXPORTERS`; their packages are imported when they are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur._hints import choose
from secateur.runtime.exporters.onnx import export_onnx, onnx_feed, onnx_model, onnx_runner, onnx_session
from secateur.runtime.exporters.outside import needed, quiet, told
from secateur.runtime.exporters.pt2 import export_pt2
from secateur.runtime.exporters.subject import Subject, outputs, relative_error, tolerance_of

__all__ = [
    "EXPORTERS",
    "Exporter",
    "Subject",
    "export_model",
    "export_onnx",
    "export_pt2",
    "needed",
    "onnx_feed",
    "onnx_model",
    "onnx_runner",
    "onnx_session",
    "outputs",
    "quiet",
    "relative_error",
    "told",
    "tolerance_of",
]  # fmt: skip


@dataclass(frozen=True)
class Exporter:
    """A format: what it is called, its usual file name, and what it is for."""

    name: str
    file: str
    summary: str
    function: Callable[[nn.Module, Any, Any], dict[str, Any]]


def export_model(name: str, model: nn.Module, example_inputs: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Write `model` in the format called `name`; see `export_onnx` and `export_pt2`."""
    choose(name, list(EXPORTERS), "format")
    return EXPORTERS[name].function(model, example_inputs, path)


EXPORTERS: Mapping[str, Exporter] = {
    "onnx": Exporter("onnx", "model.onnx", "ONNX, for ONNX Runtime and most other runtimes", export_onnx),
    "pt2": Exporter("pt2", "model.pt2", "PyTorch's export format, for PyTorch without the model's code", export_pt2),
}
