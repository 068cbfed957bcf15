"""A leaderboard for papers and programs: CSV, LaTeX, BibTeX and figures beside the JSON, Markdown and HTML.

Below `secateur.compare`, which writes them at the end of a comparison; made from the document alone.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from secateur._files import write_text
from secateur.report.board.tables import (
    WHOLE,
    Document,
    Table,
    budgets,
    mean_table,
    means_at,
    scale_of,
    task_of,
)

CSV, LATEX, BIBTEX, FIGURE = "leaderboard.csv", "leaderboard.tex", "methods.bib", "leaderboard-{number}"
_WHAT = "The leaderboard"
_ESCAPED = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$",
    "±": r"$\pm$", "†": r"\dag{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def write_exports(folder: Path, document: Document) -> list[Path]:
    """Write leaderboard.csv, leaderboard.tex, methods.bib and, with matplotlib, a figure (SVG, PDF) a budget.

    Raises:
        RunError: a file cannot be written.
    """
    texts = {CSV: csv_of(document), LATEX: latex_of(document), BIBTEX: bibtex_of(document)}
    for name, text in texts.items():
        write_text(folder / name, text, what=_WHAT)
    return [folder / name for name in texts] + list(_figures(folder, document))


def flat(rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with one level of keys, "accuracy.final", for tables of programs; lists of words become one text."""
    return [dict(_leaves(row)) for row in rows]


def csv_of(document: Document) -> str:
    """Every finished run, a line each."""
    rows = flat(document["rows"])
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return out.getvalue()


def latex_of(document: Document) -> str:
    """A booktabs table of means for every budget; needs \\usepackage{booktabs}."""
    return "\n".join(_latex(budget, mean_table(document, budget)) for budget in budgets(document))


def bibtex_of(document: Document) -> str:
    """The papers of the methods that are compared; titles and years are as the registry has them."""
    entries: dict[str, str] = {}
    for of in document["methods"]:
        if of["label"] == WHOLE or not of["arxiv"]:
            continue
        key = re.sub(r"\W", "", of["method"]) + str(of["year"])
        fields = {"title": f"{{{of['paper']}}}", "year": of["year"], "eprint": of["arxiv"], "archivePrefix": "arXiv"}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        entries[key] = "\n".join([f"@misc{{{key},", *lines, "}"])
    return "\n\n".join(entries.values()) + ("\n" if entries else "")


def _latex(budget: str, table: Table) -> str:
    rows = [" & ".join(map(_escaped, row)) + r" \\" for row in table.rows]
    return "\n".join(
        [
            f"% {budget}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            " & ".join(map(_escaped, table.head)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(_ESCAPED.get(letter, letter) for letter in " ".join(text.split()))


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", "; ".join(map(str, inner)) if isinstance(inner, list) else inner


def _figures(folder: Path, document: Document) -> Iterator[Path]:
    """A picture for every budget: mean, deviation and seeds of each method, and the whole network as a line."""
    try:
        from matplotlib.figure import Figure
    except ImportError:  # an extra; the HTML page has its own pictures
        return
    task, scale = task_of(document), scale_of(document)
    unit = "%" if task.unit == "share" else task.unit
    for number, budget in enumerate(budgets(document), 1):
        means = [mean for mean in means_at(document, budget) if mean["label"] != WHOLE]
        figure = Figure(figsize=(6.4, 1.2 + 0.28 * len(means)), layout="constrained")
        axes = figure.add_subplot()
        for place, mean in enumerate(reversed(means)):
            final = mean["values"]["accuracy.final"]
            axes.errorbar(
                scale * final["mean"], place, xerr=scale * (final["sd"] or 0), fmt="o", color="#1f5f8b", capsize=3
            )
            own = (r for r in document["rows"] if (r["label"], r["budget"]) == (mean["label"], budget))
            axes.plot([scale * r["accuracy"]["final"] for r in own], [place] * len(mean["seeds"]), "|", color="#777777")
        for mean in document["means"]:
            if mean["label"] == WHOLE:
                axes.axvline(
                    scale * mean["values"]["accuracy.final"]["mean"], color="#b04a2f", linestyle="--", label=WHOLE
                )
                axes.legend(loc="lower right")
        axes.set_yticks(range(len(means)), [mean["label"] for mean in reversed(means)])
        axes.set_xlabel(f"final {task.headline} at {budget}" + ("" if unit == "number" else f", in {unit}"))
        for ending in ("svg", "pdf"):
            path = folder / f"{FIGURE.format(number=number)}.{ending}"
            figure.savefig(path, metadata={"Date": None} if ending == "svg" else {"CreationDate": None})
            yield path
