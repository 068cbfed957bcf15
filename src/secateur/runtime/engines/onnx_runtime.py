"""ONNX Runtime on the CPU, from a file exported for this very batch size."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from secateur._hints import install
from secateur.runtime.engines.base import Call, Engine, Seconds, Watch
from secateur.runtime.engines.onnx_file import onnx_of
from secateur.runtime.engines.watching import layers_of_nodes, summed, with_rest
from secateur.runtime.export import needed, onnx_feed, told


def prepare(model: nn.Module, inputs: Any, threads: int) -> Call:
    """Export and open a session; RunError where the network cannot be expressed or run."""
    data = onnx_of(model, inputs)
    with told("ONNX Runtime cannot run the exported network", "leave it out"):
        opened = session(data, threads)
        call = partial(opened.run, None, onnx_feed(opened, inputs))
        call()
    return call


def prepare_each(model: nn.Module, several: Sequence[Any], threads: int) -> Call:
    """One session that is fed with one of the inputs after the other."""
    data = onnx_of(model, several[0])
    with told("ONNX Runtime cannot run the exported network", "leave it out"):
        opened = session(data, threads)
        feeds = [onnx_feed(opened, inputs) for inputs in several]

        def call() -> object:
            return [opened.run(None, feed) for feed in feeds]

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


def watch(model: nn.Module, inputs: Any, threads: int) -> Watch:
    """By the runtime's own profile, in whole microseconds; noting it makes the run a little longer."""
    data = onnx_of(model, inputs)
    names = layers_of_nodes(data, model)
    folder = tempfile.TemporaryDirectory(prefix="secateur-profile-")
    with told("ONNX Runtime cannot run the exported network", "leave it out"):
        prefix = str(Path(folder.name) / "profile")
        opened = session(data, threads, enable_profiling=True, profile_file_prefix=prefix)
        run = partial(opened.run, None, onnx_feed(opened, inputs))

    def times() -> list[Seconds]:
        with folder:
            return _read(Path(opened.end_profiling()), names)

    return Watch(run, times)


def _read(profile: Path, names: Mapping[str, str]) -> list[Seconds]:
    """The runs in a profile: its nodes stand before the event of the run they belong to."""
    runs: list[Seconds] = []
    nodes: list[tuple[str, float]] = []
    for event in json.loads(profile.read_text()):
        seconds = event["dur"] / 1e6
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            nodes.append((event["name"].removesuffix("_kernel_time"), seconds))
        elif event["name"] == "model_run":
            runs.append(with_rest(summed(names, nodes), seconds))
            nodes = []
    return runs[1:]


ENGINE = Engine(
    "onnxruntime",
    "ONNX Runtime on the CPU",
    prepare,
    packages=("onnxruntime", "onnx", "onnxscript"),
    install=install("export"),
    watch=watch,
    prepare_each=prepare_each,
)
