"""The narrow network in whole numbers of 8 bits, by the post-training quantisers of the runtimes that will run it.

found = export_int8("onnxruntime", network, inputs, "model.int8.onnx", loader)
quick = open_exported("model.int8.onnx")     # a module for inference, to measure what it is worth
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._files import said
from secateur._hints import choose
from secateur.errors import ConfigError, RunError
from secateur.graph.modules import map_tensors
from secateur.runtime.export import EXPORTERS
from secateur.runtime.exporters.calibration import Pieces, split
from secateur.runtime.exporters.formats import Format, Opened
from secateur.runtime.exporters.int8_onnxruntime import quantise_onnxruntime
from secateur.runtime.exporters.int8_openvino import quantise_openvino
from secateur.runtime.exporters.onnx import open_onnx
from secateur.runtime.exporters.openvino import open_openvino
from secateur.runtime.exporters.outside import told
from secateur.runtime.exporters.subject import Run, Subject, described, outputs, write_together
from secateur.runtime.inputs import batch_of
from secateur.runtime.stored import digest
from secateur.runtime.weights import canonical


@dataclass(frozen=True)
class Quantiser(Format):
    """A runtime's quantiser; `format` is the name of the exporter whose runtime runs its files."""

    format: str
    function: Callable[[Subject, Path, Pieces], dict[Path, bytes]]
    opened: Opened


_ROWS = (
    Quantiser(
        "onnxruntime",
        ("model.int8.onnx",),
        "ONNX Runtime's static quantisation, in ONNX",
        ("onnx", "onnxscript", "onnxruntime"),
        "int8",
        "onnx",
        quantise_onnxruntime,
        open_onnx,
    ),
    Quantiser(
        "openvino",
        ("model.int8.xml", "model.int8.bin"),
        "NNCF's post-training quantisation, in OpenVINO's representation",
        ("nncf", "openvino", "onnx", "onnxscript"),
        "int8",
        "openvino",
        quantise_openvino,
        open_openvino,
    ),
)
#: Quantisers by name, one frozen row each.
QUANTISERS: Mapping[str, Quantiser] = {row.name: row for row in _ROWS}


def export_int8(
    name: str, model: nn.Module, example_inputs: Any, path: str | os.PathLike[str], calibration: Iterable[Any]
) -> dict[str, Any]:
    """Write `model` in whole numbers of 8 bits, by the quantiser called `name` (see `QUANTISERS`).

    What the file computes is near to what the network computes, not the same: measure its accuracy, for example with
    `open_exported`.

    Args:
        name, model, example_inputs, path: as in `export_model`.
        calibration: batches of the training set in any form that `secateur.batches.Batches` takes, as a DataLoader
            gives them; targets are not looked at. From the inputs the quantiser learns the range of every activation.
            May be gone through twice.

    Returns:
        "calibration_images", "relative_difference" (root mean square of the difference of the outputs over that of the
        outputs, on calibration inputs), "dynamic_batch" (with a "reason" if false), "weights" (hash of those it was
        made from), "bytes" and "sha256" ("files" has them of each, where there are several).

    Raises:
        ConfigError: there is no such quantiser, or a package is missing. InputError: nothing to calibrate with, or a
        batch that the network cannot be called with.
        RunError: the quantiser refuses the network, or the file cannot be written.
    """
    choose(name, list(QUANTISERS), "quantiser")
    return quantise_subject(name, Subject.of(model, example_inputs), path, calibration)


def quantise_subject(
    name: str, subject: Subject, path: str | os.PathLike[str], calibration: Iterable[Any]
) -> dict[str, Any]:
    """As `export_int8`; several share what they have in common if they are given one `subject`."""
    row = QUANTISERS[name]
    row.check()
    subject.graph()  # which finds out whether the batch size can stay open
    pieces = Pieces(calibration, subject)
    files = row.function(subject, Path(path), pieces)
    images = pieces.images
    with told(f"The {name} runtime cannot run the quantised network", f"leave {name} out of export.int8"):
        run, _ = row.opened(list(files.values()))
        difference = _difference(subject, run, next(iter(pieces)))
    if not difference < float("inf"):
        raise RunError(f"The int8 network of {name} computes no numbers: leave {name} out of export.int8.")
    write_together(files, "The int8 file")
    return {
        "calibration_images": images,
        "relative_difference": difference,
        "dynamic_batch": subject.reason is None,
        **({"reason": subject.reason} if subject.reason is not None else {}),
        "weights": digest(canonical(subject.twin)),
        **described(files),
    }


def _difference(subject: Subject, run: Run, inputs: Any) -> float:
    """Root mean square of the difference over that of the network's outputs."""
    pairs = list(zip(outputs(subject.twin, inputs), run(inputs), strict=True))
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    whole = sum(float(a.double().square().sum()) for a, _ in pairs)
    return float((error / max(whole, 1e-24)) ** 0.5)


# -------------------------------------------------------------------------------------------------------- running files


class Exported(nn.Module):
    """A network in an exported file, run by its runtime on the CPU: for inference."""

    def __init__(self, run: Run, size: int | None) -> None:
        super().__init__()
        self.run = run
        self.size = size  # the batch size it was exported for; None: any

    def forward(self, inputs: Any) -> Any:
        """What the file computes; where its batch size is fixed, in so many turns, the last one filled up."""
        batch = batch_of(inputs)
        if self.size is None or batch is None:
            found = list(self.run(inputs))
        else:
            filled = _filled(inputs, -(-batch // self.size) * self.size)
            turns = [self.run(piece) for piece in split(filled, self.size)]
            found = [torch.cat(parts)[:batch] for parts in zip(*turns, strict=True)]
        device = next((t.device for t in _tensors(inputs)), torch.device("cpu"))
        found = [output.to(device) for output in found]
        return found[0] if len(found) == 1 else tuple(found)


def open_exported(path: str | os.PathLike[str], *, batch_size: int | None = None) -> Exported:
    """The network in a file of ONNX (.onnx), OpenVINO (.xml, with the .bin beside it) or ExecuTorch (.pte).

    Args:
        path: of the file. batch_size: the one it was exported for; None for a file that takes any.

    Raises:
        ConfigError: its runtime is not installed, or the file's ending is another. RunError: it cannot be read or run.
    """
    file = Path(path)
    row = next((row for row in EXPORTERS.values() if row.opened and Path(row.file).suffix == file.suffix), None)
    if row is None or row.opened is None:
        known = ", ".join(Path(row.file).suffix for row in EXPORTERS.values() if row.opened)
        raise ConfigError(f"{str(path)!r} is no exported file that is run here: give one that ends in {known}.")
    names = [file, *(file.with_suffix(Path(other).suffix) for other in row.files[1:])]
    try:
        contents = [name.read_bytes() for name in names]
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be read: {said(error)}.") from error
    with told(f"{str(path)!r} cannot be run", "export the network again"):
        run, _ = row.opened(contents)
    return Exported(run, batch_size)


def _filled(inputs: Any, size: int) -> Any:
    """`inputs` with the first rows again at the end, up to `size`."""
    batch = batch_of(inputs)
    if batch == size or not batch:
        return inputs
    return map_tensors(inputs, lambda t: t[torch.arange(size) % batch] if t.dim() and len(t) == batch else t)


def _tensors(inputs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(inputs, found.append)
    return found
