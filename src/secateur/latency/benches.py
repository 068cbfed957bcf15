"""Single layers timed on a runtime: many shapes at once, each alone, without what surrounds them in a network.

ONNX Runtime and OpenVINO run one model in which every shape is a branch of its own, and their profilers say what each
layer took; changes of layout at its ends are theirs and do not count. PyTorch calls each layer's operator.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from secateur._protocols import FloatArray
from secateur.graph.forms import Form

#: A layer to time: its form, output channels, inputs each output sums over.
Layer = tuple[Form, int, int]

_RUNS, _WARM = 12, 3
_MOST_ELEMENTS = 1 << 25  # weights and activations in one model, 128 MiB
_QUANTILE = 0.3  # what else the machine does only ever adds time


def timed(runtime: str, layers: Sequence[Layer], threads: int) -> FloatArray:
    """Microseconds of each layer [layers] on `runtime`, one of `BENCHES`."""
    found: list[float] = []
    for part in _parts(layers):
        found += BENCHES[runtime](part, threads)
    return np.array(found, dtype=np.float64)


def _parts(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """As many layers at a time as fit into memory."""
    part: list[Layer] = []
    held = 0
    for layer in layers:
        weight, x = shapes(layer)
        size = int(np.prod(weight)) + int(np.prod(x))
        if part and held + size > _MOST_ELEMENTS:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


def shapes(layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of a layer's weight and input, as PyTorch has them."""
    form, out, into = layer
    if form.kind == "linear":
        return (out, into), (*form.size, into)
    if form.kind == "transposed":
        return (into, out, *form.kernel), (form.batch, into, *form.size)
    source = out if form.kind == "depthwise" else into * form.groups
    return (out, into, *form.kernel), (form.batch, source, *form.size)


# -------------------------------------------------------------------------------------------------------------- PyTorch


def _pytorch(layers: Sequence[Layer], threads: int) -> list[float]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return [_quantile(_clocked(_operator(layer))) for layer in layers]
    finally:
        torch.set_num_threads(before)


def _operator(layer: Layer) -> Callable[[], Any]:
    form, out, _ = layer
    weight, x = (torch.randn(shape) for shape in shapes(layer))
    bias = torch.randn(out)
    if form.kind == "linear":
        return lambda: F.linear(x, weight, bias)
    if form.kind == "transposed":
        return lambda: F.conv_transpose2d(x, weight, bias, form.stride, form.padding, dilation=form.dilation)
    groups = form.groups or out
    return lambda: F.conv2d(x, weight, bias, form.stride, form.padding, form.dilation, groups)


def _clocked(call: Callable[[], Any]) -> list[float]:
    for _ in range(_WARM):
        call()
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return times


# --------------------------------------------------------------------------------------------------- from an ONNX model


def _onnxruntime(layers: Sequence[Layer], threads: int) -> list[float]:
    from secateur.runtime.export import needed

    runtime = needed("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = runtime.InferenceSession(_model(layers, between=True), options, providers=["CPUExecutionProvider"])
        feed = _feed(layers)
        for _ in range(_WARM + _RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[int, list[float]] = {}
    for event in events:
        match = re.match(r"y(\d+)_", event["name"])
        if event.get("cat") == "Node" and match and not event["args"].get("op_name", "").startswith("Reorder"):
            times.setdefault(int(match[1]), []).append(float(event["dur"]))
    return _collected(times, len(layers))


def _openvino(layers: Sequence[Layer], threads: int) -> list[float]:
    from secateur.runtime.export import openvino_core

    core = openvino_core("export")
    settings = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(_model(layers)), "CPU", settings).create_infer_request()
    feed = _feed(layers)
    times: dict[int, list[float]] = {}
    for _ in range(_WARM + _RUNS):
        request.infer(feed)
        for row in request.get_profiling_info():
            match = re.fullmatch(r"y(\d+)(/.*)?", row.node_name)
            spent = 1e6 * row.real_time.total_seconds()
            if match and spent and row.node_type != "Reorder":
                times.setdefault(int(match[1]), []).append(spent)
    return _collected(times, len(layers))


def _collected(times: Mapping[int, Sequence[float]], count: int) -> list[float]:
    """Of each layer the quantile over its runs, without those that warmed up."""
    return [_quantile(times[k][-_RUNS:]) for k in range(count)]


def _quantile(times: Sequence[float]) -> float:
    return max(float(np.quantile(times, _QUANTILE)), 0.1)


def _model(layers: Sequence[Layer], *, between: bool = False) -> bytes:
    """One ONNX model in which layer k, named y{k} as what it writes, is a branch of its own.

    between: another operator stands before and one behind each layer, as in a network: what a layer reads is in the
        processor's cache, and what it writes goes into memory that has been used before. Without them layers that need
        no change of layout at their ends seemed to take up to twice as long.
    """
    from secateur.runtime.export import needed

    onnx = needed("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes, weights, inputs, outputs = [], [], [], []
    generator = np.random.default_rng(0)
    for k, layer in enumerate(layers):
        form, out, _ = layer
        shape, x = shapes(layer)
        sizes = {f"w{k}": shape} | ({f"b{k}": (out,)} if form.kind != "transposed" else {})  # it would hide the name
        for name, size in sizes.items():
            values = generator.standard_normal(size, dtype=np.float32) * np.float32(0.05)
            weights.append(onnx.numpy_helper.from_array(values, name))
        first, last = (f"a{k}", f"z{k}") if between else (f"x{k}", f"y{k}")
        if between:  # an operator that is not fused with a layer
            nodes.append(helper.make_node("Abs", [f"x{k}"], [first]))
        operator, attributes = _OPERATORS[form.kind], _attributes(form, out)
        nodes.append(helper.make_node(operator, [first, *sizes], [f"y{k}"], name=f"y{k}", **attributes))
        if between:
            nodes.append(helper.make_node("Abs", [f"y{k}"], [last]))
        inputs.append(helper.make_tensor_value_info(f"x{k}", floats, x))
        outputs.append(helper.make_tensor_value_info(last, floats, None))
    graph = helper.make_graph(nodes, "layers", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    data: bytes = model.SerializeToString()
    return data


_OPERATORS = {"linear": "Gemm", "transposed": "ConvTranspose", "conv": "Conv", "depthwise": "Conv"}


def _attributes(form: Form, out: int) -> dict[str, Any]:
    if form.kind == "linear":
        return {"transB": 1}
    pads = [*form.padding, *form.padding]
    shape = {"kernel_shape": form.kernel, "strides": form.stride, "pads": pads, "dilations": form.dilation}
    return shape | {"group": form.groups or out}


def _feed(layers: Sequence[Layer]) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    return {f"x{k}": generator.standard_normal(shapes(layer)[1], dtype=np.float32) for k, layer in enumerate(layers)}


#: Name of a runtime -> what times layers there. Compiled PyTorch calls the kernels that PyTorch does.
BENCHES: Mapping[str, Callable[[Sequence[Layer], int], list[float]]] = {
    "pytorch": _pytorch,
    "compiled": _pytorch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
