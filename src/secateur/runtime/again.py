"""Export once more from a run folder, and keep its lists of hashes true."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from secateur._files import read_json, write_json
from secateur._hints import choose
from secateur.errors import RunError
from secateur.runtime.export import EXPORTERS, export_model
from secateur.runtime.folder import PLAN, RESULTS, WEIGHTS, Folder, describe_files, is_library, load

_VERIFICATION = "verification.json"


def export_folder(
    folder: str | os.PathLike[str],
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    model: nn.Module | None = None,
) -> dict[str, Any]:
    """Export the network of a run folder in the format called `name` (see `EXPORTERS`).

    Args:
        path: where to; by default beside the other files, whose lists of hashes then follow.
        model: a fresh network of the original architecture, for a run whose reference is a Python file.

    Returns:
        what the exporter found (`export_onnx`, `export_pt2`), and "path".
    """
    choose(name, list(EXPORTERS), "format")
    run = Folder.open(folder)
    run.check_files([WEIGHTS, PLAN])
    saved, plan = run.saved()
    network: nn.Module
    if model is not None or is_library(saved.reference):
        network = run.narrowed(model if model is not None else run.original(saved), saved, plan).model
    else:
        network = load(folder)
    target = Path(path) if path is not None else run.path / EXPORTERS[name].file
    if target.resolve().parent == run.path.resolve() and target.name in (RESULTS, PLAN, WEIGHTS, _VERIFICATION):
        raise RunError(f"{str(target)!r} is another file of the run: give the export another name.")
    found = export_model(name, network, saved.inputs.make(), target)
    if path is None and run.results is not None:
        _note(run, name, EXPORTERS[name].file, found)
    return {**found, "path": str(target)}


def _note(run: Folder, name: str, file: str, found: dict[str, Any]) -> None:
    """Write the new hash where the old one stood; results.json, which vouches for the rest, comes last."""
    results = dict(run.results or {})
    files = {**results["files"], **describe_files(run.path, [file])}
    if run.has(_VERIFICATION):
        verification = read_json(run.path / _VERIFICATION, what="The verification")
        if not isinstance(verification, dict):
            raise RunError(f"{str(run.path / _VERIFICATION)!r} is no object: it was damaged or edited.")
        noted = verification.get("files")
        verification["files"] = {**(noted if isinstance(noted, dict) else {}), file: files[file]}
        verification[name] = found
        write_json(run.path / _VERIFICATION, verification, what="The verification")
        files.update(describe_files(run.path, [_VERIFICATION]))
    results["files"] = files
    write_json(run.path / RESULTS, results, what="The results")
