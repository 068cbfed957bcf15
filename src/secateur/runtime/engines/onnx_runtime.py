"""ONNX Runtime on the CPU, from a file exported for this very batch size."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from secateur.runtime.engines.base import Call, Engine
from secateur.runtime.engines.onnx_file import onnx_of
from secateur.runtime.export import needed, onnx_feed, told


def prepare(model: nn.Module, inputs: Any, threads: int) -> Call:
    """Export and open a session; RunError where the network cannot be expressed or run."""
    data = onnx_of(model, inputs)
    with told("ONNX Runtime cannot run the exported network", "leave it out"):
        opened = session(data, threads)
        call = partial(opened.run, None, onnx_feed(opened, inputs))
        call()
    return call


def session(data: bytes, threads: int, **options: Any) -> Any:
    """A session with so many threads, which rest as soon as a run ends: those of the other network run next."""
    runtime = needed("onnxruntime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what goes wrong is raised as well
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in options.items():
        setattr(settings, name, value)
    return runtime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])


ENGINE = Engine(
    "onnxruntime",
    "ONNX Runtime on the CPU",
    prepare,
    packages=("onnxruntime", "onnx", "onnxscript"),
    install='pip install "secateur[export]"',
)
