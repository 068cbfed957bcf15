"""PyTorch's own export format, compared with the network as PyTorch and as `secateur.load` run it."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from secateur.errors import RunError
from secateur.runtime.archive import Archive, NotRun, read_archive
from secateur.runtime.exporters.outside import told
from secateur.runtime.exporters.subject import Subject, outputs
from secateur.runtime.program import Program


def write_pt2(subject: Subject, path: Path) -> dict[str, Any]:
    """Write PyTorch's format without any pickle in it.

    Says "loads" too: whether `secateur.load` reads it ("not_loaded" says why not).
    """
    with told("The network cannot be exported by torch.export", "leave it out with export.pt2=false"):
        data = _saved(subject.graph())
        loaded = torch.export.load(io.BytesIO(data)).module()
        error = subject.error(lambda inputs: outputs(loaded, inputs))
    more: dict[str, Any] = {"loads": True}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt2"
        file.write_bytes(data)
        try:
            archive = read_archive(file)
        except NotRun as problem:
            more = {"loads": False, "not_loaded": str(problem)}
        except RunError as problem:  # older releases put pickles into the archive
            raise RunError(
                f"PyTorch {torch.__version__} writes model.pt2 in a form that cannot be read without running it: "
                "install a newer PyTorch, or leave it out with export.pt2=false."
            ) from problem
        else:
            more |= _run(archive, subject)
            error = max(error, more.pop("error", 0.0))
    return subject.written({path: data}, error, "torch.export", more)


def _run(archive: Archive, subject: Subject) -> dict[str, Any]:
    """Whether `secateur.load` runs it, and how far from the network it is then."""
    try:
        own = Program(archive)
    except NotRun as problem:
        return {"loads": False, "not_loaded": str(problem)}
    except RunError as problem:  # a file that is refused would keep the folder from being loaded
        raise RunError(
            f"The exported network would be refused by secateur.load ({str(problem).rstrip('.')}): leave it out with "
            "export.pt2=false."
        ) from problem
    with told("The exported network cannot be run by secateur.load", "leave it out with export.pt2=false"):
        return {"error": subject.error(lambda inputs: outputs(own, inputs))}


def _saved(program: torch.export.ExportedProgram) -> bytes:
    """The archive without the example inputs, which would be pickled."""
    examples, program._example_inputs = program._example_inputs, None
    try:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()
    finally:
        program._example_inputs = examples  # another exporter may want them
