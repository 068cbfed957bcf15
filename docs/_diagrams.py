"""Pictures of the documentation as SVG: coupled channels in a residual block, and each method straight after the cut.

`docs/tables.py` writes them with the pages. Colours are readable on white and on dark; those that cannot be are drawn
twice, and the site shows one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from _by_method import Measured
from _method_pages import has_figure
from _one_shot_page import averages

TEAL, AMBER, GREY = "#0d9488", "#d97706", "#8a8f98"
#: Background of boxes, lines and letters, of those that go, by theme.
THEMES = {"light": ("#ffffff", "#30363d", "#c9ced6"), "dark": ("#23272f", "#d5d9e0", "#4b525e")}


def pictures(folder: Path, found: Measured) -> dict[Path, str]:
    """Every picture by path."""
    made = {folder / f"block-{theme}.svg": block(*colours) for theme, colours in THEMES.items()}
    if found.one_shot is None:
        return made
    means = averages(found.one_shot["rows"])
    for name in dict.fromkeys(row["method"] for row in found.one_shot["rows"]):
        if has_figure(name, found):
            made[folder / "methods" / f"{name}.svg"] = _after_the_cut(name, means, found.dense)
    return made


def _svg(width: int, height: int, parts: Iterable[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    style = 'font-family="system-ui, sans-serif" font-size="13">'
    return f"{head}{style}\n<title>{escape(title)}</title>\n" + "\n".join(parts) + "\n</svg>\n"


def _text(x: float, y: float, words: str, colour: str, *, anchor: str = "middle", size: int = 13) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(words)}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashes: str = "", width: float = 2) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashed}/>'


# ------------------------------------------------------------------------------------------------ a residual block

#: Which of the eight channels of the two groups go in the picture.
_STREAM_GO, _INNER_GO = {2, 5}, {1, 4, 6}
_CELL, _LEFT = 15, 58


def block(paper: str, ink: str, gone: str) -> str:
    """A residual block: the stream, whose channels conv2 and the shortcut share by the sum, and the inner group."""
    rows = {"in": 34, "conv1": 92, "inner": 150, "conv2": 208, "sum": 266, "out": 324}
    parts = [_arrows(ink), _cells(rows["in"], TEAL, _STREAM_GO, gone)]
    parts.append(_box(rows["conv1"], "conv1", paper, ink))
    parts.append(_cells(rows["inner"], AMBER, _INNER_GO, gone))
    parts.append(_box(rows["conv2"], "conv2", paper, ink))
    middle = _LEFT + 4 * _CELL
    shortcut = [
        (_LEFT - 6, rows["in"] + 7),
        (40, rows["in"] + 7),
        (40, rows["sum"] + 12),
        (middle - 16, rows["sum"] + 12),
    ]
    parts.append(_line(shortcut, TEAL, width=2.5))
    parts.append(
        f'<circle cx="{middle}" cy="{rows["sum"] + 12}" r="13" fill="{paper}" stroke="{ink}" stroke-width="1.5"/>'
    )
    parts.append(_text(middle, rows["sum"] + 17, "+", ink, size=17))
    parts.append(_cells(rows["out"], TEAL, _STREAM_GO, gone))
    told = [
        (rows["in"], TEAL, "group 1: the shortcut and conv2 are", "added, so they share their channels"),
        (rows["inner"], AMBER, "group 2: made by conv1,", "read by conv2 alone"),
        (rows["sum"], ink, "channel i of conv2 + channel i of the", "shortcut: both stay, or both go"),
        (rows["out"], GREY, "grey: removed, from every", "tensor of the group"),
    ]
    for y, colour, *lines in told:
        parts += [
            _text(200, y + 6 + 19 * line, words, colour, anchor="start", size=15) for line, words in enumerate(lines)
        ]
    return _svg(480, 356, parts, "One residual block and its two groups of coupled channels")


def _cells(y: float, colour: str, go: set[int], gone: str) -> str:
    cells = []
    for channel in range(8):
        fill = gone if channel in go else colour
        cells.append(f'<rect x="{_LEFT + channel * _CELL}" y="{y}" width="12" height="14" rx="2" fill="{fill}"/>')
    return "".join(cells)


def _box(y: float, words: str, paper: str, ink: str) -> str:
    size = f'width="{8 * _CELL + 13}" height="30" rx="5" fill="{paper}" stroke="{ink}" stroke-width="1.5"'
    box = f'<rect x="{_LEFT - 8}" y="{y}" {size}/>'
    return box + _text(_LEFT + 4 * _CELL - 1, y + 20, words, ink)


def _arrows(ink: str) -> str:
    middle = _LEFT + 4 * _CELL
    return "".join(
        _line([(middle, a), (middle, b)], ink, width=1.5)
        for a, b in ((50, 92), (122, 149), (165, 208), (238, 265), (291, 323))
    )


# ------------------------------------------------------------------------------------------------ after the cut

_WIDTH, _HEIGHT, _X0, _X1, _Y0, _Y1 = 560, 260, 52, 395, 16, 214


def _after_the_cut(name: str, means: dict[tuple[str, str, float], float], dense: float) -> str:
    """Accuracy over FLOPs removed: the method alone and with its best repair, random channels, the whole network."""
    lefts = sorted({left for method, _, left in means if method == name}, reverse=True)
    repairs = {repair for method, repair, _ in means if method == name}
    best = max(repairs, key=lambda repair: sum(means.get((name, repair, left), 0.0) for left in lefts))
    lines = [("random", "none", GREY, "3 3")] if name != "random" else []
    lines += [("random", best, GREY, "")] if best != "none" and name != "random" else []
    lines += [(name, "none", TEAL, "3 3")] + ([(name, best, TEAL, "")] if best != "none" else [])
    parts = []
    for tick in range(0, 101, 20):
        y = _y(tick / 100)
        parts += [
            _line([(_X0, y), (_X1, y)], GREY, width=0.4),
            _text(_X0 - 8, y + 4, f"{tick}%", GREY, anchor="end", size=12),
        ]
    parts += [_text(_x(left, lefts), _Y1 + 18, f"{100 * (1 - left):.0f}%", GREY, size=12) for left in lefts]
    parts.append(_text((_X0 + _X1) / 2, _HEIGHT - 8, "FLOPs removed", GREY, size=12))
    parts.append(_line([(_X0, _y(dense)), (_X1, _y(dense))], GREY, dashes="8 4", width=1))
    labels = [(_y(dense), "dense", GREY)]
    for method, repair, colour, dashes in lines:
        points = [
            (_x(left, lefts), _y(means[method, repair, left])) for left in lefts if (method, repair, left) in means
        ]
        parts.append(_line(points, colour, dashes=dashes))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
        labels.append((points[-1][1], method if repair == "none" else f"{method}, {repair}", colour))
    return _svg(_WIDTH, _HEIGHT, parts + _apart(labels), f"Test accuracy of {name} straight after the cut")


def _apart(labels: list[tuple[float, str, str]]) -> list[str]:
    """The names at the ends of the lines, none over another."""
    parts, low = [], float("-inf")
    for y, words, colour in sorted(labels):
        low = max(y + 4, low + 15)
        parts.append(_text(_X1 + 10, low, words, colour, anchor="start", size=12))
    return parts


def _x(left: float, lefts: Sequence[float]) -> float:
    return _X0 + 14 + (_X1 - _X0 - 28) * list(lefts).index(left) / max(len(lefts) - 1, 1)


def _y(share: float) -> float:
    return _Y1 - (_Y1 - _Y0) * share
