"""JSON documents: everything the tables show, in full, for programs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from secateur._version import __version__
from secateur.forms import FormsProof
from secateur.graph import Cost, Graph, Verification
from secateur.plan import kept_fingerprint
from secateur.references import Loaded
from secateur.surgery import Result

VERSION = 1


def describe_graph(loaded: Loaded, graph: Graph) -> dict[str, Any]:
    """What `secateur inspect` knows.

    loaded: the model as it was referred to. graph: its trace.
    """
    return {
        **_head("inspect", loaded),
        "attention": graph.attention,
        "cost": graph.cost().as_dict(),
        "groups": group_rows(graph),
        "frozen": [{"name": f.name, "width": f.width, "reason": f.reason} for f in graph.frozen],
        "unsupported": [{"operator": u.operator, "module": u.module} for u in graph.unsupported],
        "never_ran": list(graph.never_ran),
        "training_error": graph.training_error,
        "seconds": {name: round(value, 4) for name, value in graph.timings.items()},
    }


def describe_result(command: str, loaded: Loaded, result: Result, files: dict[str, str]) -> dict[str, Any]:
    """What `secateur prune` and `secateur apply` did.

    command: which of them. loaded: the model as it was referred to. result: the cut. files: what was written, by kind.
    """
    kept = result.plan.widths
    return {
        **_head(command, loaded),
        "before": result.before.as_dict(),
        "after": result.averaged.as_dict(),
        "remaining": {k: share(getattr(result.averaged, k), value) for k, value in result.before.as_dict().items()},
        **({"expected": describe_expected(result)} if result.expected is not None else {}),
        "groups": [{"name": g.name, "width": g.width, "kept": kept[g.name]} for g in result.graph.groups],
        "verification": describe_proof(result.verification),
        **({"forms": describe_forms(result.forms)} if result.forms is not None else {}),
        "settled": list(result.settled),
        "notes": list(result.notes),
        "repairs": [
            {"module": r.module, "attribute": r.attribute, "old": r.old, "new": r.new} for r in result.cut.repairs
        ],
        "frozen": [{"name": f.name, "width": f.width, "reason": f.reason} for f in result.graph.frozen],
        "unsupported": [{"operator": u.operator, "module": u.module} for u in result.graph.unsupported],
        "plan": {"fingerprint": kept_fingerprint(result.plan), "provenance": result.plan.provenance},
        "files": files,
    }


def describe_forms(proof: FormsProof) -> dict[str, Any]:
    """The proof of layers that are computed another way."""
    return asdict(proof)


def describe_expected(result: Result) -> dict[str, Any]:
    """Of how many images the MACs after the cut are the mean, how far they spread, and the most there can be."""
    assert result.expected is not None
    return {**asdict(result.expected), "most": result.after.macs}


def group_rows(graph: Graph) -> list[dict[str, Any]]:
    """One row for every group; its MACs and parameters are those that would be gone without the group."""
    full = np.array([g.width for g in graph.groups], dtype=np.float64)
    if not len(full):
        return []
    whole = graph.cost()
    left = graph.costs.evaluate(full - np.diag(full))
    return [
        {
            "name": group.name,
            "width": group.width,
            "members": len(group.members),
            "macs": round(whole.macs - float(left["macs"][k])),
            "params": round(whole.params - float(left["params"][k])),
            "macs_share": share(whole.macs - float(left["macs"][k]), whole.macs),
            "exact": not group.inexact,
            "inexact": list(group.inexact),
        }
        for k, group in enumerate(graph.groups)
    ]


def metadata(loaded: Loaded, result: Result) -> dict[str, str]:
    """What a weights file says of itself."""
    return {
        "format": "secateur.weights",
        "version": str(VERSION),
        "secateur": __version__,
        "torch": str(torch.__version__),
        "model": loaded.reference,
        "plan": kept_fingerprint(result.plan),
        "architecture": result.plan.architecture or "",
    }


def share(part: float, whole: float) -> float:
    """A fraction for a report, six digits; of nothing, everything remains."""
    return float(f"{part / whole:.6g}") if whole else 1.0


def costs(cost: Cost) -> dict[str, int]:
    """The figures there are under the names budgets use; a latency in microseconds."""
    return {
        "flops": cost.macs,
        "params": cost.params,
        "activations": cost.activations,
        "peak": cost.peak_activations,
        **({} if cost.latency is None else {"latency": cost.latency}),
    }


def _head(command: str, loaded: Loaded) -> dict[str, Any]:
    return {
        "format": f"secateur.{command}",
        "version": VERSION,
        "secateur": __version__,
        "model": loaded.reference,
        "class": type(loaded.model).__name__,
        "inputs": [list(shape) for shape in loaded.shapes],
    }


def describe_proof(proof: Verification | None) -> dict[str, Any] | None:
    """The verification of a cut."""
    if proof is None:
        return None
    return {
        "exact": proof.exact,
        "max_relative_error": _finite(proof.max_relative_error),
        "structural_error": _finite(proof.structural_error),
        "tolerance": proof.tolerance,
        "reasons": list(proof.reasons),
        "outputs": proof.outputs,
    }


def _finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return number if number is not None and math.isfinite(number) else None
