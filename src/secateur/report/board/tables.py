"""Tables of a leaderboard as text: means at a budget, seconds, every run; and how each method stands to the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.budget import Budget
from secateur.report.page import words
from secateur.report.page.headline import RUNTIMES
from secateur.report.page.results import TaskUsed

NONE = "–"
_KINDS = {
    "flops": "Equal FLOPs", "params": "Equal parameters", "latency": "Equal latency",
    "activations": "Equal activations", "peak": "Equal peak of activations",
}  # fmt: skip
_OTHER = "Other budgets"
Document = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as text; all columns but the first are figures.

    grey: (row, column) of what is not significant. vital: how many of the first columns decide.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    grey: frozenset[tuple[int, int]] = frozenset()
    vital: int = 2


LEGEND = (
    "Mean and standard deviation (n - 1) over seeds, {}. Final: of the network in the end. {}Behind the best: "
    "the mean difference over the seeds that both have, and its 95% interval. Faster: time of the dense network over "
    "that of the pruned one, by runtime, all networks timed in turns, with the 95% interval, and n.s. (not "
    "significant) where it contains 1. Cut: straight after the cut, before fine-tuning. Dense: "
    "the network that was pruned; of a method that begins with a new network there is none. Bound used: the budget is "
    "kept, and used up to a hundredth. The row dense is the unpruned network, trained for as many epochs."
)
TESTED = (
    "Against the best: of the pruned networks, by the test that is named above; a tie is not significantly different. "
)
#: Said where a method leaves another network for every image.
PER_INPUT = "†: the mean over images, of which each takes other channels."
TIMES = (
    "Prune: scores, plan, cut and its proof, without the passes over test images. Acting: training with the method at "
    "work. Train: of the network that was narrow from the start. Base: training of the base network, counted with "
    "every method that begins with it."
)


#: The whole network among the methods, which belongs to every budget.
WHOLE = "dense"


def budgets(document: Document) -> list[str]:
    """In the order they were asked for; the whole network's is none."""
    return list(dict.fromkeys(mean["budget"] for mean in document["means"] if mean["label"] != WHOLE))


def kinds(document: Document) -> dict[str, list[str]]:
    """Budgets by what is the same for all: FLOPs, parameters, latency."""
    found: dict[str, list[str]] = {name: [] for name in (*_KINDS.values(), _OTHER)}
    for budget in budgets(document):
        keys = [key for key, _ in Budget.parse(budget).bounds]
        found[_KINDS.get(keys[0], _OTHER) if len(keys) == 1 else _OTHER].append(budget)
    return {name: members for name, members in found.items() if members}


def means_at(document: Document, budget: str) -> list[Mapping[str, Any]]:
    """Means at one budget and of the whole network, the best first."""
    found = [mean for mean in document["means"] if mean["budget"] == budget or mean["label"] == WHOLE]
    sign = -1 if task_of(document).higher_is_better else 1
    return sorted(found, key=lambda mean: sign * mean["values"]["accuracy.final"]["mean"])


def places(document: Document, budget: str) -> dict[str, str]:
    """By method: "best mean", "tie" within chance, "below" or "above" beyond it, or unknown where one seed is all."""
    paired = document.get("paired", {}).get("budgets", {}).get(budget)
    if paired is None:
        return {}
    found = {paired["best"]: "best mean"}
    for label, other in paired["others"].items():
        told = NONE if other["p"] is None else "tie"
        found[label] = ("below" if other["difference"] > 0 else "above") if other["significant"] else told
    return found


def _tested(document: Document, budget: str) -> bool:
    """Whether any method was held against the best; with one seed none is."""
    return not set(places(document, budget).values()) <= {"best mean", NONE}


def legend(document: Document) -> str:
    """What the columns of means are."""
    task = task_of(document)
    share = " in percent" if task.unit == "share" else ""
    of = (
        "in percent of the test images" if task.headline == "accuracy" else f"{task.headline} on the test images{share}"
    )
    said = LEGEND.format(of, TESTED if any(_tested(document, budget) for budget in budgets(document)) else "")
    return f"{said} {PER_INPUT}" if any(mean.get("per_input") for mean in document["means"]) else said


def mean_table(document: Document, budget: str) -> Table:
    """Means at one budget and the whole network, the best first; what decides stands in the first columns."""
    means, place, scale = means_at(document, budget), places(document, budget), scale_of(document)
    tested = _tested(document, budget)
    runtimes = list(dict.fromkeys(name for mean in means for name in mean["latency"]))
    behind = document.get("paired", {}).get("budgets", {}).get(budget, {}).get("others", {})
    head = (
        "method", "final", *(["against the best"] if tested else []),
        *(f"faster, {RUNTIMES.get(name, name)}" for name in runtimes),
        "behind the best", "MACs left", "parameters left", "cut", "dense", "bound used", "proof", "seeds",
    )  # fmt: skip
    rows, grey = [], set()
    for number, mean in enumerate(means):
        of, standing = mean["values"], place.get(mean["label"], NONE)
        timed = [mean["latency"].get(name) for name in runtimes]
        images = "†" if mean.get("per_input") else ""
        rows.append(
            (
                mean["label"],
                percents(of["accuracy.final"], scale=scale),
                *([standing] if tested else []),
                *(_ratio(found) for found in timed),
                _behind(behind.get(mean["label"]), scale),
                percents(of["macs.share"], 1, alone=True) + images,
                percents(of["params.share"], 1, alone=True),
                *(percents(of[f"accuracy.{name}"], scale=scale) for name in ("pruned", "dense")),
                "yes" if mean["within"] else "no",
                ("exact" if mean["exact"] else "inexact") + f", {words.error(mean['max_relative_error'])}",
                str(len(mean["seeds"])),
            )
        )
        grey |= {(number, 2 + tested + k) for k, found in enumerate(timed) if not _beyond(found)}
        unsure = {*([2] if tested else []), 2 + tested + len(runtimes)}
        grey |= {(number, column) for column in unsure} if standing in ("tie", NONE) else set()
    return Table(head, tuple(rows), frozenset(grey), 3)


