"""Tables of a leaderboard as text: means at a budget, seconds, every run; and how each method stands to the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.report.page import words
from secateur.report.page.results import TaskUsed

NONE = "–"
Document = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as text; all columns but the first are figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


LEGEND = (
    "Mean and standard deviation (n - 1) over seeds, in percent of the test images. Final: of the network that is left "
    "behind. Cut: straight after the cut, before fine-tuning. Dense: the network that was pruned; of a method that "
    "begins with a new network there is none. Against the best: of the pruned networks, by the test that is named "
    "above; a tie is no difference beyond chance. Bound used: the budget is kept, and used up to a hundredth. Faster: "
    "time of the dense network over that of the pruned one, by runtime, all networks timed in turns; in brackets the "
    "95% interval, and no faster where it contains 1. The row dense is the whole network after as many epochs."
)
TIMES = (
    "Base: training of the base network, counted with every method that begins with it. Acting: training with the "
    "method at work. Prune: scores, plan, cut and its proof. Train: of the network that was narrow from the start."
)


#: The whole network among the methods, which belongs to every budget.
WHOLE = "dense"


def budgets(document: Document) -> list[str]:
    """In the order they were asked for; the whole network's is none."""
    return list(dict.fromkeys(mean["budget"] for mean in document["means"] if mean["label"] != WHOLE))


def means_at(document: Document, budget: str) -> list[Mapping[str, Any]]:
    """Means at one budget and of the whole network, the best first."""
    found = [mean for mean in document["means"] if mean["budget"] == budget or mean["label"] == WHOLE]
    sign = -1 if task_of(document).higher_is_better else 1
    return sorted(found, key=lambda mean: sign * mean["values"]["accuracy.final"]["mean"])


def places(document: Document, budget: str) -> dict[str, str]:
    """By method, how it stands to the best: "first", "tie" within chance, "below", or unknown where one seed is all."""
    paired = document.get("paired", {}).get("budgets", {}).get(budget)
    if paired is None:
        return {}
    found = {paired["best"]: "first"}
    for label, other in paired["others"].items():
        told = NONE if other["p"] is None else "tie"
        found[label] = ("below" if other["difference"] > 0 else "above") if other["significant"] else told
    return found


def mean_table(document: Document, budget: str) -> Table:
    """Means at one budget and the whole network, the best first."""
    means, place, scale = means_at(document, budget), places(document, budget), scale_of(document)
    runtimes = list(dict.fromkeys(name for mean in means for name in mean["latency"]))
    head = (
        "method",
        "final",
        "against the best",
        "cut",
        "dense",
        "MACs left",
        "parameters left",
        "bound used",
        "proof",
        "seeds",
    )
    rows = []
    for mean in means:
        of = mean["values"]
        rows.append(
            (
                mean["label"],
                percents(of["accuracy.final"], scale=scale),
                place.get(mean["label"], NONE),
                *(percents(of[f"accuracy.{name}"], scale=scale) for name in ("pruned", "dense")),
                *(percents(of[f"{name}.share"], 1, alone=True) for name in ("macs", "params")),
                "yes" if mean["within"] else "no",
                ("exact" if mean["exact"] else "inexact") + f", {words.error(mean['max_relative_error'])}",
                str(len(mean["seeds"])),
                *(_ratio(mean["latency"].get(name)) for name in runtimes),
            )
        )
    return Table((*head, *(f"faster, {name}" for name in runtimes)), tuple(rows))


def time_table(document: Document) -> Table:
    """Mean seconds of what was done."""
    names = ("base", "acting", "prune", "train", "finetune", "total")
    rows = [
        (
            mean["label"],
            mean["budget"],
            *(_seconds(mean["values"][f"seconds.{name}"]) for name in names),
            f"{mean['values']['epochs.total']['mean']:g}",
        )
        for mean in document["means"]
    ]
    return Table(("method", "budget", *names, "epochs"), tuple(rows))


def run_table(document: Document) -> Table:
    """Every finished run."""
    head = (
        "method", "budget", "seed", "dense", "soft", "hard", "cut", "final", "MACs", "left", "parameters", "left",
        "epochs", "dense, ms", "pruned, ms", "faster", "error", "plan",
    )  # fmt: skip
    order = {(mean["label"], mean["budget"]): place for place, mean in enumerate(document["means"])}
    rows = sorted(document["rows"], key=lambda row: (order[row["label"], row["budget"]], row["seed"]))
    return Table(head, tuple(_run_row(row, scale_of(document)) for row in rows))


def _run_row(row: Row, scale: float) -> tuple[str, ...]:
    timed = row["latency"] or {}
    first = next(iter(timed.values()), None)
    return (
        row["label"],
        row["budget"],
        str(row["seed"]),
        *(_percent(row["accuracy"][name], scale) for name in ("dense", "soft", "hard", "pruned", "final")),
        *(
            text
            for name in ("macs", "params")
            for text in (words.count(row[name]["after"]), _share(row[name]["share"]))
        ),
        " + ".join(str(row["epochs"][part]) for part in ("base", "train", "finetune") if row["epochs"][part]),
        *((f"{first['dense_ms']:.3f}", f"{first['pruned_ms']:.3f}") if first else (NONE, NONE)),
        f"{first['ratio']:.2f} ({first['low']:.2f} to {first['high']:.2f})" if first else NONE,
        words.error(row["max_relative_error"]),
        row["plan"].removeprefix("sha256:")[:10],
    )


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
    return NONE if spread is None else f"{spread['mean']:.0f}" if spread["mean"] >= 10 else f"{spread['mean']:.2g}"


def _ratio(timed: Mapping[str, Any] | None) -> str:
    if timed is None:
        return NONE
    ratio = timed["ratio"]
    if ratio.get("low") is None:
        return f"{ratio['mean']:.2f}"
    return f"{ratio['mean']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
