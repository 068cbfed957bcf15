"""Pictures of the documentation as SVG: coupled channels in a residual block, and each method straight after the cut.

`docs/tables.py` writes them with the pages. Colours are readable on white and on dark; those that cannot be are drawn
twice, and the site shows one of the two.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from _by_method import Compared, Measured, among, kernels
from _method_pages import best_repair, has_figure
from _one_shot_page import averages

from secateur.methods import METHODS

TEAL, AMBER, GREY = "#0d9488", "#d97706", "#7d828b"
#: Background of boxes, lines and letters, channels that go, and letters of the two groups and in grey, by theme.
THEMES = {
    "light": ("#ffffff", "#30363d", "#c9ced6", "#0f766e", "#b45309", "#626873"),
    "dark": ("#23272f", "#d5d9e0", "#4b525e", "#2dc0b0", "#f0a030", "#a3a9b3"),
}


def pictures(folder: Path, found: Measured) -> dict[Path, str]:
    """Every picture by path."""
    made = {folder / f"block-{theme}.svg": block(*colours) for theme, colours in THEMES.items()}
    means = averages(found.one_shot["rows"]) if found.one_shot is not None else {}
    for name in (row.name for row in METHODS):
        if has_figure(name, found):
            made[folder / "methods" / f"{name}.svg"] = _after_the_cut(name, means, found.dense)
        elif compared := among(name):
            made[folder / "methods" / f"{name}.svg"] = _among(name, compared)
        elif name == "dkp" and (result := kernels()):
            made[folder / "methods" / f"{name}.svg"] = kernels_chart(result)
    return made


def _svg(width: int, height: int, parts: Iterable[str], title: str, *, size: int = 15) -> str:
    """On a wide screen a third larger than drawn; a page that is narrower makes it smaller."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{4 * width // 3}" role="img" '
    )
    style = f'font-family="system-ui, sans-serif" font-size="{size}">'
    return f"{head}{style}\n<title>{escape(title)}</title>\n" + "\n".join(parts) + "\n</svg>\n"


def _text(x: float, y: float, words: str, colour: str, *, anchor: str = "middle", size: int = 15) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(words)}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashes: str = "", width: float = 2) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashed}/>'


# ------------------------------------------------------------------------------------------------ a residual block

#: Which of the eight channels of the two groups go in the picture.
_STREAM_GO, _INNER_GO = {2, 5}, {1, 4, 6}
_CELL, _LEFT = 15, 58


def block(paper: str, ink: str, gone: str, teal: str, amber: str, grey: str) -> str:
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
        (rows["in"], teal, "group 1: the shortcut and conv2 are", "added, so they share their channels"),
        (rows["inner"], amber, "group 2: made by conv1,", "read by conv2 alone"),
        (rows["sum"], ink, "channel i of conv2 + channel i of the", "shortcut: both stay, or both go"),
        (rows["out"], grey, "grey: removed, from every", "tensor of the group"),
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

#: Pictures of methods are as wide as a phone, so that their letters are not made smaller there.
_WIDTH, _X0, _X1, _Y0, _Y1, _LINE = 360, 44, 350, 14, 190, 17
_SIZE = 12


#: Of a line of a chart: what it is, its colour and dashes, and the accuracy at each share left.
Curve = tuple[str, str, str, Mapping[float, float]]


def _after_the_cut(name: str, means: Mapping[tuple[str, str, float], float], dense: float) -> str:
    """Accuracy over FLOPs removed: the method alone and with its best repair, random channels, the whole network."""
    lefts = sorted({left for method, _, left in means if method == name}, reverse=True)
    best = best_repair(name, means)
    lines = [(name, best, TEAL, "")] if best != "none" else []
    lines.append((name, "none", TEAL, "3 3"))
    lines += [("random", best, GREY, "")] if best != "none" and name != "random" else []
    lines += [("random", "none", GREY, "3 3")] if name != "random" else []
    curves: list[Curve] = []
    for method, repair, colour, dashes in lines:
        reached = {left: means[method, repair, left] for left in lefts if (method, repair, left) in means}
        curves.append((method if repair == "none" else f"{method}, then {repair}", colour, dashes, reached))
    return _chart(lefts, dense, curves, "FLOPs removed", f"Test accuracy of {name} straight after the cut")


