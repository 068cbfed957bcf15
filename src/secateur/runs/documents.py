"""What a run writes down at its end: results.json and verification.json, from what its stages noted."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from secateur._distributed import world
from secateur._version import __version__
from secateur.graph import Cost
from secateur.methods import Method
from secateur.plan import kept_fingerprint
from secateur.report.documents import describe_expected, describe_forms, describe_proof, share
from secateur.runs.layers import layer_rows
from secateur.runs.named_files import named_files
from secateur.runs.preparing import Prepared
from secateur.runtime import EXPORTERS
from secateur.surgery import Result, formed_notes, untouched

VERSION = 1
#: When the headline of a run's task is measured.
POINTS = ("dense", "longer", "soft", "hard", "pruned", "finetuned")


def describe_cut(method: Method, result: Result) -> dict[str, Any]:
    """What the stage prune knows."""
    whole = result.whole_plan
    return {
        "before": result.before.as_dict(),
        "after": result.averaged.as_dict(),
        "remaining": remaining(result.before, result.averaged),
        **({"expected": describe_expected(result)} if result.expected is not None else {}),
        "groups": [{"name": n, "width": len(mask), "kept": int(mask.sum())} for n, mask in whole.masks.items()],
        "frozen": [{"name": f.name, "width": f.width, "reason": f.reason} for f in result.graph.frozen],
        "unsupported": [{"operator": u.operator, "module": u.module} for u in result.graph.unsupported],
        "settled": list(result.settled),
        "repairs": [
            {"module": r.module, "attribute": r.attribute, "old": r.old, "new": r.new} for r in result.cut.repairs
        ],
        "verification": describe_proof(result.verification),
        "layers": layer_rows(result),
        "plan": kept_fingerprint(whole),
        "sparse": result.plan.provenance.get("sparse"),
        **({"forms": describe_forms(result.forms)} if result.forms is not None else {}),
        "settings": method.settings.model_dump(mode="json"),
        "notes": [
            *method.notes,
            *untouched(result, method.budget),
            *formed_notes(result.plan),
            *_averaged(result),
        ],
    }


def _averaged(result: Result) -> list[str]:
    """That MACs are a mean, where they are."""
    if result.expected is None:
        return []
    most = share(result.after.macs, result.before.macs)
    return [f"MACs are {result.expected}; an image costs {most:.1%} of the dense network's at most."]


def remaining(before: Cost, after: Cost) -> dict[str, float]:
    """Which share of every cost is left."""
    return {key: share(getattr(after, key), whole) for key, whole in before.as_dict().items()}


def session(device: str, command: str, prepared: Prepared) -> dict[str, Any]:
    """When, where, with which versions and what method somebody works on a run."""
    return {
        "date": now(),
        "secateur": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": world(),
        "method": prepared.row.name,
        "settings": prepared.settings,
        "files": named_files(prepared.recipe),
        "command": command,
    }


def now() -> str:
    """This second, with its zone."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def describe_run(
    prepared: Prepared,
    stages: Mapping[str, Mapping[str, Any]],
    sessions: Sequence[Mapping[str, Any]],
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """results.json."""
    recipe, row, cut = prepared.recipe, prepared.row, stages["prune"]
    first, last = sessions[0], sessions[-1]
    return {
        "format": "secateur.run",
        "version": VERSION,
        **{key: last[key] for key in ("secateur", "torch", "python", "device", "threads", "processes")},
        "date": now(),
        "command": first["command"],
        "sessions": list(sessions),
        "seed": recipe.seed,
        "recipe_name": recipe.name,
        "model": recipe.model.reference,
        "arguments": dict(prepared.arguments),
        "class": prepared.model_class,
        "inputs": prepared.shapes,
        "data": prepared.data.describe(),
        "method": {
            **{key: getattr(row, key) for key in ("name", "summary", "paper", "year", "arxiv", "acts", "fidelity")},
            "settings": cut["settings"],
            "notes": _notes(stages, sessions),
        },
        "budget": recipe.budget,
        **{key: cut[key] for key in ("before", "after", "remaining")},
        "task": prepared.task.describe(),
        prepared.task.headline: qualities(stages) | {"split": "test", "images": len(prepared.data.test)},
        "int8": _int8(stages, prepared.task.headline),
        "not_exported": stages.get("export", {}).get("failed", {}),  # file by file, why
        **{
            key: cut[key] for key in ("groups", "frozen", "unsupported", "settled", "repairs", "verification", "layers")
        },
        "plan": cut["plan"],
        "sparse": cut.get("sparse"),  # single weights that are zero; runs of before had none
        **({"forms": cut["forms"]} if "forms" in cut else {}),  # layers that are computed another way
        **({"expected": cut["expected"]} if "expected" in cut else {}),  # of which images the MACs are the mean
        "seconds": _seconds(stages),
        "epochs": {name: stages[name]["epochs"] for name in ("pretrain", "train", "finetune") if name in stages},
        "files": dict(files),
        "dense_bytes": cut["dense_bytes"],
    }


def qualities(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The task's headline on the test images by name; `final` is that of the network in model.safetensors."""
    found: dict[str, float | None] = dict.fromkeys(POINTS)
    for stage in stages.values():
        found |= stage.get("quality", {})
    found["final"] = found["finetuned"] if found["finetuned"] is not None else found["pruned"]
    return found


def describe_checks(stages: Mapping[str, Mapping[str, Any]], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """verification.json."""
    exports = {name: stages.get("export", {}).get(name) for name in (*EXPORTERS, "int8")}
    return {
        "format": "secateur.verification",
        "version": VERSION,
        "verification": stages["prune"]["verification"],
        **{name: checked for name, checked in exports.items() if checked is not None},
        "files": dict(files),
    }


def _int8(stages: Mapping[str, Mapping[str, Any]], headline: str) -> dict[str, Any]:
    """What was found of the network in 8 bits, by quantiser, beside the headline of the network it was made from."""
    final = qualities(stages)["final"]
    return {
        name: {**found, f"float_{headline}": final} for name, found in stages.get("export", {}).get("int8", {}).items()
    }


def _notes(stages: Mapping[str, Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every sentence a reader should know, once."""
    said = [*stages["prune"]["notes"], *(sentence for stage in stages.values() for sentence in stage.get("said", ()))]
    return list(dict.fromkeys([*said, *changes(sessions)]))


def changes(sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what the sessions of a run differ, in sentences; what an older release did not note is left out."""
    said = []
    for what, more in _KEPT.items():
        noted = [_named(session[what]) for session in sessions if what in session]
        found = list(dict.fromkeys(noted))
        if len(found) > 1:
            said.append(f"The run was begun with {what} {found[0]} and continued with {' and '.join(found[1:])}{more}.")
    files = [session["files"] for session in sessions if "files" in session]
    said += [
        f"{name} is another file than when the run was begun{_BEFORE}."
        for name in dict.fromkeys(name for noted in files for name in noted)
        if len({noted[name] for noted in files if name in noted}) > 1
    ]
    said += [sentence for session in sessions for sentence in session.get("changed", ())]
    return said


_BEFORE = ": what was done before is kept, and what came after was done with the other"


#: What should be the same in every session, and what it means where it is not.
_KEPT: Mapping[str, str] = {
    **dict.fromkeys(("secateur", "torch", "python", "device"), ""),
    "threads": ", so that its weights may differ in their last bits from those of a run that was not interrupted",
    "method": _BEFORE,
    "settings": f"{_BEFORE}s",
}


def _named(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else str(value)


def _seconds(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    spent = {name: float(stage["seconds"]) for name, stage in stages.items()}
    return spent | {"total": round(sum(spent.values()), 3)}
