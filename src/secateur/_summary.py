"""What `print` and a notebook show of a graph and a result: a few lines and one table, as text and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

#: Rows of a printed table; the rest is a line.
ROWS = 24


@dataclass(frozen=True)
class Summary:
    """Lines above, a table (the first column to the left, others to the right), and lines below."""

    head: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    foot: tuple[str, ...] = ()
    more: str = ""  # what tells the rest, where rows are left out

    def shown(self) -> tuple[Sequence[tuple[str, ...]], list[str]]:
        """The rows that are shown, and a line about those that are not."""
        if len(self.rows) <= ROWS:
            return self.rows, []
        return self.rows[: ROWS - 1], [f"and {len(self.rows) - ROWS + 1} more{self.more}"]

    def text(self) -> str:
        """As text of fixed width."""
        shown, left = self.shown()
        table = [self.columns, *shown]
        widths = [max(len(row[k]) for row in table) for k in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        return "\n".join([*self.head, *(line.rstrip() for line in lines if shown), *left, *self.foot])

    def html(self) -> str:
        """As a fragment of HTML."""
        shown, left = self.shown()
        head = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in shown)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if shown else ""
        above, below = (_paragraphs(lines) for lines in (self.head, [*left, *self.foot]))
        return f"<div>{above}{table}{below}</div>"


def _paragraphs(lines: Sequence[str]) -> str:
    return f"<p>{'<br>'.join(map(escape, lines))}</p>" if lines else ""
