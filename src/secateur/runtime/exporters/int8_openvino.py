"""Whole numbers of 8 bits by NNCF's post-training quantiser, in OpenVINO's representation.

Its defaults: symmetric scales, one for every output channel of a weight, and biases corrected for the mean error. The
range of an activation is the mean of the extremes of all samples, not the extreme of all: rare large values are
clipped, so that outputs differ more from the network's than with ONNX Runtime's quantiser, and decisions hardly.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secateur.graph.modules import map_tensors
from secateur.runtime.exporters.calibration import Pieces
from secateur.runtime.exporters.onnx import onnx_model
from secateur.runtime.exporters.openvino import openvino_files
from secateur.runtime.exporters.outside import needed, openvino_core, told
from secateur.runtime.exporters.subject import Subject


def quantise_openvino(subject: Subject, path: Path, pieces: Pieces) -> dict[Path, bytes]:
    """The bytes of both files."""
    nncf, core = needed("nncf", "int8"), openvino_core("int8")
    data, _ = onnx_model(subject, "export.int8=[]")
    with told("NNCF cannot quantise the network", "leave openvino out of export.int8"):
        model = core.read_model(data)
        names = [row.any_name for row in model.inputs]
        source = _Source(pieces, names)
        # all images, however many; those of a batch count as so many samples where the statistics can tell them apart
        small = nncf.quantize(model, nncf.Dataset(source), subset_size=sys.maxsize)
        return openvino_files(small, path)


class _Source:
    """Calibration inputs under their names."""

    def __init__(self, pieces: Pieces, names: list[str]) -> None:
        self.pieces, self.names, self.batch_size = pieces, names, pieces.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for piece in self.pieces:
            flat: list[Any] = []
            map_tensors(piece, flat.append)
            yield {name: tensor.numpy() for name, tensor in zip(self.names, flat, strict=True)}