def _behind(other: Mapping[str, Any] | None, scale: float) -> str:
    """How far a method is behind the best, with its interval, in points where figures are shares."""
    if other is None or other["difference"] is None:
        return NONE
    said = f"{scale * other['difference']:.2f}"
    said += "" if other["low"] is None else f" ({scale * other['low']:.2f} to {scale * other['high']:.2f})"
    return said.replace("-", words.MINUS)


def time_table(document: Document) -> Table:
    """Mean seconds of what was done; the budget stands there where there are several."""
    names, several = ("total", "prune", "acting", "finetune", "train", "base"), len(budgets(document)) > 1
    rows = [
        (
            mean["label"],
            *([mean["budget"]] if several else []),
            *(_seconds(mean["values"][f"seconds.{name}"]) for name in names),
            f"{mean['values']['epochs.total']['mean']:g}",
        )
        for mean in document["means"]
    ]
    head = ("method", *(["budget"] if several else []), *names, "epochs")
    return Table(head, tuple(rows), vital=3 + several)


def run_table(document: Document) -> Table:
    """Every finished run."""
    head = (
        "method", "seed", "budget", "final", "faster", "MACs left", "parameters left", "cut", "dense", "soft", "hard",
        "MACs", "parameters", "epochs", "dense, ms", "pruned, ms", "error", "plan",
    )  # fmt: skip
    order = {(mean["label"], mean["budget"]): place for place, mean in enumerate(document["means"])}
    found = sorted(document["rows"], key=lambda row: (order[row["label"], row["budget"]], row["seed"]))
    rows = [_run_row(row, scale_of(document)) for row in found]
    same = {2} if len(budgets(document)) == 1 else set()  # what every row says, or none
    shown = [c for c in range(len(head)) if c not in same and (c < 4 or any(row[c] != NONE for row in rows))]
    grey = {(n, shown.index(4)) for n, row in enumerate(found) if 4 in shown and not _beyond(_first_timed(row))}
    cells = (tuple(row[c] for c in shown) for row in (head, *rows))
    return Table(next(cells), tuple(cells), frozenset(grey), 1 + shown.index(3))


def _first_timed(row: Row) -> Mapping[str, Any] | None:
    """Latencies on the first runtime."""
    return next(iter((row["latency"] or {}).values()), None)


def _run_row(row: Row, scale: float) -> tuple[str, ...]:
    first = _first_timed(row)
    return (
        row["label"],
        str(row["seed"]),
        row["budget"],
        _percent(row["accuracy"]["final"], scale),
        _ratio(first),
        *(_share(row[name]["share"]) for name in ("macs", "params")),
        *(_percent(row["accuracy"][name], scale) for name in ("pruned", "dense", "soft", "hard")),
        *(words.count(row[name]["after"]) + _mean(row, name) for name in ("macs", "params")),
        " + ".join(str(row["epochs"][part]) for part in ("base", "train", "finetune") if row["epochs"][part]),
        *((f"{first['dense_ms']:.3f}", f"{first['pruned_ms']:.3f}") if first else (NONE, NONE)),
        words.error(row["max_relative_error"]),
        row["plan"].removeprefix("sha256:")[:10],
    )


def _mean(row: Row, name: str) -> str:
    """That a count is a mean over images."""
    return " (mean)" if name == "macs" and row.get("mean_over") else ""


def percents(spread: Mapping[str, Any] | None, digits: int = 2, *, alone: bool = False, scale: float = 100.0) -> str:
    """A mean of fractions with its standard deviation: "58.51 ± 0.48"; `alone`: without it.

    scale: what figures are multiplied by; 1 where they are no fractions.
    """
    if spread is None:
        return NONE
    mean = f"{scale * spread['mean']:.{digits}f}"
    return mean if alone or spread["sd"] is None else f"{mean} ± {scale * spread['sd']:.{digits}f}"


def task_of(document: Document) -> TaskUsed:
    """What the networks are for; leaderboards of before do not say, and are of classification."""
    return TaskUsed.model_validate(document.get("task") or {})


def scale_of(document: Document) -> float:
    """Shares of 1 are written as percentages, other headlines as they are."""
    return 100.0 if task_of(document).unit == "share" else 1.0


def _percent(value: float | None, scale: float) -> str:
    return NONE if value is None else f"{scale * value:.2f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _seconds(spread: Mapping[str, Any] | None) -> str:
    return NONE if spread is None else f"{spread['mean']:,.0f}" if spread["mean"] >= 10 else f"{spread['mean']:.2g}"


def _ratio(timed: Mapping[str, Any] | None) -> str:
    """How much faster, with its interval; of means over seeds, or of one run."""
    if timed is None:
        return NONE
    middle, low, high = _bounds(timed)
    if low is None or high is None:
        return f"{middle:.2f}"
    return f"{middle:.2f} ({low:.2f} to {high:.2f})" + ("" if _beyond(timed) else " n.s.")


def _beyond(timed: Mapping[str, Any] | None) -> bool:
    """Whether the interval of a ratio leaves 1 out."""
    if timed is None:
        return True
    _, low, high = _bounds(timed)
    return low is None or high is None or not low <= 1 <= high


def _bounds(timed: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    found = timed["ratio"]
    if not isinstance(found, Mapping):
        return found, timed["low"], timed["high"]
    return found["mean"], found.get("low"), found.get("high")
