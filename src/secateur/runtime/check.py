"""`check_folder`: all files of a finished run, verified again without anything else."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur._files import parse_json, read_json, said, shown
from secateur.errors import ConfigError, RunError
from secateur.plan import Plan
from secateur.runtime.archive import NotRun
from secateur.runtime.export import EXPORTERS, Exporter, outputs, relative_error, told
from secateur.runtime.exporters.subject import allowed
from secateur.runtime.folder import PLAN, PT2, WEIGHTS, Folder, is_library, unfinished
from secateur.runtime.inputs import with_batch
from secateur.runtime.int8 import QUANTISERS
from secateur.runtime.stored import Stored
from secateur.surgery import Result

_EXPORTS = tuple(name for row in (*EXPORTERS.values(), *QUANTISERS.values()) for name in row.files)
_OURS = (PLAN, WEIGHTS, *_EXPORTS, "verification.json", "latency.json")
_BATCHES = (1, 3)
_MOST_BYTES = 1 << 28
_AGAIN = "export it again with `secateur export`"


def check_folder(folder: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Any]:
    """Verify a run folder: every hash, strict JSON, plan and weights, the cut itself, and what was exported.

    The cut is proven again (as `secateur.apply` does) where the original network is at hand: a zoo:, torchvision: or
    timm: reference, or a fresh copy as `model`. Nothing in the folder is executed or unpickled.

    Returns:
        "files" (how many hashes were compared), "weights", "plan", and where it could be checked "cut", "pt2", "onnx"
        and other formats, each with its figures; "not_checked": sentences about the rest.

    Raises:
        RunError (or another SecateurError): one sentence with the first thing that is wrong.
    """
    run = Folder.open(folder)
    if run.results is None:
        raise RunError(unfinished(folder))
    found: dict[str, Any] = {"folder": str(folder), "files": _check_files(run), "not_checked": []}
    saved, plan = run.saved()
    _check_groups(run, plan)
    found["weights"] = {
        "tensors": len(saved.tensors),
        "numbers": sum(tensor.numel() for tensor in saved.tensors.values()),
        "sha256": saved.header["weights"].removeprefix("sha256:"),
    }
    found["plan"] = {"groups": len(plan.masks), "channels": sum(plan.widths.values())}
    network = _check_cut(run, saved, plan, model, found)
    network = _check_pt2(run, saved, network, found)
    for row in EXPORTERS.values():
        if row.opened is not None and (run.has(row.file) or row.name == "onnx"):
            _check_exported(run, row, saved, network, found)
    for quantiser in QUANTISERS.values():
        if run.has(quantiser.file):
            said = "is near to the network by design, so that only its hash was compared."
            found["not_checked"].append(f"{quantiser.file} {said}")
    found["not_checked"].append("accuracy and latency are measurements of the run, and were not repeated.")
    return found


# --------------------------------------------------------------------------------------------------------------- files


def _check_files(run: Folder) -> int:
    listed = run.listed()
    for name in (PLAN, WEIGHTS):
        if name not in listed:
            raise RunError(f"The results of {str(run.path)!r} list no {name}: results.json was damaged or edited.")
    names = list(dict.fromkeys([*listed, *(name for name in _OURS if run.has(name))]))
    run.check_files(names)
    for name in names:
        if name.endswith(".json"):
            read_json(run.path / name, what="The file", most=_MOST_BYTES)
    _check_lines(run.path / "metrics.jsonl")
    _check_verification(run)
    return len(names)


def _check_lines(path: Path) -> None:
    """Every line of the metrics is a JSON object."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
        for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
            if not isinstance(parse_json(line), dict):
                raise ValueError(f"line {number} is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"The metrics {str(path)!r} are not JSON, one object a line: {said(error)}.") from error


def _check_verification(run: Folder) -> None:
    """The hashes in verification.json are those in results.json."""
    if not run.has("verification.json"):
        return
    noted = read_json(run.path / "verification.json", what="The verification")
    files = noted.get("files", {}) if isinstance(noted, dict) else None
    if not isinstance(files, dict):
        raise RunError(f"{str(run.path / 'verification.json')!r} lists no files: it was damaged or edited.")
    listed = run.listed()
    for name, row in files.items():
        digest = row.get("sha256") if isinstance(row, dict) else row
        if name in listed and str(digest).removeprefix("sha256:") != listed[name][1]:
            raise RunError(
                f"verification.json and results.json in {str(run.path)!r} disagree about {shown(name)}: one of them "
                "was edited, or an export was interrupted; export the network again."
            )


def _check_groups(run: Folder, plan: Plan) -> None:
    """The widths in results.json are the plan's."""
    rows = (run.results or {}).get("groups")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RunError(f"The results of {str(run.path)!r} list no groups: results.json was damaged or edited.")
    told = {str(row.get("name")): (row.get("width"), row.get("kept")) for row in rows}
    if told != {name: (len(mask), int(mask.sum())) for name, mask in plan.masks.items()}:
        raise RunError(f"The widths in results.json and plan.json of {str(run.path)!r} differ: one of them was edited.")


# ------------------------------------------------------------------------------------------------------------ networks


def _check_cut(
    run: Folder, saved: Stored, plan: Plan, model: nn.Module | None, found: dict[str, Any]
) -> nn.Module | None:
    """Cut the original again, with proof; the narrow network, or None where there is no original."""
    if model is None and not is_library(saved.reference):
        found["not_checked"].append(
            f"the cut was not proven again, for {shown(saved.reference)} is not loaded from a run folder "
            "(give the original network as model=)."
        )
        return None
    library = saved.reference.partition(":")[0]
    if model is None and library != "zoo" and importlib.util.find_spec(library) is None:
        found["not_checked"].append(f"the cut was not proven again, for {library} is not installed.")
        return None
    original = model if model is not None else run.original(saved)
    result = run.narrowed(original, saved, plan, verify=True)
    proof = result.verification
    if proof is None:  # narrowed(verify=True) always has one
        raise RunError(f"The cut of {str(run.path)!r} was not verified.")
    _check_costs(run, result)
    found["cut"] = {
        "exact": proof.exact,
        "max_relative_error": proof.max_relative_error if proof.exact else proof.structural_error,
        "tolerance": proof.tolerance,
        "outputs": proof.outputs,
    }
    return result.model


def _check_costs(run: Folder, result: Result) -> None:
    """The costs in results.json are those of the networks; a run that pruned again began with one that is not here."""
    costs = {"after": result.averaged}
    if "earlier" not in result.plan.provenance:
        costs["before"] = result.before
    for when, cost in costs.items():
        told = (run.results or {}).get(when)
        if not isinstance(told, Mapping) or any(told.get(key) != value for key, value in cost.as_dict().items()):
            raise RunError(
                f"The cost {when} the cut in results.json of {str(run.path)!r} is not that of the network: the file "
                "was edited, or written by another release."
            )


def _check_pt2(run: Folder, saved: Stored, network: nn.Module | None, found: dict[str, Any]) -> nn.Module | None:
    """Compare model.pt2 with the network; return the network, or what model.pt2 holds where there is none."""
    if not run.has(PT2):
        found["not_checked"].append(f"there is no {PT2}.")
        return network
    try:
        program = run.program(saved)
    except NotRun as error:
        found["not_checked"].append(f"{PT2} was not run: {error}")
        return network
    if network is None:
        found["pt2"] = {"dynamic_batch": program.dynamic}  # its weights were compared
        found["not_checked"].append(f"the graph in {PT2} was not compared, for lack of the original network.")
        return program
    found["pt2"] = _compared(run, PT2, network, lambda inputs: outputs(program, inputs), saved, program.dynamic)
    return network


def _check_exported(
    run: Folder, row: Exporter, saved: Stored, network: nn.Module | None, found: dict[str, Any]
) -> None:
    """Run an exported file in its runtime beside the network."""
    if not run.has(row.file):
        found["not_checked"].append(f"there is no {row.file}.")
        return
    if network is None:
        found["not_checked"].append(f"{row.file} was not run, for lack of a network to compare it with.")
        return
    assert row.opened is not None
    try:
        with told(f"{str(run.path / row.file)!r} cannot be run", _AGAIN):
            runner, dynamic = row.opened([(run.path / name).read_bytes() for name in row.files])
    except ConfigError as error:  # its runtime is not installed
        found["not_checked"].append(f"{row.file} was not run: {error}")
        return
    found[row.name] = _compared(run, row.file, network, runner, saved, dynamic)


def _compared(run: Folder, name: str, network: nn.Module, other: Any, saved: Stored, dynamic: bool) -> dict[str, Any]:
    """Run both on the same noise; RunError where they differ by more than the tolerance."""
    example = saved.inputs.make()
    twin = network.to("cpu")
    worst = 0.0
    cases = [with_batch(example, size) for size in _BATCHES] if dynamic else [example]
    for case in cases:
        with told(f"{str(run.path / name)!r} cannot be run", _AGAIN):
            got = other(case)
        worst = max(worst, relative_error(outputs(twin, case), got))
    tolerance = allowed(twin, cases, worst)
    if not worst <= tolerance:
        raise RunError(
            f"{str(run.path / name)!r} does not compute what the weights' network does (relative error {worst:.1e}, "
            f"tolerance {tolerance:.0e}): {_AGAIN}."
        )
    return {"max_relative_error": worst, "tolerance": tolerance, "dynamic_batch": dynamic}
