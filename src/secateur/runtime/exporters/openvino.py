"""OpenVINO's intermediate representation, model.xml and model.bin, made from ONNX and compared in OpenVINO.

Weights stay as they are: OpenVINO's own default would round them to half precision.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from secateur.graph.modules import map_tensors
from secateur.runtime.exporters.onnx import onnx_model
from secateur.runtime.exporters.outside import needed, openvino_core, told
from secateur.runtime.exporters.subject import Run, Subject


def write_openvino(subject: Subject, path: Path) -> dict[str, Any]:
    """Write the representation in two files, the weights beside `path` with the ending .bin; says its "opset" too."""
    core = openvino_core()
    data, _ = onnx_model(subject, "export.openvino=false")
    with told("OpenVINO cannot run the exported network", "leave it out with export.openvino=false"):
        files = openvino_files(core.read_model(data), path)
        model = core.read_model(*files.values())
        error = subject.error(openvino_runner(model))
        opset = max(int(name) for op in model.get_ops() if (name := op.get_type_info().version_id[5:]).isdigit())
    return subject.written(files, error, "OpenVINO", {"opset": opset})


def open_openvino(files: Sequence[bytes]) -> tuple[Run, bool]:
    """A function that runs the two files, and whether they take any batch size."""
    model = openvino_core().read_model(*files)
    shape = model.inputs[0].get_partial_shape()
    return openvino_runner(model), bool(len(shape)) and shape[0].is_dynamic


def openvino_files(model: Any, path: Path) -> dict[Path, bytes]:
    """What OpenVINO writes of a model, under the names for `path`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.xml"
        needed("openvino", "openvino").save_model(model, file, compress_to_fp16=False)
        return {path: file.read_bytes(), path.with_suffix(".bin"): file.with_suffix(".bin").read_bytes()}


def openvino_runner(model: Any) -> Run:
    """A function from inputs to outputs, in the precision of the weights; OpenVINO would choose a coarser one."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino_core().compile_model(model, "CPU", settings)

    def run(inputs: Any) -> list[torch.Tensor]:
        flat: list[torch.Tensor] = []
        map_tensors(inputs, flat.append)
        given = {row: tensor.detach().cpu().numpy() for row, tensor in zip(compiled.inputs, flat, strict=True)}
        found = compiled(given)
        return [torch.tensor(found[row]) for row in compiled.outputs]

    return run
