"""The leaderboard as a document: a row for every cell, from its results.json, means over seeds, and what differs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur._version import __version__
from secateur.budget import Budget
from secateur.compare import bases
from secateur.compare.cells import DENSE, Cell
from secateur.compare.paired import LEVEL, differences
from secateur.compare.record import Comparison
from secateur.graph import Cost
from secateur.report.documents import share
from secateur.runs.documents import now

FORMAT, VERSION = "secateur.leaderboard", 1
Row = dict[str, Any]
#: The task of runs that do not name theirs.
_USUAL: Mapping[str, Any] = {
    "name": "classification", "headline": "accuracy", "higher_is_better": True, "unit": "share"
}  # fmt: skip
#: What is averaged over seeds: a path in a row. "accuracy" stands for the headline of the document's task.
AVERAGED = (
    "accuracy.dense", "accuracy.soft", "accuracy.hard", "accuracy.pruned", "accuracy.final",
    "macs.after", "macs.share", "params.after", "params.share", "epochs.total",
    "seconds.base", "seconds.acting", "seconds.prune", "seconds.train", "seconds.finetune", "seconds.total",
)  # fmt: skip
#: How near to its bound a budget must come to count as used.
TOLERANCE = 0.01


def document(comparison: Comparison) -> dict[str, Any]:
    """leaderboard.json, from what is in the folder now."""
    known = {seed: bases.find(comparison.base(seed)) for seed in {cell.seed for cell in comparison.cells}}
    rows, failed, missing, sessions = [], [], [], []
    for cell in comparison.cells:
        if comparison.finished(cell):
            results = comparison.results(cell)
            rows.append(row(cell, results, comparison.dense, known[cell.seed]) | _timed(comparison, cell))
            sessions += results["sessions"]
        elif (why := comparison.failure(cell)) is not None:
            failed.append({**_which(cell), "said": why["said"]})
        else:
            missing.append(_which(cell))
    recipe = comparison.recipe
    task = comparison.results(_first(comparison, rows)).get("task", _USUAL) if rows else _USUAL
    sign = 1 if task["higher_is_better"] else -1
    return {
        "format": FORMAT,
        "version": VERSION,
        "secateur": __version__,
        "date": now(),
        "name": recipe.name,
        "calls": comparison.calls,
        **{key: _distinct(s[key] for s in sessions) for key in ("device", "threads", "processes", "torch", "python")},
        "recipe": recipe.model_dump(mode="json", exclude={"seed", "method", "budget", "repair"}),
        "settings": comparison.settings,
        "data": comparison.results(_first(comparison, rows))["data"] if rows else None,
        "images": rows[0]["images"] if rows else None,
        "task": task,
        "dense": comparison.dense,
        "bases": [base.as_dict() for _, base in sorted(known.items()) if base is not None],
        "methods": _methods(comparison.cells),
        "means": means(rows, sign),
        "paired": paired(rows, sign),
        "rows": rows,
        "failed": failed,
        "missing": missing,
    }


def row(cell: Cell, results: Mapping[str, Any], dense: Mapping[str, int], base: bases.Base | None) -> Row:
    """One finished cell. Costs are shares of the recipe's own network, whichever the method began with."""
    shared = base if cell.row.begins == "weights" else None
    after = results["after"]
    found = results[results.get("task", _USUAL)["headline"]]
    costs = {
        key: {"before": dense[key], "after": after[key], "share": share(after[key], dense[key])}
        for key in ("macs", "params")
    }
    proof = results["verification"] or {}
    return {
        **_which(cell),
        "folder": f"runs/{cell.name}",
        "accuracy": {key: found[key] for key in ("dense", "soft", "hard", "pruned", "final")},
        "images": found["images"],
        **costs,
        "expected": results.get("expected"),  # of a network that differs from image to image
        "within": _within(cell.budget, after, {**dense, "latency": results["before"].get("latency")}),
        "epochs": _epochs(results, shared),
        "seconds": _seconds(cell, results, shared),
        "exact": proof.get("exact"),
        "max_relative_error": proof.get("max_relative_error"),
        "structural_error": proof.get("structural_error"),
        "plan": results["plan"],
        "mean_over": results.get("expected", {}).get("images"),  # images, where MACs depend on them
        "notes": results["method"]["notes"],
        "device": results["device"],
        "threads": results["threads"],
        "date": results["date"],
    }


