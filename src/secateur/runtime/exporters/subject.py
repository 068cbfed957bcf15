"""A network on its way out, and how well what comes out agrees with it; every adapter goes through this."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._files import said, write_bytes
from secateur.errors import RunError
from secateur.graph.modules import as_call, map_tensors, output_tensors, unwrap
from secateur.graph.randomise import twin_of
from secateur.runtime.exporters.outside import brief, quiet
from secateur.runtime.inputs import batch_of, batched, to_device, with_batch
from secateur.runtime.stored import digest
from secateur.runtime.weights import canonical

TOLERANCE = 1e-4
_COARSE_TOLERANCE = 2e-2  # of networks in half precision
_MOST_ROUNDING = 1e-2  # of single precision, that an export may share
_BATCHES = (1, 3)

Run = Callable[[Any], Sequence[torch.Tensor]]


@dataclass
class Subject:
    """A network on its way out: a copy on the CPU for inference, inputs, and what it computes."""

    twin: nn.Module
    inputs: Any
    sizes: tuple[int, ...]  # batch sizes to compare at
    reason: str | None  # why the batch size is fixed, None if it is not
    opset: int | None = None  # of ONNX; None: the exporter's own
    open_size: bool = False  # height and width of images are left open, too
    made: dict[str, Any] = field(default_factory=dict, repr=False)  # by one adapter, for the next: graphs, ONNX

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: Any,
        *,
        fixed: str | None = None,
        opset: int | None = None,
        open_size: bool = False,
    ) -> Subject:
        """A copy of `model`; with a reason in `fixed`, the batch size is the example's and no other is tried.

        opset: of ONNX. open_size: leave the height and width of images open as well.

        Raises:
            RunError: `open_size` is asked of a network that runs at one size alone.
        """
        made = cls._of(model, example_inputs, fixed)
        made.opset, made.open_size = opset, open_size
        if not open_size:
            return made
        try:
            with quiet():
                for case in _sizes(made.inputs):
                    outputs(made.twin, case)
        except Exception as error:  # of whatever the network is written for
            raise RunError(
                f"The network does not run with images of another size ({brief(error)}): leave their size as it is."
            ) from error
        return made

    @classmethod
    def _of(cls, model: nn.Module, example_inputs: Any, fixed: str | None) -> Subject:
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
            return cls(twin, inputs, (batch,), f"the network does not run with other batch sizes ({brief(error)})")
        return cls(twin, inputs, _BATCHES, None)

    def graph(self, most: int | None = None) -> torch.export.ExportedProgram:
        """Export, once, with any batch size (or up to `most`) where that works, else with that of the example."""
        key = f"graph up to {most}"
        if key not in self.made:
            self.made[key] = self._graph(most)
        program = self.made[key]
        assert isinstance(program, torch.export.ExportedProgram)
        return program

    def _graph(self, most: int | None) -> torch.export.ExportedProgram:
        if self.reason is None:
            example = with_batch(self.inputs, 2)  # 0 and 1 would be taken for constants
            batch = torch.export.Dim.DYNAMIC if most is None else torch.export.Dim("batch", min=1, max=most)
            try:
                return _stripped(_exported(self.twin, example, batch, self.open_size))
            except Exception as error:  # torch.export has no common family of its own
                if self.open_size:
                    raise RunError(
                        f"The height and width of images cannot be left open ({brief(error)}): leave them as they are."
                    ) from error
                self.reason = f"its batch size cannot be left open ({brief(error)})"
                self.sizes = (batch_of(self.inputs) or 1,)
        return _stripped(_exported(self.twin, self.inputs, None, self.open_size))

    def error(self, run: Run) -> float:
        """The largest relative difference between what `run` and the network compute, over all batch sizes."""
        return max(relative_error(outputs(self.twin, case), run(case)) for case in self.cases)

    @property
    def cases(self) -> list[Any]:
        """Inputs of all batch sizes that are compared."""
        batches = [with_batch(self.inputs, size) for size in self.sizes] or [self.inputs]
        return [*batches, *_sizes(self.inputs)] if self.open_size else batches

    def written(self, files: Mapping[Path, bytes], error: float, what: str, more: Mapping[str, Any]) -> dict[str, Any]:
        """Write the files, of which the first is named to a runtime, and say all there is to say about them.

        Raises:
            RunError: they do not compute what the network does, or cannot be written; none is written then.
        """
        tolerance = allowed(self.twin, self.cases, error)
        if not error <= tolerance:
            raise RunError(
                f"The {what} file does not compute what the network does (relative error {error:.1e}, tolerance "
                f"{tolerance:.0e}), so it was not written: leave it out, and please report the network."
            )
        write_together(files, f"The {what} file")
        return {
            "max_relative_error": error,
            "tolerance": tolerance,
            "dynamic_batch": self.reason is None,
            **({"reason": self.reason} if self.reason is not None else {}),
            "batch_sizes": list(self.sizes),
            **more,
            "weights": digest(canonical(self.twin)),
            **described(files),
        }


def write_together(files: Mapping[Path, bytes], what: str) -> None:
    """Write all of them under other names before the first gets its own, so that a full disk leaves the old ones.

    The file that others are found by, the first, is renamed last.
    """
    if len(files) == 1:
        for path, data in files.items():
            write_bytes(path, data, what=what)
        return
    mark = secrets.token_hex(6)
    ready = {path: path.with_name(f".{path.name}.{mark}.tmp") for path in files}
    try:
        for path, data in files.items():
            write_bytes(ready[path], data, what=what)
        for path in reversed(ready):
            ready[path].replace(path)
    except OSError as problem:
        raise RunError(f"{what} cannot be written to {str(next(iter(files)))!r}: {said(problem)}.") from problem
    finally:
        for left in ready.values():
            left.unlink(missing_ok=True)


def described(files: Mapping[Path, bytes]) -> dict[str, Any]:
    """Size and hash of what an export wrote; of several files each has its own as well, by its name."""
    rows = {path.name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()}
    first = next(iter(rows.values()))
    total = {"bytes": sum(len(data) for data in files.values()), "sha256": first["sha256"]}
    return total if len(rows) == 1 else {**total, "files": rows}


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


def allowed(model: nn.Module, cases: Sequence[Any], error: float) -> float:
    """The tolerance for an export that is `error` from `model`: wider where `model` itself rounds more than that.

    A deep network can blow rounding up so much that no two orders of the same sums agree better. Where the usual
    tolerance does not do, `model` is compared with itself in double precision, and three times that is allowed.
    """
    tolerance = tolerance_of(model)
    if not tolerance < error <= _MOST_ROUNDING or tolerance != TOLERANCE:
        return tolerance
    try:
        with quiet():
            exact = twin_of(model, torch.float64)
            rounding = max(relative_error(outputs(exact, _double(case)), outputs(model, case)) for case in cases)
    except (
        Exception
    ):  # code may be written for single precision; then its rounding is not known, and nothing is allowed
        return tolerance
    return max(tolerance, min(3 * rounding, _MOST_ROUNDING)) if rounding < float("inf") else tolerance


def _double(inputs: Any) -> Any:
    return map_tensors(inputs, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def outputs(model: Callable[..., Any], inputs: Any) -> list[torch.Tensor]:
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        return output_tensors(model(*args, **kwargs))


def _images(inputs: Any) -> list[torch.Tensor]:
    """Inputs with a height and a width."""
    found: list[torch.Tensor] = []
    map_tensors(inputs, found.append)
    return [tensor for tensor in found if tensor.dim() == 4 and tensor.is_floating_point()]


def _sizes(inputs: Any) -> list[Any]:
    """The same with images that are higher, and with wider ones; double, which suits networks that halve them."""
    images = {id(tensor) for tensor in _images(inputs)}

    def repeated(rows: int, columns: int, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat(1, 1, rows, columns) if id(tensor) in images else tensor

    return [map_tensors(inputs, partial(repeated, *times)) for times in ((2, 1), (1, 2))]


def _exported(model: nn.Module, inputs: Any, batch: Any, open_size: bool) -> torch.export.ExportedProgram:
    """With dimension 0 of the inputs as `batch` says, or fixed for None; heights and widths of images open or not."""
    if open_size:
        inputs = _sizes(inputs)[0]  # equal sizes would be taken for one
    args, kwargs = as_call(inputs)
    shapes = None
    dims: dict[int, tuple[torch.Tensor, dict[int, Any]]] = {}
    for tensor in batched(inputs) if batch is not None else ():
        dims.setdefault(id(tensor), (tensor, {}))[1][0] = batch
    for tensor in _images(inputs) if open_size else ():
        dims.setdefault(id(tensor), (tensor, {}))[1].update({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC})
    with quiet(), torch.no_grad():
        if dims:
            collection = torch.export.ShapesCollection()
            for tensor, each in dims.values():
                collection[tensor] = each
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
