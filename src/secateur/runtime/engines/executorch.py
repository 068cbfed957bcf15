"""ExecuTorch on the CPU, its layers computed by XNNPACK where that can.

Its threads are the process' own and are set anew for every network; the call is ExecuTorch's through Python.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur._hints import install
from secateur.graph.modules import map_tensors
from secateur.runtime.engines.base import Call, Engine
from secateur.runtime.export import needed, told
from secateur.runtime.exporters.executorch import lowered_program
from secateur.runtime.exporters.subject import Subject


def prepare(model: nn.Module, inputs: Any, threads: int) -> Call:
    """Lower and load; RunError where the network cannot be expressed or run."""
    runtime = needed("executorch.runtime", "executorch")
    pool = needed("executorch.extension.pybindings.portable_lib", "executorch")
    flat: list[Any] = []
    map_tensors(inputs, lambda tensor: flat.append(tensor.detach().cpu().contiguous()))
    with told("The network cannot be exported to ExecuTorch", "leave it out"):
        _, data = lowered_program(Subject.of(model, inputs, fixed="the batch size is the measurement's").graph())
    with told("ExecuTorch cannot run the exported network", "leave it out"):
        if pool._threadpool_get_thread_count() != threads:
            pool._unsafe_reset_threadpool(threads)  # unsafe while a network runs, and none does
        program = runtime.Runtime.get().load_program(data)
        held = (data, program, program.load_method("forward"))  # all live as long as the last may be called
        held[-1].execute(flat)

    def call() -> object:
        return held[-1].execute(flat)

    return call


ENGINE = Engine(
    "executorch",
    "ExecuTorch on the CPU, with XNNPACK",
    prepare,
    packages=("executorch",),
    install=install("executorch"),
)
