"""Exporters: the narrow network as a file that runs without its Python code, compared with the module it came from.

One thin adapter a format (`exporters/`), found by name in `EXPORTERS`; their packages are imported when they are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur._hints import choose
from secateur.errors import ConfigError
from secateur.runtime.exporters.executorch import open_executorch, write_executorch
from secateur.runtime.exporters.formats import Format, Opened
from secateur.runtime.exporters.onnx import (
    onnx_feed,
    onnx_model,
    onnx_runner,
    onnx_session,
    open_onnx,
    write_onnx,
)
from secateur.runtime.exporters.openvino import open_openvino, write_openvino
from secateur.runtime.exporters.outside import needed, openvino_core, quiet, told
from secateur.runtime.exporters.pt2 import write_pt2
from secateur.runtime.exporters.subject import Subject, outputs, relative_error, tolerance_of

__all__ = [
    "EXPORTERS",
    "Exporter",
    "Subject",
    "export_model",
    "export_onnx",
    "export_pt2",
    "export_subject",
    "needed",
    "onnx_feed",
    "onnx_model",
    "onnx_runner",
    "onnx_session",
    "openvino_core",
    "outputs",
    "quiet",
    "relative_error",
    "told",
    "tolerance_of",
]


@dataclass(frozen=True)
class Exporter(Format):
    """A format, and what writes it."""

    function: Callable[[Subject, Path], dict[str, Any]]
    opened: Opened | None = None


def export_model(
    name: str,
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    open_size: bool = False,
    fixed: str | None = None,
) -> dict[str, Any]:
    """Write `model` in the format called `name` (see `EXPORTERS`), and compare what the file computes with it.

    Args:
        name: of the format. model: in evaluation mode or not, it stays as it is. example_inputs: what it runs with.
        path: of the file to write. opset: of ONNX; None: the exporter's own.
        open_size: leave the height and width of images open, too, as in a fully convolutional network.
        fixed: why the batch size is that of the example, if it is not to be left open.

    Returns:
        "max_relative_error", "tolerance", "dynamic_batch" (with a "reason" if false), "batch_sizes" compared,
        "weights" (hash of what was exported), "bytes" and "sha256" ("files" has them of each file, where a format
        has several), and what only this format knows, such as "opset".

    Raises:
        ConfigError: there is no such format, or a package is missing. RunError: the network cannot be expressed, or
        the file computes otherwise, or cannot be written; nothing is written then.
    """
    _check(name)
    if opset is not None and name != "onnx":
        raise ConfigError(f"The format {name} has no opset to choose: leave opset out, or write onnx.")
    subject = Subject.of(model, example_inputs, fixed=fixed, opset=opset, open_size=open_size)
    return export_subject(name, subject, path)


def export_subject(name: str, subject: Subject, path: str | os.PathLike[str]) -> dict[str, Any]:
    """As `export_model`; several formats share what they have in common if they are given one `subject`."""
    _check(name)
    return EXPORTERS[name].function(subject, Path(path))


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    open_size: bool = False,
) -> dict[str, Any]:
    """Write ONNX in one file, and compare what ONNX Runtime computes from it with `model`.

    Inputs are called as the arguments of `forward` or the keys of a dict, outputs as the keys of a dict.

    model, example_inputs, path, opset, open_size: as in `export_model`, which also says what is returned and raised.
    """
    return export_model("onnx", model, example_inputs, path, opset=opset, open_size=open_size)


def export_pt2(model: nn.Module, example_inputs: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Write PyTorch's own format, and compare what `secateur.load` and PyTorch make of it.

    model, example_inputs, path: as in `export_model`, which also says what is returned and raised.

    Returns:
        also "loads": whether `secateur.load` reads it ("not_loaded" says why not).
    """
    return export_model("pt2", model, example_inputs, path)


def _check(name: str) -> None:
    """ConfigError unless there is such a format and what it needs."""
    choose(name, list(EXPORTERS), "format")
    EXPORTERS[name].check()


_ROWS = (
    Exporter(
        "onnx",
        ("model.onnx",),
        "ONNX, for ONNX Runtime and most other runtimes",
        ("onnx", "onnxscript", "onnxruntime"),
        "export",
        write_onnx,
        open_onnx,
    ),
    Exporter(
        "pt2",
        ("model.pt2",),
        "PyTorch's export format, which needs no code of the model",
        (),
        "",
        write_pt2,
    ),
    Exporter(
        "openvino",
        ("model.xml", "model.bin"),
        "OpenVINO's representation, for processors and graphics of Intel and for ARM",
        ("openvino", "onnx", "onnxscript"),
        "openvino",
        write_openvino,
        open_openvino,
    ),
    Exporter(
        "executorch",
        ("model.pte",),
        "ExecuTorch's program with XNNPACK, for phones and small devices",
        ("executorch", "torchao"),
        "executorch",
        write_executorch,
        open_executorch,
    ),
)
#: Formats by name, one frozen row each.
EXPORTERS: Mapping[str, Exporter] = {row.name: row for row in _ROWS}
