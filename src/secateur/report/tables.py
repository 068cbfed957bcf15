"""Tables for the terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from secateur._hints import readable
from secateur._summary import Summary
from secateur.budget import Budget
from secateur.errors import BudgetError
from secateur.graph import Graph, Verification
from secateur.graph.explain import shorten, shorten_reasons
from secateur.references import Loaded
from secateur.report.documents import costs, group_rows
from secateur.surgery import Result

ROWS = 60  # a longer table is cut short unless asked for
_BAR = 16  # columns of the widest group's bar
_NAMES = {
    "flops": "FLOPs (MACs)",
    "params": "parameters",
    "activations": "activations",
    "peak": "peak activations",
    "latency": "predicted latency, ms",
}


def graph_tables(loaded: Loaded, graph: Graph, *, every: bool = False, brief: bool = False) -> RenderableType:
    """Groups, totals, frozen widths, unsupported operators and timings.

    loaded: the model as it was referred to. graph: its trace. every: all rows. brief: the totals alone.
    """
    rows = group_rows(graph)
    shown = rows if every else rows[:ROWS]
    table = _table("group", "width", "members", "MACs", "share", "removal")
    for row in shown:
        exact = Text("exact", "green") if row["exact"] else Text("inexact", "yellow")
        figures = (str(row["width"]), str(row["members"]), readable(row["macs"]), _percent(row["macs_share"]))
        table.add_row(Text(row["name"]), *figures, exact)
    parts: list[RenderableType] = [_title(loaded)]
    if not brief:
        parts += [table] if rows else [Text("No group of channels can be pruned.", "yellow")]
        parts += _omitted(len(rows) - len(shown))
        parts.append(Text("MACs of a group: those gone without it. A layer between two groups counts for both.", "dim"))
    parts.append(_totals(graph, rows))
    if not brief:
        parts += _inexact(r for row in rows for r in row["inexact"])
        parts += _frozen(graph, graph.notes)
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in graph.timings.items())
        parts += [Text(f"Time: {seconds}", "dim")] if seconds else []
    return Group(*parts)


def result_tables(loaded: Loaded, result: Result, files: Mapping[str, str], *, every: bool = False) -> RenderableType:
    """Cost before and after, the widths of the groups, the proof, and what had to be settled.

    loaded: the model as it was referred to. result: the cut. files: what was written, by kind. every: all rows.
    """
    return Group(
        _title(loaded),
        _before_after(result),
        *_budget(result),
        *_latency(result),
        *_widths(result, every=every),
        *(_proof(result.verification)),
        *_lines("Settled (a size written in code): ", result.settled),
        *_frozen(result.graph, result.notes),
        *(Text(f"Saved: {what} in {path}") for what, path in files.items()),
    )


def listing(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """A plain list.

    columns: their heads. rows: the cells. right: the columns of numbers.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in right
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def fitting(rows: Sequence[Sequence[str]], columns: int | None = None) -> int:
    """How many of the first columns of a `listing` stand beside each other without a cell in two lines; 2 at least.

    rows: heads and cells. columns: of the terminal; None: of this one.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = (Console().width if columns is None else columns) - 2
    shown = 0
    while shown < len(widths) and sum(widths[: shown + 1]) + 3 * shown <= left:
        shown += 1
    return max(2, shown)


def summed_up(found: Summary) -> RenderableType:
    """A summary for a terminal: no word is broken, and of the table as many columns as fit, but three at least."""
    rows, left = found.shown()
    parts: list[RenderableType] = [Text(line) for line in found.head]
    if rows:
        shown = max(3, fitting([found.columns, *rows]))
        parts.append(listing(found.columns[:shown], [row[:shown] for row in rows], right=found.columns[1:]))
    return Group(*parts, *(Text(line) for line in (*left, *found.foot)))


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _title(loaded: Loaded) -> Text:
    shapes = ", ".join("x".join(map(str, shape)) for shape in loaded.shapes)
    return Text.assemble((loaded.reference, "bold"), f"  {type(loaded.model).__name__}, input {shapes}")


def _totals(graph: Graph, rows: Sequence[Mapping[str, object]]) -> Text:
    cost = graph.cost()
    channels = sum(group.width for group in graph.groups)
    inexact = sum(1 for row in rows if not row["exact"])
    return Text(
        f"In all: {len(rows)} groups ({inexact} inexact), {channels} channels, {readable(cost.macs)} MACs, "
        f"{readable(cost.params)} parameters, {readable(cost.activations)} activations "
        f"(peak {readable(cost.peak_activations)})."
    )


def _before_after(result: Result) -> Table:
    table = _table("cost", "before", "after", "remains")
    before, after = costs(result.before), costs(result.averaged)
    for key, whole in before.items():
        form = _milliseconds if key == "latency" else _grouped
        table.add_row(_NAMES[key], form(whole), form(after[key]), _percent(after[key] / whole if whole else 1.0))
    widths = result.plan.widths
    full = sum(group.width for group in result.graph.groups)
    kept = sum(widths.values())
    table.add_row("channels in groups", _grouped(full), _grouped(kept), _percent(kept / full if full else 1.0))
    return table


def _budget(result: Result) -> list[RenderableType]:
    """What was asked for and what was reached, in the unit it was asked in."""
    budget = result.plan.provenance.get("budget")
    try:
        bounds = Budget.parse(budget).bounds if isinstance(budget, dict) else ()  # ratios, or a plan from elsewhere
    except BudgetError:
        bounds = ()
    before, after = costs(result.before), costs(result.averaged)
    known = {key: bound for key, bound in bounds if key in before}
    told = [
        f"{key} {after[key] / before[key] if bound <= 1 and before[key] else after[key]:.4g} of at most {bound:.4g}"
        for key, bound in known.items()
    ]
    return [Text(f"Budget: {', '.join(told)}.", "bold")] if told else []


def _latency(result: Result) -> list[RenderableType]:
    """What is to be known of a latency that was predicted."""
    said = result.plan.provenance.get("latency")
    return [Text(str(said["note"]), "yellow")] if isinstance(said, dict) and "note" in said else []


def _widths(result: Result, *, every: bool) -> list[RenderableType]:
    """Channels of every group before and after, with bars where the terminal has room for them."""
    kept = result.plan.widths
    groups = result.graph.groups if every else result.graph.groups[:ROWS]
    most = max((group.width for group in groups), default=1)
    heads = ("group", "before", "after", "remains")
    rows = [
        (g.name, str(g.width), str(kept[g.name]), _percent(kept[g.name] / g.width if g.width else 1.0)) for g in groups
    ]
    bars = fitting([(*heads, " " * _BAR), *((*row, "") for row in rows)]) > len(heads)
    table = _table(*heads)
    if bars:
        table.add_column(width=_BAR, no_wrap=True)
    for group, row in zip(groups, rows, strict=True):
        left = kept[group.name]
        long = max(1, round(_BAR * group.width / most))
        bar = ProgressBar(group.width, left, width=long, complete_style="cyan", finished_style="dim")
        table.add_row(Text(row[0]), *row[1:], *([bar] if bars else []), style="dim" if left == group.width else "")
    return [table, *_omitted(len(result.graph.groups) - len(groups))]


def _proof(proof: Verification | None) -> list[RenderableType]:
    if proof is None:
        return [Text("Not verified (--no-verify).", "yellow")]
    if proof.exact:
        error = f"relative error {proof.max_relative_error:.1e}, tolerance {proof.tolerance:.0e}"
        return [
            Text(f"Verified, exact: the cut network computes what the masked original computes ({error}).", "green")
        ]
    error = f"relative error {proof.structural_error:.1e}, tolerance {proof.tolerance:.0e}"
    line = f"Verified, inexact: equal to the original with these channels removed, not masked ({error}):"
    return [Text(line, "yellow"), *(Text(f"  {reason}") for reason in shorten_reasons(proof.reasons))]


def _frozen(graph: Graph, notes: Sequence[str]) -> list[RenderableType]:
    """Widths that stay, by reason; operators without a rule; what else is to be read."""
    reasons: dict[str, list[str]] = {}
    for row in graph.frozen:
        reasons.setdefault(row.reason, []).append(f"{row.name} ({row.width})")
    lines = [f"{', '.join(shorten(names))}: {reason}" for reason, names in reasons.items()]
    parts = _lines("Cannot be pruned: ", lines)
    operators: dict[str, list[str]] = {}
    for call in graph.unsupported:
        operators.setdefault(call.operator, []).append(call.module or "the model")
    lines = [f"{name} in {', '.join(shorten(where))}" for name, where in operators.items()]
    parts += _lines("Operators without a rule (what they touch is frozen): ", lines)
    return parts + _lines("Note: ", notes)


def _inexact(reasons: Iterable[str]) -> list[RenderableType]:
    return _lines("Inexact (removal changes what other channels compute): ", shorten_reasons(reasons))


def _lines(title: str, lines: Sequence[str]) -> list[RenderableType]:
    if len(lines) < 2:
        return [Text(title + line) for line in lines]
    shown = [Text(f"  {line}") for line in lines[:ROWS]]
    return [Text(title.rstrip()), *shown, *_omitted(len(lines) - len(shown))]


def _omitted(count: int) -> list[RenderableType]:
    return [Text(f"  ... and {count} more; --all shows them.", "dim")] if count > 0 else []


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1000:,.3f}"


def _grouped(number: int) -> str:
    return f"{number:,}"
