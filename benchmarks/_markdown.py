"""What all pages of results are made with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


def table(head: list[str], rows: Iterable[Iterable[Any]], *, words: bool = False) -> str:
    """A Markdown table; columns after the first are numbers or short words, or with `words` sentences."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + (" --- |" if words else " ---: |") * (len(head) - 1)]
    lines += [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows
    ]
    return "\n".join(lines)


def folded(summary: str, *parts: str) -> str:
    """Parts of a page that few need: one line that opens them, on the site and on GitHub."""
    return "\n\n".join([f'<details markdown="1">\n<summary>{summary}</summary>', *parts, "</details>"])


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def circumstances(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    load = result.get("load") or 0.0
    busy = load > result["threads"] * result.get("jobs", 1) + 1
    shared = f" Other work shared the cores (a load of {load:.0f}): seconds are longer than alone." if busy else ""
    return (
        f"Measured {result['date'][:10]} with `{result['command']}`: {versions}, Python {result['python']}, "
        f"{result['device']}, {result['threads']} thread{'s' * (result['threads'] != 1)}.{shared}"
    )


def foot(generator: str, results: Iterable[dict[str, Any]], *, part: str = "This page") -> str:
    """The last line of a page that a program writes: which program, and from when its figures are."""
    dated = sorted({(result["date"][:10], result.get("commit", "")) for result in results})
    told = ", ".join(date + (f" (commit `{commit}`)" if commit else "") for date, commit in dated)
    figures = f" Figures of {told}: what changed later is not in them." if dated else ""
    return f"---\n\n*{part} is made by `{generator}`.{figures}*"


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
