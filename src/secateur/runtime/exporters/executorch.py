"""ExecuTorch's program for phones and other small devices, its layers computed by XNNPACK where that can.

ExecuTorch plans its memory ahead, so that the batch size has an upper end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from secateur.graph.modules import map_tensors
from secateur.runtime.exporters.outside import brief, needed, told
from secateur.runtime.exporters.subject import Run, Subject
from secateur.runtime.inputs import batch_of

MOST_IMAGES = 8


def write_executorch(subject: Subject, path: Path) -> dict[str, Any]:
    """Write the program.

    Says its "largest_batch" too, and "delegates": how many parts of the network XNNPACK computes, and "operators", how
    many calls are left to ExecuTorch's own.
    """
    own = dataclasses.replace(subject, made={})  # why the batch is fixed here need not hold for other formats
    with told("The network cannot be exported to ExecuTorch", "leave it out with export.executorch=false"):
        program = own.graph(MOST_IMAGES)
        try:
            lowered, data = lowered_program(program)
        except Exception as error:  # its passes have no common family of exceptions
            if own.reason is not None:
                raise
            reason = f"ExecuTorch does not lower it with an open batch size ({brief(error)})"
            own = dataclasses.replace(own, made={}, reason=reason, sizes=(batch_of(own.inputs) or 1,))
            lowered, data = lowered_program(own.graph())
        run, _ = open_executorch([data])
        error_ = own.error(run)
    calls = [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]
    delegates = sum("executorch_call_delegate" in call for call in calls)
    operators = sum("getitem" not in call for call in calls) - delegates
    more: dict[str, Any] = {"delegates": delegates, "operators": operators}
    if own.reason is None:
        more["largest_batch"] = MOST_IMAGES
    return own.written({path: data}, error_, "ExecuTorch", more)


def open_executorch(files: Sequence[bytes]) -> tuple[Run, bool]:
    """A function that runs the file; which batch sizes it takes cannot be asked, so other ones are not tried."""
    return _Program(files[0]), False


class _Program:
    """A loaded program; it and its bytes live as long as its method may be called."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.program = needed("executorch.runtime", "executorch").Runtime.get().load_program(data)
        self.method = self.program.load_method("forward")

    def __call__(self, inputs: Any) -> list[torch.Tensor]:
        flat: list[torch.Tensor] = []
        map_tensors(inputs, flat.append)
        return [output.clone() for output in self.method.execute([t.detach().cpu().contiguous() for t in flat])]


def lowered_program(program: torch.export.ExportedProgram) -> tuple[Any, bytes]:
    """The program in ExecuTorch's operators, and as a file."""
    exir = needed("executorch.exir", "executorch")
    xnnpack = needed("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    made = lowered.exported_program()
    return made, bytes(lowered.to_executorch().buffer)