def kernels_chart(result: dict[str, Any]) -> str:
    """Accuracy over kernels removed: by DKP, by the L1 norm, at random, and of the whole network."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in result["rows"]:
        found.setdefault(row["kernels"], {}).setdefault(row["left"], []).append(row["top1"])
    looks = {"dkp": (TEAL, ""), "L1 norm": (AMBER, "6 3"), "random": (GREY, "3 3")}
    curves: list[Curve] = [
        (name, *look, {left: statistics.mean(values) for left, values in found[name].items()})
        for name, look in looks.items()
    ]
    lefts = sorted(found["dkp"], reverse=True)
    return _chart(lefts, result["dense"], curves, "kernels removed", "Test accuracy of dkp, nothing trained on")


def _chart(lefts: Sequence[float], dense: float, curves: Sequence[Curve], axis: str, title: str) -> str:
    """Accuracy over what is removed, with the whole network's, and what each line is below."""
    parts = []
    for tick in range(0, 101, 20):
        y = _y(tick / 100)
        parts += [
            _line([(_X0, y), (_X1, y)], GREY, width=0.4),
            _text(_X0 - 6, y + 4, f"{tick}%", GREY, anchor="end", size=_SIZE),
        ]
    parts += [_text(_x(left, lefts), _Y1 + 17, f"{100 * (1 - left):.0f}%", GREY, size=_SIZE) for left in lefts]
    parts.append(_text((_X0 + _X1) / 2, _Y1 + 35, axis, GREY, size=_SIZE))
    parts.append(_line([(_X0, _y(dense)), (_X1, _y(dense))], GREY, dashes="8 4", width=1))
    keys = [("not pruned", GREY, "8 4"), *(curve[:3] for curve in curves)]
    for _, colour, dashes, reached in curves:
        points = [(_x(left, lefts), _y(reached[left])) for left in lefts if left in reached]
        parts.append(_line(points, colour, dashes=dashes))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
    for number, (words, colour, dashes) in enumerate(keys):
        y = _Y1 + 58 + _LINE * number
        parts += [
            _line([(_X0, y - 4), (_X0 + 30, y - 4)], colour, dashes=dashes),
            _text(_X0 + 38, y, words, colour, anchor="start", size=_SIZE),
        ]
    return _svg(_WIDTH, _Y1 + 58 + _LINE * len(keys), parts, title, size=_SIZE)


def _x(left: float, lefts: Sequence[float]) -> float:
    return _X0 + 14 + (_X1 - _X0 - 28) * list(lefts).index(left) / max(len(lefts) - 1, 1)


def _y(share: float) -> float:
    return _Y1 - (_Y1 - _Y0) * share


# ------------------------------------------------------------------------------------------------ among the others

_LEFT_OF, _RIGHT_OF, _ROW = 122, 306, 19


def _among(name: str, compared: Compared) -> str:
    """Accuracies in the end, and straight after the cut where they differ, the best above; this method in colour."""
    most = max(0.1 * math.ceil(10 * max(final for final, _ in compared.accuracies.values())), 0.1)

    def place(share: float) -> float:
        return _LEFT_OF + (_RIGHT_OF - _LEFT_OF) * share / most

    parts = []
    rows = sorted(compared.accuracies.items(), key=lambda row: -row[1][0])
    bottom = 16 + _ROW * len(rows)
    for tick in range(0, round(100 * most) + 1, 20):
        x = place(tick / 100)
        parts += [
            _line([(x, 4), (x, bottom - 4)], GREY, width=0.4),
            _text(x, bottom + 12, f"{tick}%", GREY, size=_SIZE),
        ]
    for number, (method, (final, cut)) in enumerate(rows):
        y, colour = 16 + _ROW * number, TEAL if method == name else GREY
        parts.append(_line([(place(min(cut, final)), y), (place(max(cut, final)), y)], colour, width=1.5))
        if abs(cut - final) > 1e-6:
            parts.append(f'<circle cx="{place(cut):.1f}" cy="{y}" r="3.5" fill="none" stroke="{colour}"/>')
        parts.append(f'<circle cx="{place(final):.1f}" cy="{y}" r="4" fill="{colour}"/>')
        label = "not pruned" if method == "dense" else method
        parts.append(_text(_LEFT_OF - 10, y + 4, label, colour, anchor="end", size=_SIZE))
        parts.append(_text(_WIDTH - 4, y + 4, f"{100 * final:.1f}%", colour, anchor="end", size=_SIZE))
    return _svg(_WIDTH, bottom + 20, parts, f"Test accuracy of {name} and others at half the FLOPs", size=_SIZE)
