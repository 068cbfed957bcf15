"""OpenVINO on the CPU, from the ONNX file, in single precision.

OpenVINO computes in bfloat16 where the processor can, unless told not to; a comparison with runtimes that do not is
made in the network's own precision.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.runtime.engines.base import Call, Engine
from secateur.runtime.engines.onnx_file import onnx_of
from secateur.runtime.export import needed, told


def prepare(model: nn.Module, inputs: Any, threads: int) -> Call:
    """Export and compile; RunError where the network cannot be expressed or run."""
    request = opened(model, inputs, threads)

    def call() -> object:
        return request.infer()

    return call


def opened(model: nn.Module, inputs: Any, threads: int, **settings: Any) -> Any:
    """An inference request that has its inputs and has run once."""
    data = onnx_of(model, inputs)
    openvino = needed("openvino")
    with told("OpenVINO cannot run the exported network", "leave it out"):
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(data),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
                **settings,
            },
        )
        request = compiled.create_infer_request()
        for port, tensor in zip(compiled.inputs, tensors(inputs), strict=True):
            request.set_tensor(port, openvino.Tensor(tensor.numpy().copy()))
        request.infer()
    return request


def tensors(inputs: Any) -> list[Any]:
    """The tensors of example inputs on the CPU, in the order of a file's inputs."""
    from secateur.graph.modules import map_tensors

    found: list[Any] = []
    map_tensors(inputs, lambda tensor: found.append(tensor.detach().cpu()))
    return found


ENGINE = Engine(
    "openvino",
    "OpenVINO on the CPU, single precision",
    prepare,
    packages=("openvino", "onnx", "onnxscript"),
    install='pip install "secateur[openvino]"',
)
