"""Commands that list what there is: models, methods, repairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli._base import AsJson, Plugin, Quiet, emit, show, tell

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from secateur.methods import MethodRow


def models(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the zoo: the networks of the pruning papers.

    They are those on which the papers report, for 32x32 images.

    \b
    Examples:
      secateur models
      secateur models --json
    """
    from secateur import report
    from secateur._hints import readable
    from secateur.models import MODELS

    if quiet and not as_json:
        return show("\n".join(MODELS))
    rows = [
        {
            "name": row.name,
            "params": row.params,
            "macs": row.macs,
            "input_size": list(row.input_size),
            "summary": row.summary,
            "paper": row.paper,
            "year": row.year,
        }
        for row in MODELS.values()
    ]
    cells = [(row.name, readable(row.params), readable(row.macs), row.summary) for row in MODELS.values()]
    columns = ("model", "params", "MACs", "what it is")
    emit({"models": rows}, as_json, lambda: report.listing(columns, cells, right=columns[1:3]))


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One method, with its settings.", show_default=False)
    ] = None,
    plugin: Plugin = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the pruning methods, or show one with its settings.

    Their names are what `prune --method` and a recipe's method take. Methods of installed packages (entry points of
    the group secateur.methods) are among them.

    \b
    Examples:
      secateur methods
      secateur methods bwcp
      secateur methods --plugin mine.py
      secateur methods --json
    """
    from secateur.methods import known, method, plug_in, unloadable

    for each in plugin:
        plug_in(each)
    if name is not None:
        row = method(name)
        settings = _settings(row.config)
        if quiet and not as_json:
            return show("\n".join(s["name"] for s in settings))
        return emit(_method(row) | {"settings": settings}, as_json, lambda: _method_table(row, settings))
    for sentence in unloadable().values():
        tell(f"warning: {sentence}")
    if quiet and not as_json:
        return show("\n".join(row.name for row in known()))
    emit([_method(row) for row in known()], as_json, lambda: _methods_table(known()))


def _methods_table(rows: Sequence[MethodRow]) -> RenderableType:
    """How close each is to its paper is told of one method at a time."""
    from rich.text import Text

    lines = [(row.name, _needs(row), row.acts, _source(row)) for row in rows]
    foot = Text("\nsecateur methods NAME: its paper, how close it is to it, and its settings.")
    return _two_lines(("method", "needs", "acts", "paper (arXiv)"), lines, [row.summary for row in rows], foot)


def _two_lines(
    heads: Sequence[str], lines: Sequence[Sequence[str]], summaries: Sequence[str], foot: RenderableType
) -> RenderableType:
    """Two lines an entry: its columns, the name and where it is from among them, and below them the idea."""
    from rich import box
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    widths = [max(len(line[k]) for line in (heads, *lines)) for k in range(len(heads))]
    styles = ("bold", *[""] * (len(heads) - 2), "dim")
    parts: list[RenderableType] = []
    for line, summary in zip(lines, summaries, strict=True):
        entry = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for width, style in zip(widths, styles, strict=True):
            entry.add_column(width=width, no_wrap=True, style=style)
        entry.add_row(*(Text(cell) for cell in line))
        parts += [entry, Padding(Text(summary, "dim"), (0, 0, 0, 2))]
    top = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for width, head in zip(widths, heads, strict=True):
        top.add_column(head, width=width, no_wrap=True)
    return Group(top, *parts, foot)


def _source(row: MethodRow) -> str:
    return ", ".join(filter(None, (str(row.year or ""), row.arxiv)))


def _needs(row: MethodRow) -> str:
    """What it learns from, in a word or three."""
    return {"calibration": "images and labels" if row.labels else "images"}.get(row.needs, row.needs)


def _method(row: MethodRow) -> dict[str, Any]:
    keys = ("name", "summary", "paper", "year", "arxiv", "needs", "labels", "acts", "granularity", "fidelity")
    return {key: getattr(row, key) for key in keys}


def _settings(kind: type[BaseModel]) -> list[dict[str, str]]:
    from secateur._settings import settings

    return [{"name": s.path, "default": s.default, "allowed": s.allowed, "meaning": s.meaning} for s in settings(kind)]


def _method_table(row: MethodRow, settings: list[dict[str, str]]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    paper = ", ".join(filter(None, (row.paper, str(row.year or ""), f"arXiv {row.arxiv}" if row.arxiv else "")))
    lines = [
        Text.assemble((row.name, "bold"), f"  {row.summary}"),
        Text(f"Paper: {paper or 'none'}"),
        Text(f"Acts {row.acts}; needs {_needs(row)}; removes {row.removes}."),
        Text(f"Fidelity: {row.fidelity}"),
    ]
    return Group(*lines, *_settings_told(settings))


def _settings_told(settings: Sequence[dict[str, str]]) -> list[RenderableType]:
    """Two lines a setting: its name and default, and below them what it means and may be."""
    from rich.padding import Padding
    from rich.text import Text

    if not settings:
        return [Text("It has no settings.")]
    parts: list[RenderableType] = [Text("Settings, with their defaults:")]
    for setting in settings:
        given = setting["default"].strip("'")
        default = (" = ", given) if given else (" ", ("(must be given)", "dim"))
        parts.append(Text.assemble("  ", (setting["name"], "bold"), *default))
        parts.append(Padding(Text(f"{setting['meaning']} ({setting['allowed']})", "dim"), (0, 0, 0, 6)))
    return parts


def repairs(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One repair, with its settings.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the repairs, or show one with its settings.

    A repair adapts the remaining weights before the cut.

    Their names are what `--repair` and a recipe's repair take.

    \b
    Examples:
      secateur repairs
      secateur repairs least_squares
      secateur repairs --json
    """
    from secateur._hints import choose
    from secateur.repair import METHOD_OF, REPAIRS

    keys = ("name", "summary", "paper", "year", "arxiv", "needs", "fidelity")
    rows = [
        {key: getattr(row, key) for key in keys}
        | {"also": [alias for alias, name in METHOD_OF.items() if name == row.name]}
        | {"settings": _settings(row.factory.Config)}
        for row in REPAIRS
    ]
    if name is not None:
        wanted = choose(METHOD_OF.get(name, name), [row.name for row in REPAIRS], "repair")
        one = next(row for row in rows if row["name"] == wanted)
        if quiet and not as_json:
            return show("\n".join(s["name"] for s in one["settings"]))
        return emit(one, as_json, lambda: _repair_table(one))
    if quiet and not as_json:
        return show("\n".join(row.name for row in REPAIRS))
    emit({"repairs": rows}, as_json, lambda: _repairs_table(rows))


def _repairs_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    from rich.text import Text

    lines = [
        (", ".join([r["name"], *r["also"]]), _images(r["needs"]), f"{r['year']}, {r['arxiv']}".rstrip(", "))
        for r in rows
    ]
    foot = Text("\nsecateur repairs NAME: its paper, how close it is to it, and its settings.")
    return _two_lines(("repair", "needs", "paper (arXiv)"), lines, [r["summary"] for r in rows], foot)


def _images(needs: str) -> str:
    return "images" if needs == "calibration" else needs


def _repair_table(row: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    also = f" (also {', '.join(row['also'])})" if row["also"] else ""
    source = f", arXiv {row['arxiv']}" if row["arxiv"] else ""
    return Group(
        Text.assemble((row["name"], "bold"), f"{also}  {row['summary']}"),
        Text(f"Paper: {row['paper']}, {row['year']}{source}"),
        Text(f"Needs {_images(row['needs'])}."),
        Text(f"Fidelity: {row['fidelity']}"),
        *_settings_told(row["settings"]),
    )
