"""Pictures of a comparison: accuracy at one budget, method by method, and accuracy against the MACs over budgets.

Methods are told apart by colour (`c0` to `c9`) and by the shape of their marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.report.page.pictures import Box, Format, levels, nice, svg, tag
from secateur.report.page.words import shortened

_WIDTH, _HEIGHT = 380.0, 290.0
_ROW = 24.0
_COLOURS, _SHAPES = 10, 4
_LEAST_RANGE = 0.02  # of the accuracies: half a point must not look like a cliff


@dataclass(frozen=True)
class Point:
    """A mean over seeds; `sd` is None for a single one."""

    x: float
    y: float
    sd: float | None
    values: tuple[float, ...] = ()  # of the seeds


@dataclass(frozen=True)
class Rival:
    """A method's points; `style` is its colour and shape."""

    name: str
    points: tuple[Point, ...]
    style: int


def ladder(rivals: Sequence[Rival], *, label: str, form: Format, scale: float = 100.0) -> str:
    """One line a method, with the first point of each: mean, standard deviation, and every seed as a small dot."""
    ticks = _ticks([one.points[0] for one in rivals], scale)
    left = 18.0 + 6.2 * max(len(shortened(one.name, 22)) for one in rivals)
    height = 34.0 + _ROW * len(rivals) + 22.0
    box = Box(ticks[0], ticks[-1], 0.0, 1.0, height=height + 8.0, left=left, right=_WIDTH - 68.0, top=12.0)
    parts = []
    for x in ticks:
        parts.append(tag("line", x1=box.x(x), x2=box.x(x), y1=12, y2=box.bottom, class_="grid"))
        parts.append(tag("text", form(x), x=box.x(x), y=box.bottom + 15, class_="tick", text_anchor="middle"))
    for number, one in enumerate(rivals):
        y, point = 12.0 + _ROW * (number + 0.6), one.points[0]
        parts.append(tag("text", shortened(one.name, 22), x=left - 10, y=y + 3.5, class_="name", text_anchor="end"))
        if point.sd:
            low, high = (min(max(box.x(v), left), box.right) for v in (point.y - point.sd, point.y + point.sd))
            parts.append(tag("path", d=f"M{low:.1f} {y:.1f}H{high:.1f}", class_=f"error {_colour(one)}"))
        seeds = point.values if len(point.values) > 1 else ()
        parts += [tag("circle", cx=box.x(v), cy=y + 8, r=1.8, class_=f"seed {_colour(one)}") for v in seeds]
        parts.append(_mark(box.x(point.y), y, one))
        parts.append(tag("text", _said(point, scale), x=_WIDTH - 2, y=y + 3.5, class_="tick", text_anchor="end"))
    return svg(_WIDTH, box.height, label, parts)


def tradeoff(rivals: Sequence[Rival], *, label: str, what: str, form: Format, scale: float = 100.0) -> str:
    """`what` (y) against the share of the MACs that remains (x), a line a method, standard deviations as bars."""
    every = [point for one in rivals for point in one.points]
    ticks = _ticks(every, scale)
    ends = nice(0.0, max([1.0, *(point.x for point in every)]), count=5)
    box = Box(0.0, ends[-1], ticks[0], ticks[-1], height=_HEIGHT, right=_WIDTH - 18.0)
    parts = levels(box, ticks, form)
    for x in ends:
        parts.append(tag("text", f"{100 * x:.4g}%", x=box.x(x), y=box.bottom + 15, class_="tick", text_anchor="middle"))
    parts.append(tag("text", what, x=box.left, y=box.top - 8, class_="tick", text_anchor="middle"))
    parts.append(tag("text", "MACs that remain", x=box.right, y=box.bottom + 28, class_="tick", text_anchor="end"))
    for one in rivals:
        points = sorted(one.points, key=lambda point: point.x)
        if len(points) > 1:
            where = " ".join(f"{box.x(p.x):.1f},{box.y(p.y):.1f}" for p in points)
            parts.append(tag("polyline", points=where, class_=f"run {_colour(one)}"))
        for p in points:
            if p.sd:
                low, high = (min(max(box.y(v), box.top), box.bottom) for v in (p.y - p.sd, p.y + p.sd))
                parts.append(tag("path", d=f"M{box.x(p.x):.1f} {low:.1f}V{high:.1f}", class_=f"error {_colour(one)}"))
            parts.append(_mark(box.x(p.x), box.y(p.y), one))
    return svg(_WIDTH, _HEIGHT, label, parts)


def key(rival: Rival) -> str:
    """A method's mark for a legend."""
    line = tag("path", d="M0 6H22", class_=f"run {_colour(rival)}")
    return tag("svg", None, line, _mark(11, 6, rival), class_="swatch", viewBox="0 0 22 12", **{"aria-hidden": "true"})


def _mark(x: float, y: float, rival: Rival) -> str:
    title, style = tag("title", rival.name), f"mark {_colour(rival)}"
    match rival.style % _SHAPES:
        case 0:
            return tag("circle", None, title, cx=x, cy=y, r=4.2, class_=style)
        case 1:
            return tag("rect", None, title, x=x - 3.8, y=y - 3.8, width=7.6, height=7.6, class_=style)
        case 2:
            return tag("path", None, title, d=f"M{x:.1f} {y - 5:.1f}l4.8 8.6h-9.6z", class_=style)
        case _:
            return tag("path", None, title, d=f"M{x:.1f} {y - 5.2:.1f}l5.2 5.2l-5.2 5.2l-5.2 -5.2z", class_=style)


def _colour(rival: Rival) -> str:
    return f"c{rival.style % _COLOURS}"


def _ticks(points: Sequence[Point], scale: float) -> list[float]:
    """Marks around all points; shares of 1, which are written times 100, do not go beyond 1."""
    least = _LEAST_RANGE * 100 / scale
    low = min(min([p.y - (p.sd or 0.0), *p.values]) for p in points)
    high = max(max([p.y + (p.sd or 0.0), *p.values]) for p in points)
    most = max(high, low + least)
    return nice(max(0.0, min(low, high - least)), min(1.0, most) if scale != 1.0 else most)


def _said(point: Point, scale: float) -> str:
    return f"{scale * point.y:.2f}" + (f" ±{scale * point.sd:.2f}" if point.sd is not None else "")
