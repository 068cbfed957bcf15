"""Whole numbers of 8 bits by ONNX Runtime's static quantiser.

The file keeps the operators and puts pairs of QuantizeLinear and DequantizeLinear around them (QDQ), with a scale for
every output channel of a weight and, for activations, the smallest and largest value seen. As its documentation
advises, the network is first optimised and its shapes inferred. Signed numbers on both sides are its default: on x86
processors without VNNI instructions sums of two products can saturate, and accuracy should be measured there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from secateur.runtime.exporters.calibration import Pieces
from secateur.runtime.exporters.onnx import onnx_feed, onnx_model, onnx_session
from secateur.runtime.exporters.outside import needed, told
from secateur.runtime.exporters.subject import Subject


def quantise_onnxruntime(subject: Subject, path: Path, pieces: Pieces) -> dict[Path, bytes]:
    """The file's bytes."""
    quantization = needed("onnxruntime.quantization", "int8")
    preparing = needed("onnxruntime.quantization.shape_inference", "int8")
    data, _ = onnx_model(subject, "export.int8=[]")
    with (
        told("ONNX Runtime cannot quantise the network", "leave onnxruntime out of export.int8"),
        tempfile.TemporaryDirectory() as place,
    ):
        folder = Path(place)
        (folder / "float.onnx").write_bytes(data)
        # inference with symbols is for transformers, says its documentation
        preparing.quant_pre_process(folder / "float.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
        session = onnx_session(data, 1)

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                self.pieces = iter(pieces)

            def get_next(self) -> Any:
                piece = next(self.pieces, None)
                return None if piece is None else onnx_feed(session, piece)

        quantization.quantize_static(
            folder / "ready.onnx",
            folder / "int8.onnx",
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return {path: (folder / "int8.onnx").read_bytes()}
