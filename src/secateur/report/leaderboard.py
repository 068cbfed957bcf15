"""`write_leaderboard`: a comparison's leaderboard as JSON for programs, Markdown for repositories, HTML for people.

All of it is made from the document alone; names and sentences in it are foreign, and are escaped in both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur._files import write_json, write_text
from secateur.report.html import render
from secateur.report.page import words
from secateur.report.page.fairness import fairness
from secateur.report.page.inputs import TaskUsed
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
    "begins with a new network there is none. Against the best: of the pruned networks, by the test that is named "
    "above; a tie is no difference beyond chance. Bound used: the budget is kept, and used up to a hundredth. Faster: "
    "time of the dense network over that of the pruned one, by runtime, all networks timed in turns; in brackets the "
    "95% interval, and no faster where it contains 1. The row dense is the whole network after as many epochs."
)
_TIMES = (
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
    sign = -1 if _task(document).higher_is_better else 1
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
    means, place, scale = means_at(document, budget), places(document, budget), _scale(document)
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
    return Table(head, tuple(_run_row(row, _scale(document)) for row in rows))


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


def percents(spread: Mapping[str, Any] | None, digits: int = 2, *, alone: bool = False, scale: float = 100.0) -> str:
    """A mean of fractions with its standard deviation: "58.51 ± 0.48"; `alone`: without it.

    scale: what figures are multiplied by; 1 where they are no fractions.
    """
    if spread is None:
        return NONE
    mean = f"{scale * spread['mean']:.{digits}f}"
    return mean if alone or spread["sd"] is None else f"{mean} ± {scale * spread['sd']:.{digits}f}"


def _task(document: Document) -> TaskUsed:
    """What the networks are for; leaderboards of before do not say, and are of classification."""
    return TaskUsed.model_validate(document.get("task") or {})


def _scale(document: Document) -> float:
    """Shares of 1 are written as percentages, other headlines as they are."""
    return 100.0 if _task(document).unit == "share" else 1.0


def _form(document: Document) -> Callable[[float], str]:
    return _whole if _task(document).unit == "share" else words.figure


def _title(document: Document) -> str:
    recipe = document["recipe"]
    data = words.data_set(recipe["data"]["name"])
    number = sum(of["label"] != WHOLE for of in document["methods"])
    return f"{words.network(recipe['model']['reference'])} on {data}: {words.number_of(number, 'method')} compared"


def _summary(document: Document) -> list[str]:
    """Who comes first at each budget, in a sentence that does not say more than was measured."""
    said, task = [], _task(document)
    which = "highest" if task.higher_is_better else "lowest"
    of = "" if task.headline == "accuracy" else f" {task.headline}"
    for budget in budgets(document):
        means = [mean for mean in means_at(document, budget) if mean["label"] != WHOLE]
        best = means[0]
        unit = {"share": "%", "dB": " dB"}.get(task.unit, "")
        seeds = words.number_of(len(best["seeds"]), "seed")
        final = f"{percents(best['values']['accuracy.final'], scale=_scale(document))}{unit} ({seeds})"
        text = f"At {budget}, {best['label']} has the {which} mean{of}, {final}"
        said.append(f"{text}{_ties(document, budget, [mean['label'] for mean in means[1:]])}.")
    missing = len(document["failed"]) + len(document["missing"])
    if missing:
        said.append(f"{words.number_of(missing, 'run')} of {missing + len(document['rows'])} failed or did not finish.")
    return said or ["No run is finished yet."]


def _ties(document: Document, budget: str, others: Sequence[str]) -> str:
    """Who is not told apart from the best, by which test."""
    place = places(document, budget)
    tied = [label for label in others if place.get(label) == "tie"]
    if not others or not place:
        return ""
    if not tied and any(place.get(label) == NONE for label in others):
        return "; one seed orders nothing"
    tested = [row for row in document["paired"]["budgets"][budget]["others"].values() if row["p"] is not None]
    tests = " and ".join(sorted({row["test"] for row in tested}))
    how = f"({tests}, Holm over {words.number_of(len(tested), 'network')}, 5%)"
    if not tied:
        return f", and all others are significantly below it {how}"
    return f"; not significantly different from it: {words.several(tied, 30)} {how}"


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
        "quality": _task(document).title,
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
    """The headline against MACs; None where there is only one budget."""
    every, task, form = rivals(document), _task(document), _form(document)
    if not any(len(rival.points) > 1 for rival in every):
        return None
    told = "; ".join(f"{r.name} {', '.join(f'{task.shown(p.y)} at {p.x:.0%}' for p in r.points)}" for r in every)
    label = f"{task.title} against the MACs that remain: {told}"
    return tradeoff(every, label=label, what=task.headline, form=form, scale=_scale(document))


def _ladder(document: Document, budget: str, order: Sequence[str]) -> str:
    style = {label: place for place, label in enumerate(order)}
    every = []
    for mean in means_at(document, budget):
        spread = mean["values"]["accuracy.final"]
        finals = tuple(
            row["accuracy"]["final"]
            for row in document["rows"]
            if (row["label"], row["budget"]) == (mean["label"], mean["budget"])
        )
        every.append(Rival(mean["label"], (Point(0.0, spread["mean"], spread["sd"], finals),), style[mean["label"]]))
    label = f"Final {_task(document).headline} at {budget}, the best first"
    return ladder(every, label=label, form=_form(document), scale=_scale(document))


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


def _whole(value: float) -> str:
    return f"{100 * value:.4g}%"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _table(table: Table) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(_plain, table.head)) + " |", "| --- |" + " ---: |" * (len(table.head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(_plain, row)) + " |" for row in table.rows)])
