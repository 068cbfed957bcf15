"""OpenVINO on the CPU, from the ONNX file, in single precision.

OpenVINO computes in bfloat16 where the processor can, unless told not to; a comparison with runtimes that do not is
made in the network's own precision.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from secateur._hints import install
from secateur.runtime.engines.base import Call, Engine, Seconds, Watch
from secateur.runtime.engines.onnx_file import onnx_of
from secateur.runtime.engines.watching import layers_of_nodes, summed, with_rest
from secateur.runtime.export import needed, openvino_core, told


def prepare(model: nn.Module, inputs: Any, threads: int) -> Call:
    """Export and compile; RunError where the network cannot be expressed or run."""
    request = opened(model, inputs, threads)

    def call() -> object:
        return request.infer()

    return call


def prepare_each(model: nn.Module, several: Sequence[Any], threads: int) -> Call:
    """A request that gets one of the inputs after the other."""
    request = opened(model, several[0], threads)
    openvino = needed("openvino")
    given = [[openvino.Tensor(tensor.numpy().copy()) for tensor in tensors(inputs)] for inputs in several]

    def call() -> object:
        return [request.infer(each) for each in given]

    return call


def opened(model: nn.Module, inputs: Any, threads: int, **settings: Any) -> Any:
    """An inference request that has its inputs and has run once."""
    data = onnx_of(model, inputs)
    openvino = needed("openvino")
    with told("OpenVINO cannot run the exported network", "leave it out"):
        core = openvino_core("export")
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


def watch(model: nn.Module, inputs: Any, threads: int) -> Watch:
    """By the runtime's own counters.

    They are means of all runs so far, in whole microseconds; what one run took is what it changed, within a microsecond
    or two for each run before it. The median over runs lies closer.
    """
    names = layers_of_nodes(onnx_of(model, inputs), model)
    request = opened(model, inputs, threads, PERF_COUNT=True)
    wholes: list[float] = []
    sums: list[list[tuple[str, float]]] = []

    def run() -> None:
        start = time.perf_counter()
        request.infer()
        wholes.append(time.perf_counter() - start)
        runs = len(wholes) + 1  # one was that of `opened`
        sums.append([(name, mean * runs) for name, mean in _counters(request)])

    def times() -> list[Seconds]:
        found = []
        for whole, before, after in zip(wholes[1:], sums, sums[1:], strict=False):
            spent = [(name, new - old) for (name, new), (_, old) in zip(after, before, strict=True)]
            found.append(with_rest(summed(names, spent), whole))
        return found

    return Watch(run, times)


def _counters(request: Any) -> list[tuple[str, float]]:
    return [(row.node_name, row.real_time.total_seconds()) for row in request.profiling_info]


ENGINE = Engine(
    "openvino",
    "OpenVINO on the CPU, single precision",
    prepare,
    packages=("openvino", "onnx", "onnxscript"),
    install=install("openvino"),
    watch=watch,
    prepare_each=prepare_each,
)
