"""ONNX in one file, compared with the network in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from secateur.graph.modules import map_tensors
from secateur.runtime.exporters.outside import needed, told
from secateur.runtime.exporters.subject import Run, Subject


def write_onnx(subject: Subject, path: Path) -> dict[str, Any]:
    """Write ONNX; says its "opset" too."""
    data, opset = onnx_model(subject)
    with told("ONNX Runtime cannot run the exported network", "leave it out with export.onnx=false"):
        error = subject.error(onnx_runner(data))
    return subject.written({path: data}, error, "ONNX", {"opset": opset})


def open_onnx(files: Sequence[bytes]) -> tuple[Run, bool]:
    """A function that runs the file, and whether it takes any batch size."""
    shape = onnx_session(files[0], 1).get_inputs()[0].shape
    return onnx_runner(files[0]), bool(shape) and not isinstance(shape[0], int)


def onnx_model(subject: Subject, without: str = "export.onnx=false") -> tuple[bytes, int]:
    """An ONNX file's bytes and its opset, made once; RunError where the network cannot be expressed.

    without: the setting that a recipe can do without this.
    """
    if "onnx" not in subject.made:
        with told("The network cannot be exported to ONNX", f"leave it out with {without}"):
            program = subject.graph()
            proto = torch.onnx.export(program, dynamo=True, verbose=False).model_proto  # type: ignore[union-attr]
            _name_batch(proto)
            opset = next(int(row.version) for row in proto.opset_import if row.domain in ("", "ai.onnx"))
            subject.made["onnx"] = (proto.SerializeToString(), opset)
    data, opset = subject.made["onnx"]
    return data, opset


def onnx_session(data: bytes, threads: int) -> Any:
    """An ONNX Runtime session on the CPU."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised as well
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def onnx_feed(session: Any, inputs: Any) -> dict[str, Any]:
    """Example inputs under the names of the session."""
    flat: list[torch.Tensor] = []
    map_tensors(inputs, flat.append)
    names = [row.name for row in session.get_inputs()]
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, flat, strict=True)}


def onnx_runner(data: bytes) -> Run:
    """A function from inputs to outputs that runs an ONNX file."""
    session = onnx_session(data, torch.get_num_threads())
    return lambda inputs: [torch.as_tensor(output) for output in session.run(None, onnx_feed(session, inputs))]


def _name_batch(proto: Any) -> None:
    """Where all open dimensions are one symbol of the exporter's, call it batch."""
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param]
    if len({dim.dim_param for dim in dims if dim.dim_param.isidentifier()}) == 1:
        for dim in dims:
            if dim.dim_param.isidentifier():
                dim.dim_param = "batch"
