"""ONNX in one file, compared with the network in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten_with_path

from secateur.errors import RunError
from secateur.graph.modules import as_call, map_tensors
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
            options = {"output_names": _output_names(subject, program), "opset_version": subject.opset}
            made = torch.onnx.export(program, dynamo=True, verbose=False, **options)  # type: ignore[arg-type]
            proto = made.model_proto  # type: ignore[union-attr]
            _name_sizes(proto)
            opset = next(int(row.version) for row in proto.opset_import if row.domain in ("", "ai.onnx"))
        if subject.opset not in (None, opset):
            raise RunError(f"The network cannot be written in opset {subject.opset}: leave it out, for opset {opset}.")
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


def _output_names(subject: Subject, program: torch.export.ExportedProgram) -> list[str] | None:
    """What the network calls its outputs: the keys of a dict, numbers of a list; None where they do not go together."""
    args, kwargs = as_call(subject.inputs)
    with torch.no_grad():
        leaves = tree_flatten_with_path(subject.twin(*args, **kwargs))[0]
    paths = [path for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    signature = program.graph_signature
    if len(paths) != len(leaves) or len(set(signature.user_outputs)) != len(paths):
        return None
    taken, names = set(signature.user_inputs), list[str]()
    for path in paths:
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
        name = "_".join(parts) if parts and not parts[0].isdigit() else "_".join(["output", *parts])
        while name in taken:
            name += "_out"
        taken.add(name)
        names.append(name)
    return names


def _name_sizes(proto: Any) -> None:
    """Call the exporter's symbols for open dimensions what they are."""
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param]
    names: dict[str, str] = {}
    for value in proto.graph.input:
        shape = value.type.tensor_type.shape.dim
        for dim, name in zip(shape, _SIZES if len(shape) == 4 else _SIZES[:1], strict=False):
            if dim.dim_param.isidentifier() and name not in names.values():
                names.setdefault(dim.dim_param, name)
    for dim in dims:
        dim.dim_param = re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), dim.dim_param)


_SIZES = ("batch", "channels", "height", "width")
