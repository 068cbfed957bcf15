"""ONNX in one file, compared with the network in ONNX Runtime."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from secateur.graph.modules import map_tensors
from secateur.runtime.exporters.outside import needed, told
from secateur.runtime.exporters.subject import Run, Subject


def export_onnx(model: nn.Module, example_inputs: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Write ONNX in one file, and compare what ONNX Runtime computes from it with `model`.

    Returns:
        "max_relative_error", "tolerance", "dynamic_batch" (with a "reason" if false), "batch_sizes" compared, "opset",
        "weights" (hash of what was exported), "bytes" and "sha256" of the file.

    Raises:
        ConfigError: a package is missing. RunError: the network cannot be expressed, or the file computes otherwise;
        nothing is written then.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needed(package)
    subject = Subject.of(model, example_inputs)
    data, opset = onnx_model(subject)
    with told("ONNX Runtime cannot run the exported network", "leave it out with export.onnx=false"):
        error = subject.error(onnx_runner(data))
    return subject.written(path, data, error, "ONNX", {"opset": opset})


def onnx_model(subject: Subject) -> tuple[bytes, int]:
    """An ONNX file's bytes and its opset; RunError where the network cannot be expressed."""
    with told("The network cannot be exported to ONNX", "leave it out with export.onnx=false"):
        program = subject.graph()
        proto = torch.onnx.export(program, dynamo=True, verbose=False).model_proto  # type: ignore[union-attr]
        _name_batch(proto)
        opset = next(int(row.version) for row in proto.opset_import if row.domain in ("", "ai.onnx"))
        return proto.SerializeToString(), opset


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
