"""`write_leaderboard`: a comparison's leaderboard as JSON for programs, Markdown for repositories, HTML for people.

All of it is made from the document alone; names and sentences in it are foreign, and are escaped in both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur._files import write_json, write_text
from secateur.report.html import render
from secateur.report.page import words
from secateur.report.page.fairness import fairness
from secateur.report.page.rivals import Point, Rival, key, ladder, tradeoff

JSON, MARKDOWN, HTML = "leaderboard.json", "leaderboard.md", "leaderboard.html"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")
NONE = "–"
Document = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as text; all columns but the first are figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_leaderboard(folder: str | os.PathLike[str], document: Document) -> Path:
    """Write leaderboard.json, .md and .html into a comparison's folder, and return the last one's path.

    Raises:
        ConfigError: jinja2 is not installed. RunError: a file cannot be written.
    """
    root = Path(folder)
    page = render("leaderboard.html.jinja", _content(document))
    write_json(root / JSON, document, what="The leaderboard")
    write_text(root / MARKDOWN, markdown(document), what="The leaderboard")
    write_text(root / HTML, page, what="The leaderboard")
    return root / HTML


def markdown(document: Document) -> str:
    """The leaderboard as Markdown."""
    parts = [f"# {_plain(_title(document))}", *(_plain(line) for line in _summary(document))]
    parts += ["## What is the same for whom", "\n".join(f"- {_plain(line)}" for line in fairness(document))]
    for budget in budgets(document):
        parts += [f"## {_plain(budget)}", _table(mean_table(document, budget))]
    if document["means"]:
        parts += [_plain(_LEGEND), "## Time, in seconds", _table(time_table(document)), _plain(_TIMES)]
    if document["rows"]:
        parts += ["## Every run", _table(run_table(document))]
    if document["failed"] or document["missing"]:
        parts += ["## What is not there", "\n".join(f"- {_plain(line)}" for line in absent(document))]
    parts += ["## The methods", "\n".join(f"- {_plain(name)}: {_plain(text)}" for name, text, _ in _methods(document))]
    parts += ["## Circumstances", "\n".join(f"- {_plain(f'{k}: {v}')}" for k, v in circumstances(document))]
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------------------------- tables

_LEGEND = (
    "Mean and standard deviation (n - 1) over seeds, in percent of the test images. Final: of the network that is left "
    "behind. Cut: straight after the cut, before fine-tuning. Dense: the network that was pruned; of a method that "
    "begins with a new network there is none. Bound used: the budget is kept, and used up to a hundredth. Faster: time "
    "of the dense network over that of the pruned one, median, by runtime."
)
_TIMES = (
    "Base: training of the base network, counted with every method that begins with it. Acting: training with the "
    "method at work. Prune: scores, plan, cut and its proof. Train: of the network that was narrow from the start."
)


def budgets(document: Document) -> list[str]:
    """In the order they were asked for."""
    return list(dict.fromkeys(mean["budget"] for mean in document["means"]))


def mean_table(document: Document, budget: str) -> Table:
    """Means at one budget, the best first."""
    means = [mean for mean in document["means"] if mean["budget"] == budget]
    runtimes = list(dict.fromkeys(name for mean in means for name in mean["latency"]))
    head = ("method", "final", "cut", "dense", "MACs left", "parameters left", "bound used", "proof", "seeds")
    rows = []
    for mean in means:
        of = mean["values"]
        rows.append(
            (
                mean["label"],
                *(percents(of[f"accuracy.{name}"]) for name in ("final", "pruned", "dense")),
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
    return Table(head, tuple(_run_row(row) for row in rows))


def _run_row(row: Row) -> tuple[str, ...]:
    timed = row["latency"] or {}
    first = next(iter(timed.values()), None)
    return (
        row["label"],
        row["budget"],
        str(row["seed"]),
        *(_percent(row["accuracy"][name]) for name in ("dense", "soft", "hard", "pruned", "final")),
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


def absent(document: Document) -> list[str]:
    """Runs that failed, with the reason, and runs that are not finished."""
    failed = [f"{_which(row)} failed: {row['said']}" for row in document["failed"]]
    missing = [f"{_which(row)} is not finished: the same command again goes on with it." for row in document["missing"]]
    untimed = [f"{_which(row)} was not timed: {row['untimed']}" for row in document["rows"] if row["untimed"]]
    return [*failed, *missing, *untimed]


# ---------------------------------------------------------------------------------------------------------------- text


def circumstances(document: Document) -> list[tuple[str, str]]:
    """When, where, on what and with what."""
    recipe, data = document["recipe"], document["data"] or document["recipe"]["data"]
    commands = dict.fromkeys(call["command"] or "from Python" for call in document["calls"])
    jobs = sorted({call["jobs"] for call in document["calls"]})
    at_once = " or ".join(map(str, jobs)) + (" at a time" if jobs != [1] else " at a time, nothing of ours beside it")
    seeds = sorted({row["seed"] for row in document["rows"]})
    return [
        ("Date", words.moment(document["date"])),
        ("Begun", words.moment(document["calls"][0]["date"])),
        ("Commands", "; ".join(commands)),
        ("Network", f"{recipe['model']['reference']}: {_cost(document['dense'])}"),
        ("Data", words.plain(data)),
        ("Seeds", ", ".join(map(str, seeds)) or NONE),
        ("Device", ", ".join(document["device"]) or NONE),
        ("Threads of each process", ", ".join(map(str, document["threads"])) or NONE),
        ("Runs", at_once),
        ("Latency", _timing(recipe["latency"])),
        (
            "Versions",
            f"Secateur {document['secateur']}, PyTorch {', '.join(document['torch']) or NONE}, "
            f"Python {', '.join(document['python']) or NONE}",
        ),
        ("Settings given", words.plain(document["settings"]) if document["settings"] else "none, all as by default"),
    ]


def percents(spread: Mapping[str, Any] | None, digits: int = 2, *, alone: bool = False) -> str:
    """A mean of fractions with its standard deviation: "58.51 ± 0.48"; `alone`: without it."""
    if spread is None:
        return NONE
    mean = f"{100 * spread['mean']:.{digits}f}"
    return mean if alone or spread["sd"] is None else f"{mean} ± {100 * spread['sd']:.{digits}f}"


def _title(document: Document) -> str:
    recipe = document["recipe"]
    data = words.data_set(recipe["data"]["name"])
    return f"{words.network(recipe['model']['reference'])} on {data}: {len(document['methods'])} methods compared"


def _summary(document: Document) -> list[str]:
    """Who comes first at each budget, in a sentence that does not say more than was measured."""
    said = []
    for budget in budgets(document):
        means = [mean for mean in document["means"] if mean["budget"] == budget]
        best = means[0]
        final = best["values"]["accuracy.final"]
        text = f"At {budget}, {best['label']} is first with {percents(final)}% on average"
        if len(means) > 1:
            other = means[1]
            text += f", then {other['label']} with {percents(other['values']['accuracy.final'])}%"
        seeds = words.number_of(len(best["seeds"]), "seed")
        said.append(f"{text} ({seeds}).")
    missing = len(document["failed"]) + len(document["missing"])
    if missing:
        said.append(
            f"{words.number_of(missing, 'run')} of {missing + len(document['rows'])} failed or is not finished."
        )
    return said or ["No run is finished yet."]


def _methods(document: Document) -> list[tuple[str, str, list[str]]]:
    """Name, what it is and how near to its paper, and what its runs noted."""
    found = []
    for of in document["methods"]:
        paper = f"{of['paper']}, {of['year']}" + (f", arXiv:{of['arxiv']}" if of["arxiv"] else "")
        notes = [note for row in document["rows"] if row["label"] == of["label"] for note in row["notes"]]
        found.append(
            (of["label"], f"{of['summary']} ({paper}). Fidelity: {of['fidelity']}", list(dict.fromkeys(notes)))
        )
    return found


def _content(document: Document) -> dict[str, Any]:
    """Everything the template names; pictures are markup made here, all else is text."""
    order = list(dict.fromkeys(mean["label"] for mean in document["means"]))
    boards = [(budget, _ladder(document, budget, order), mean_table(document, budget)) for budget in budgets(document)]
    return {
        "title": _title(document),
        "name": document["name"],
        "date": words.moment(document["date"]),
        "summary": _summary(document),
        "fairness": fairness(document),
        "boards": boards,
        "legend": _LEGEND,
        "curves": curves(document),
        "keys": [(key(rival), rival.name) for rival in rivals(document)],
        "times": time_table(document),
        "times_legend": _TIMES,
        "runs": run_table(document),
        "absent": absent(document),
        "methods": _methods(document),
        "circumstances": circumstances(document),
        "version": document["secateur"],
    }


# ------------------------------------------------------------------------------------------------------------ pictures


def rivals(document: Document) -> list[Rival]:
    """Every method with its means, a point a budget."""
    found: dict[str, list[Point]] = {}
    for mean in document["means"]:
        of = mean["values"]
        spread = of["accuracy.final"]
        finals = tuple(
            row["accuracy"]["final"]
            for row in document["rows"]
            if (row["label"], row["budget"]) == (mean["label"], mean["budget"])
        )
        point = Point(of["macs.share"]["mean"], spread["mean"], spread["sd"], finals)
        found.setdefault(mean["label"], []).append(point)
    return [Rival(label, tuple(points), style) for style, (label, points) in enumerate(found.items())]


def curves(document: Document) -> str | None:
    """Accuracy against MACs; None where there is only one budget."""
    every = rivals(document)
    if not any(len(rival.points) > 1 for rival in every):
        return None
    told = "; ".join(f"{r.name} {', '.join(f'{p.y:.1%} at {p.x:.0%}' for p in r.points)}" for r in every)
    return tradeoff(every, label=f"Accuracy against the MACs that remain: {told}", form=_whole)


def _ladder(document: Document, budget: str, order: Sequence[str]) -> str:
    style = {label: place for place, label in enumerate(order)}
    means = [mean for mean in document["means"] if mean["budget"] == budget]
    every = []
    for mean in means:
        spread = mean["values"]["accuracy.final"]
        finals = tuple(
            row["accuracy"]["final"]
            for row in document["rows"]
            if (row["label"], row["budget"]) == (mean["label"], budget)
        )
        every.append(Rival(mean["label"], (Point(0.0, spread["mean"], spread["sd"], finals),), style[mean["label"]]))
    return ladder(every, label=f"Final accuracy at {budget}, the best first", form=_whole)


# --------------------------------------------------------------------------------------------------------------- cells


def _which(row: Row) -> str:
    return f"{row['label']}, seed {row['seed']}, {row['budget']}"


def _timing(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return "not measured"
    return (
        f"batch of {latency['batch_size']}, {words.number_of(latency['threads'], 'thread')}, dense and pruned in "
        f"turns, {latency['repeats']} times; after all training, one run after another"
    )


def _cost(dense: Mapping[str, int]) -> str:
    return f"{words.count(dense['macs'])} MACs, {words.count(dense['params'])} parameters"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _seconds(spread: Mapping[str, Any] | None) -> str:
    return NONE if spread is None else f"{spread['mean']:.0f}" if spread["mean"] >= 10 else f"{spread['mean']:.2g}"


def _ratio(timed: Mapping[str, Any] | None) -> str:
    if timed is None:
        return NONE
    spread = timed["ratio"]
    return f"{spread['mean']:.2f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.2f}")


def _whole(value: float) -> str:
    return f"{100 * value:.4g}%"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _table(table: Table) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(_plain, table.head)) + " |", "| --- |" + " ---: |" * (len(table.head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(_plain, row)) + " |" for row in table.rows)])