def means(rows: Sequence[Row], sign: int = 1) -> list[Row]:
    """Mean and standard deviation (n - 1) over seeds, by budget and then by mean final headline, best first.

    sign: -1 where less is better.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for each in rows:
        groups.setdefault((each["budget"], each["label"]), []).append(each)
    order = list(dict.fromkeys(budget for budget, _ in groups))
    found = [
        {
            "label": label,
            "budget": budget,
            "seeds": sorted(each["seed"] for each in members),
            "values": {path: _spread([_at(each, path) for each in members]) for path in AVERAGED},
            "latency": _latencies(members),
            "exact": all(each["exact"] for each in members),
            "max_relative_error": _most(each["max_relative_error"] for each in members),
            "within": all(each["within"] for each in members),
            "per_input": any(each.get("expected") for each in members),
        }
        for (budget, label), members in groups.items()
    ]

    def rank(mean: Row) -> tuple[int, float, str]:
        return order.index(mean["budget"]), -sign * mean["values"]["accuracy.final"]["mean"], mean["label"]

    return sorted(found, key=rank)


def paired(rows: Sequence[Row], sign: int = 1) -> dict[str, Any]:
    """By budget: the method of the best mean, and how all others and the whole network differ from it."""
    found: dict[str, Any] = {"level": LEVEL, "correction": "Holm, over the methods of a budget", "budgets": {}}
    for budget in dict.fromkeys(each["budget"] for each in rows if each["method"] != DENSE):
        finals: dict[str, dict[int, float]] = {}
        for each in rows:
            if each["budget"] == budget or each["method"] == DENSE:
                finals.setdefault(each["label"], {})[each["seed"]] = sign * each["accuracy"]["final"]
        pruned = [label for label in finals if label != DENSE]
        best = max(pruned, key=lambda label: statistics.fmean(finals[label].values()))
        found["budgets"][budget] = {"best": best, "others": differences(finals, best)}
    return found


# ------------------------------------------------------------------------------------------------------- parts of a row


def _which(cell: Cell) -> Row:
    return {
        "label": cell.label,
        "method": cell.method,
        "repair": list(cell.repair),
        "seed": cell.seed,
        "budget": cell.budget,
    }


def _epochs(results: Mapping[str, Any], shared: bases.Base | None) -> dict[str, int | None]:
    parts = {"base": shared.epochs if shared is not None else None}
    parts |= {stage: results["epochs"].get(stage) for stage in ("train", "finetune")}
    return parts | {"total": sum(number or 0 for number in parts.values())}


def _seconds(cell: Cell, results: Mapping[str, Any], shared: bases.Base | None) -> dict[str, float | None]:
    """`acting`: training with the method at work; `train`: of the narrow network; `prune`: scores, plan, cut, proof."""
    spent = results["seconds"]
    trained = "acting" if cell.row.acts == "while training" else "train"
    parts = {"base": shared.seconds if shared is not None else None, "acting": None, "train": None}
    parts |= {trained: spent.get("train"), "prune": spent.get("prune"), "finetune": spent.get("finetune")}
    return parts | {"total": round(spent["total"] + (parts["base"] or 0.0), 3)}


def _within(budget: str, after: Mapping[str, int], dense: Mapping[str, Any]) -> bool:
    """Every bound is kept, and one of them is used up to a hundredth."""
    used = max(after[key] / limit for key, limit in Budget.parse(budget).limits(Cost(**dense)).items())
    return 1 - TOLERANCE <= used <= 1


def _timed(comparison: Comparison, cell: Cell) -> Row:
    """The latencies of a cell by runtime, or why there are none."""
    found = comparison.latency(cell)
    if found is None:
        return {"latency": None, "untimed": None}
    if "runtimes" not in found:
        return {"latency": None, "untimed": found["said"]}
    timed = {
        each["runtime"]: {
            "dense_ms": each["dense"]["median_ms"],
            "pruned_ms": each["pruned"]["median_ms"],
            "ratio": each["ratio"]["median"],
            "low": each["ratio"]["low"],
            "high": each["ratio"]["high"],
        }
        for each in found["runtimes"]
    }
    return {"latency": timed, "untimed": " ".join(f"{s['runtime']}: {s['reason']}" for s in found["skipped"]) or None}


# --------------------------------------------------------------------------------------------------------------- means


def _at(row: Row, path: str) -> float | None:
    value: Any = row
    for key in path.split("."):
        value = value[key]
    return value if value is None else float(value)


def _spread(values: Iterable[float | None]) -> dict[str, float | None] | None:
    """Mean and standard deviation of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known) if len(known) > 1 else None}


def _latencies(rows: Sequence[Row]) -> dict[str, Any]:
    """By runtime, over seeds."""
    runtimes = dict.fromkeys(name for each in rows for name in each["latency"] or ())
    found = {}
    for name in runtimes:
        timed = [each["latency"][name] for each in rows if name in (each["latency"] or ())]
        found[name] = {key: _spread([each[key] for each in timed]) for key in ("dense_ms", "pruned_ms")}
        # ratios, and the ends of their intervals, are averaged as what they are: geometrically
        found[name]["ratio"] = {
            key: round(statistics.geometric_mean(each[of] for each in timed), 4)
            for key, of in (("mean", "ratio"), ("low", "low"), ("high", "high"))
        }
    return found


def _most(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known, default=None)


def _methods(cells: Iterable[Cell]) -> list[Row]:
    """What is known of every contender, once."""
    rows = {}
    for cell in cells:
        of = cell.row
        keys = (
            "summary",
            "paper",
            "year",
            "arxiv",
            "needs",
            "acts",
            "begins",
            "finetunes",
            "acting",
            "acting_rate",
            "fidelity",
        )
        rows[cell.label] = {"label": cell.label, "method": of.name, **{key: getattr(of, key) for key in keys}}
    return list(rows.values())


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _first(comparison: Comparison, rows: Sequence[Row]) -> Cell:
    return next(cell for cell in comparison.cells if f"runs/{cell.name}" == rows[0]["folder"])
