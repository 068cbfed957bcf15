"""`write_leaderboard`: a comparison's leaderboard as JSON for programs, Markdown for repositories, HTML for people.

All of it is made from the document alone; names and sentences in it are foreign, and are escaped in both.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from secateur._files import write_json, write_text
from secateur.report.board.pictures import curves, ladder_of, rivals
from secateur.report.board.said import absent, cards, circumstances, commands, methods, summary, title
from secateur.report.board.tables import (
    TIMES,
    Document,
    Table,
    kinds,
    legend,
    mean_table,
    run_table,
    task_of,
    time_table,
)  # fmt: skip
from secateur.report.html import render
from secateur.report.page import described, words
from secateur.report.page.fairness import fairness
from secateur.report.page.rivals import key

JSON, MARKDOWN, HTML = "leaderboard.json", "leaderboard.md", "leaderboard.html"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


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
    parts = [f"# {_plain(title(document))}", *(_plain(line) for line in summary(document))]
    parts += ["## What is held equal", "\n".join(f"- {_plain(line)}" for line in fairness(document))]
    for kind, members in kinds(document).items():
        for budget in members:
            parts += [f"## {_plain(f'{kind}: {budget}')}", _table(mean_table(document, budget))]
    if document["means"]:
        parts += [_plain(legend(document)), "## Time, in seconds", _table(time_table(document)), _plain(TIMES)]
    if document["rows"]:
        parts += ["## Every run", _table(run_table(document))]
    if document["failed"] or document["missing"]:
        parts += ["## Runs that failed or are missing", "\n".join(f"- {_plain(line)}" for line in absent(document))]
    parts += ["## The methods", "\n".join(f"- {_plain(name)}: {_plain(text)}" for name, text, _ in methods(document))]
    parts += ["## How it was measured", "\n".join(f"- {_plain(f'{k}: {v}')}" for k, v in circumstances(document))]
    return "\n\n".join(parts) + "\n"


def _content(document: Document) -> dict[str, Any]:
    """Everything the template names; pictures are markup made here, all else is text."""
    order = list(dict.fromkeys(mean["label"] for mean in document["means"]))
    boards = [
        (f"{kind}: {budget}", ladder_of(document, budget, order), mean_table(document, budget))
        for kind, members in kinds(document).items()
        for budget in members
    ]
    return {
        "title": title(document),
        "name": document["name"],
        "date": words.moment(document["date"]),
        "cards": cards(document),
        "summary": summary(document),
        "fairness": fairness(document),
        "quality": task_of(document).title,
        "headline": task_of(document).headline,
        "boards": boards,
        "legend": legend(document),
        "curves": curves(document),
        "keys": [(key(rival), rival.name) for rival in rivals(document)],
        "times": time_table(document),
        "times_legend": TIMES,
        "runs": run_table(document),
        "absent": absent(document),
        "methods": methods(document),
        "commands": commands(document),
        "data": described.data(document["data"] or document["recipe"]["data"]),
        "circumstances": [line for line in circumstances(document) if line[0] not in ("Commands", "Data")],
        "version": document["secateur"],
    }


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _table(table: Table) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(_plain, table.head)) + " |", "| --- |" + " ---: |" * (len(table.head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(_plain, row)) + " |" for row in table.rows)])
