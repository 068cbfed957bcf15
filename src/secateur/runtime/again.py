"""Export once more from a run folder, and keep its lists of hashes true."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur._files import read_json, write_json
from secateur._hints import choose
from secateur.errors import RunError
from secateur.runtime.deploying import for_format
from secateur.runtime.export import EXPORTERS, export_model
from secateur.runtime.folder import PLAN, RESULTS, WEIGHTS, Folder, describe_files, is_library
from secateur.runtime.inputs import with_batch
from secateur.runtime.loading import load

_VERIFICATION = "verification.json"
#: What else a run keeps in its folder; an export has a file of its own.
_KEPT = (RESULTS, PLAN, WEIGHTS, _VERIFICATION, "state.json", "recipe.yaml", "report.html", "latency.json",
         "metrics.jsonl", "search.jsonl")  # fmt: skip


def export_folder(
    folder: str | os.PathLike[str],
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    model: nn.Module | None = None,
    opset: int | None = None,
    open_size: bool = False,
) -> dict[str, Any]:
    """Export the network of a run folder in the format called `name` (see `EXPORTERS`).

    Args:
        path: where to; by default beside the other files, whose lists of hashes then follow.
        model: a fresh network of the original architecture, for a run whose reference is a Python file.
        opset, open_size: as in `export_model`.

    Returns:
        what the exporter found (`export_model`), "path", and where layers are computed another way "forms": how each
        did in the format's runtime (`deployed`).
    """
    choose(name, list(EXPORTERS), "format")
    run = Folder.open(folder)
    network, inputs = network_of(run, model)
    target = target_of(run, EXPORTERS[name].file, path)
    made = for_format(name, network, inputs)
    given = inputs if made.fixed is None else with_batch(inputs, 1)
    found = export_model(name, made.model, given, target, opset=opset, open_size=open_size, fixed=made.fixed)
    found |= made.forms
    if path is None and run.results is not None:
        note(run, EXPORTERS[name].files, (name,), found)
    return {**found, "path": str(target)}


def network_of(run: Folder, model: nn.Module | None = None) -> tuple[nn.Module, Any]:
    """The narrow network of a run, of the original class where that is at hand, and inputs for it."""
    run.check_files([WEIGHTS, PLAN])
    saved, plan = run.saved()
    if model is not None or is_library(saved.reference):
        network: nn.Module = run.narrowed(model if model is not None else run.original(saved), saved, plan).model
    else:
        network = load(run.path)
    return network, saved.inputs.make()


def target_of(run: Folder, file: str, path: str | os.PathLike[str] | None) -> Path:
    """Where an export goes; RunError where that is another file of the run."""
    target = Path(path) if path is not None else run.path / file
    if target.resolve().parent == run.path.resolve() and target.name in _KEPT:
        raise RunError(f"{str(target)!r} is another file of the run: give the export another name.")
    return target


def note(
    run: Folder,
    names: Sequence[str],
    key: Sequence[str],
    found: Mapping[str, Any],
    result: Mapping[str, Any] | None = None,
) -> None:
    """Write the new hashes where the old ones stood; results.json, which vouches for the rest, comes last.

    Args:
        names: of the files. key: where `found` belongs in verification.json, and `result`, if any, in results.json.
    """
    results = dict(run.results or {})
    new = describe_files(run.path, names)
    files = {**results["files"], **new}
    if run.has(_VERIFICATION):
        verification = read_json(run.path / _VERIFICATION, what="The verification")
        if not isinstance(verification, dict):
            raise RunError(f"{str(run.path / _VERIFICATION)!r} is no object: it was damaged or edited.")
        noted = verification.get("files")
        verification["files"] = {**(noted if isinstance(noted, dict) else {}), **new}
        _put(verification, key, found)
        write_json(run.path / _VERIFICATION, verification, what="The verification")
        files.update(describe_files(run.path, [_VERIFICATION]))
    if result is not None:
        _put(results, key, result)
    results["files"] = files
    write_json(run.path / RESULTS, results, what="The results")


def _put(document: dict[str, Any], key: Sequence[str], value: Mapping[str, Any]) -> None:
    """Set a value in a document, in tables that are made on the way."""
    for name in key[:-1]:
        inner = document.get(name)
        document[name] = dict(inner) if isinstance(inner, Mapping) else {}
        document = document[name]
    document[key[-1]] = dict(value)
