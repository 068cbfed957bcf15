"""Exporters: the narrow network as a file that runs without its Python code, compared with the module it came from.

One thin adapter a format, found by name in `EXPORTERS`; their packages are imported when they are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._files import write_bytes
from secateur._hints import choose
from secateur.errors import ConfigError, RunError
from secateur.graph.modules import as_call, map_tensors, output_tensors, unwrap
from secateur.graph.randomise import twin_of
from secateur.runtime.archive import NotRun, read_archive
from secateur.runtime.inputs import batch_of, batched, to_device, with_batch
from secateur.runtime.program import Program
from secateur.runtime.stored import digest
from secateur.runtime.weights import canonical

TOLERANCE = 1e-4
_COARSE_TOLERANCE = 2e-2  # of networks in half precision
_BATCHES = (1, 3)

Run = Callable[[Any], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Exporter:
    """A format: what it is called, its usual file name, and what it is for."""

    name: str
    file: str
    summary: str
    function: Callable[[nn.Module, Any, Any], dict[str, Any]]


def export_model(name: str, model: nn.Module, example_inputs: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Write `model` in the format called `name`; see `export_onnx` and `export_pt2`."""
    choose(name, list(EXPORTERS), "format")
    return EXPORTERS[name].function(model, example_inputs, path)


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


def export_pt2(model: nn.Module, example_inputs: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Write PyTorch's own format without any pickle in it, and compare what `secateur.load` and PyTorch make of it.

    Returns:
        as `export_onnx`, without "opset"; and "loads": whether `secateur.load` reads it ("not_loaded" says why not).

    Raises:
        RunError: the network cannot be exported, or the file computes otherwise; nothing is written then.
    """
    subject = Subject.of(model, example_inputs)
    with told("The network cannot be exported by torch.export", "leave it out with export.pt2=false"):
        program = subject.graph()
        program._example_inputs = None  # they would be pickled
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        data = buffer.getvalue()
        loaded = torch.export.load(io.BytesIO(data)).module()
        error = subject.error(lambda inputs: outputs(loaded, inputs))
    more: dict[str, Any] = {"loads": True}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt2"
        file.write_bytes(data)
        try:
            own = Program(read_archive(file))
        except NotRun as problem:
            more = {"loads": False, "not_loaded": str(problem)}
        except RunError as problem:  # older releases put pickles into the archive
            raise RunError(
                f"PyTorch {torch.__version__} writes model.pt2 in a form that cannot be read without running it: "
                "install a newer PyTorch, or leave it out with export.pt2=false."
            ) from problem
        else:
            with told("The exported network cannot be run by secateur.load", "leave it out with export.pt2=false"):
                error = max(error, subject.error(lambda inputs: outputs(own, inputs)))
    return subject.written(path, data, error, "torch.export", more)


EXPORTERS: Mapping[str, Exporter] = {
    "onnx": Exporter("onnx", "model.onnx", "ONNX, for ONNX Runtime and most other runtimes", export_onnx),
    "pt2": Exporter("pt2", "model.pt2", "PyTorch's export format, for PyTorch without the model's code", export_pt2),
}


def onnx_model(subject: Subject) -> tuple[bytes, int]:
    """An ONNX file's bytes and its opset; RunError where the network cannot be expressed."""
    with told("The network cannot be exported to ONNX", "leave it out with export.onnx=false"):
        program = subject.graph()
        proto = torch.onnx.export(program, dynamo=True, verbose=False).model_proto  # type: ignore[union-attr]
        _name_batch(proto)
        opset = next(int(row.version) for row in proto.opset_import if row.domain in ("", "ai.onnx"))
        return proto.SerializeToString(), opset


@dataclass
class Subject:
    """A network on its way out: a copy on the CPU for inference, inputs, and what it computes."""

    twin: nn.Module
    inputs: Any
    sizes: tuple[int, ...]  # batch sizes to compare at
    reason: str | None  # why the batch size is fixed, None if it is not

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any, *, fixed: str | None = None) -> Subject:
        """A copy of `model`; with a reason in `fixed`, the batch size is the example's and no other is tried."""
        twin = twin_of(unwrap(model), None)
        inputs = to_device(example_inputs, torch.device("cpu"))
        batch = batch_of(inputs)
        if fixed is not None:
            return cls(twin, inputs, () if batch is None else (batch,), fixed)
        if batch is None:
            return cls(twin, inputs, (), "no input has a batch dimension")
        try:
            with quiet():
                for size in (*_BATCHES, 2):
                    outputs(twin, with_batch(inputs, size))
        except Exception as error:  # a network may well be written for one batch size
            return cls(twin, inputs, (batch,), f"the network does not run with other batch sizes ({_brief(error)})")
        return cls(twin, inputs, _BATCHES, None)

    def graph(self) -> torch.export.ExportedProgram:
        """Export with any batch size where that works, else with that of the example."""
        if self.reason is None:
            example = with_batch(self.inputs, 2)  # 0 and 1 would be taken for constants
            try:
                return _stripped(_exported(self.twin, example, dynamic=True))
            except Exception as error:  # torch.export has no common family of its own
                self.reason = f"its batch size cannot be left open ({_brief(error)})"
                self.sizes = (batch_of(self.inputs) or 1,)
        return _stripped(_exported(self.twin, self.inputs, dynamic=False))

    def error(self, run: Run) -> float:
        """The largest relative difference between what `run` and the network compute, over all batch sizes."""
        cases = [with_batch(self.inputs, size) for size in self.sizes] or [self.inputs]
        return max(relative_error(outputs(self.twin, case), run(case)) for case in cases)

    def written(
        self, path: str | os.PathLike[str], data: bytes, error: float, what: str, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the file if it computes what the network does, and say all there is to say about it."""
        tolerance = tolerance_of(self.twin)
        if not error <= tolerance:
            raise RunError(
                f"The {what} file does not compute what the network does (relative error {error:.1e}, tolerance "
                f"{tolerance:.0e}), so it was not written: leave it out, and please report the network."
            )
        write_bytes(path, data, what=f"The {what} file")
        return {
            "max_relative_error": error,
            "tolerance": tolerance,
            "dynamic_batch": self.reason is None,
            **({"reason": self.reason} if self.reason is not None else {}),
            "batch_sizes": list(self.sizes),
            **more,
            "weights": digest(canonical(self.twin)),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }


def relative_error(want: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """Largest difference over largest value, over all outputs; infinite where they cannot be compared."""
    if len(want) != len(got) or not want:
        return float("inf")
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        if a.shape != b.shape or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf")
        if a.numel():
            worst = max(worst, float((a - b).abs().max()) / max(float(a.abs().max()), 1e-12))
    return worst


def tolerance_of(model: nn.Module) -> float:
    """How far an exported network may be from `model`."""
    kinds = {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]}
    return _COARSE_TOLERANCE if kinds & {torch.float16, torch.bfloat16} else TOLERANCE


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


def needed(package: str) -> Any:
    """Import a package of the export extra."""
    try:
        with quiet():
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(f'{error.name or package} is not installed: pip install "secateur[export]"') from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print, log and warn from the user; what they raise is not touched."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Run quietly; any exception becomes one sentence."""
    try:
        with quiet():
            yield
    except (RunError, ConfigError):
        raise
    except Exception as error:
        raise RunError(f"{what} ({_brief(error)}): {remedy}.") from error


def _exported(model: nn.Module, inputs: Any, *, dynamic: bool) -> torch.export.ExportedProgram:
    args, kwargs = as_call(inputs)
    shapes = None
    with quiet(), torch.no_grad():
        if dynamic:
            collection = torch.export.ShapesCollection()
            for tensor in batched(inputs):
                collection[tensor] = {0: torch.export.Dim.DYNAMIC}
            shapes = collection.dynamic_shapes(model, args, kwargs)
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _stripped(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without the stack traces, which hold the paths of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
                node.meta.pop("from_node", None)
    return program


def _name_batch(proto: Any) -> None:
    """Where all open dimensions are one symbol of the exporter's, call it batch."""
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param]
    if len({dim.dim_param for dim in dims if dim.dim_param.isidentifier()}) == 1:
        for dim in dims:
            if dim.dim_param.isidentifier():
                dim.dim_param = "batch"


def outputs(model: Callable[..., Any], inputs: Any) -> list[torch.Tensor]:
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        return output_tensors(model(*args, **kwargs))


def _brief(error: BaseException) -> str:
    """The first line of what an exporter has to say, and its kind."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{': ' + ' '.join(first.split()).rstrip('.')[:200] if first else ''}"
