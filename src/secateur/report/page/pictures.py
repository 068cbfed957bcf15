"""Pictures as inline SVG, written by hand: small, crisp, coloured by the page's own style, the same bytes every time.

Colours are classes (`s0`, `was`, ...), so that dark mode and print are the style sheet's business. Line charts and
the scatter are drawn at the width of a phone and keep their proportions; bars stretch with the column they stand in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from secateur.report.page.words import shortened

_WIDTH, _HEIGHT = 340.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 12.0, 20.0, 30.0
_LETTER = 5.8  # width of a letter of the labels (10.5 pixels high), to see whether a label fits
_LEAST_RANGE = 0.04  # of the accuracies in the scatter: half a point must not look like a cliff
_MOST_POINTS = 600  # of one line; the rest could not be seen

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A line: its points by x, None where nothing was measured. `style` is the number of its colour and dash."""

    name: str
    points: Sequence[tuple[float, float | None]]
    style: int = 0

    @property
    def known(self) -> list[tuple[float, float]]:
        """The points that have a value."""
        return [(x, y) for x, y in self.points if y is not None]


@dataclass(frozen=True)
class Spot:
    """A point of the scatter. `shape`: "ring", "square", "dot" or "cross"."""

    x: float
    y: float
    label: str
    shape: str


def lines(
    series: Sequence[Series],
    *,
    label: str,
    form: Format,
    end: float,
    stages: Sequence[tuple[float, str]] = (),
    logarithmic: bool = False,
) -> str:
    """A line chart over epochs 0 to `end`; `stages` holds where each stage begins (in epochs) and its name."""
    if logarithmic:  # drawn in exponents of ten, all values being positive
        series = [Series(one.name, [(x, y and math.log10(y)) for x, y in one.points], one.style) for one in series]
    known = [point for one in series for point in one.known]
    low, high = min(y for _, y in known), max(y for _, y in known)
    ticks = decades(low, high) if logarithmic else nice(low, high)
    box = Box(0.0, max(end, 1.0), ticks[0], ticks[-1])
    parts = [*levels(box, ticks, (lambda y: form(10.0**y)) if logarithmic else form), *_epochs(box)]
    parts += _boundaries(box, stages)
    for one in series:
        parts += _line(box, one)
    return svg(_WIDTH, _HEIGHT, label, parts)


def scatter(spots: Sequence[Spot], path: Sequence[tuple[float, float]], *, label: str, what: str, form: Format) -> str:
    """`what` (y) against the share of the MACs that remains (x, 0 to 1); `path` joins this run's points."""
    ys = [spot.y for spot in spots]
    ticks = nice(max(0.0, min(min(ys), max(ys) - _LEAST_RANGE * max(1.0, max(ys)))), max(ys))
    ends = nice(0.0, max([1.0, *(spot.x for spot in spots)]), count=5)
    box = Box(0.0, ends[-1], ticks[0], ticks[-1], height=240.0)
    parts = levels(box, ticks, form)
    for x in ends:
        parts.append(tag("text", f"{100 * x:.4g}%", x=box.x(x), y=box.bottom + 15, class_="tick", text_anchor="middle"))
    parts.append(tag("text", what, x=box.left, y=box.top - 8, class_="tick", text_anchor="middle"))
    parts.append(tag("text", "MACs that remain", x=box.right, y=box.bottom + 28, class_="tick", text_anchor="end"))
    if len(path) > 1:
        parts.append(tag("polyline", points=" ".join(f"{box.x(x):.1f},{box.y(y):.1f}" for x, y in path), class_="way"))
    parts += [_mark(box.x(spot.x), box.y(spot.y), spot.shape, spot.label) for spot in spots]
    parts += _labels(box, spots)
    return svg(_WIDTH, 240.0, label, parts)


def overlaid(before: float, after: float, most: float) -> str:
    """A bar for one row of a list: what was, and on it what is left."""
    scale = 100 / most if most else 0.0
    return _bar(
        tag("rect", x=0, y=1, width=before * scale, height=8, class_="was"),
        tag("rect", x=0, y=1, width=after * scale, height=8, class_="is"),
    )


def paired(before: float, after: float, most: float) -> str:
    """Two thin bars for one row of a list: the second may be the longer."""
    scale = 100 / most if most else 0.0
    return _bar(
        tag("rect", x=0, y=0, width=before * scale, height=4.4, class_="was"),
        tag("rect", x=0, y=5.2, width=after * scale, height=4.4, class_="is"),
    )


def swatch(style: int) -> str:
    """A piece of a line for a legend."""
    line = tag("line", x1=0, y1=5, x2=22, y2=5, class_=f"line s{style}")
    return tag("svg", None, line, class_="swatch", viewBox="0 0 22 10", **{"aria-hidden": "true"})


def nice(low: float, high: float, *, count: int = 4) -> list[float]:
    """Round numbers from `low` or below it to `high` or above it, in about `count` steps."""
    if not low < high:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = (high - low) / count
    if rough == 0.0 or not math.isfinite(rough):  # beyond what floats can divide
        return [low, high]
    power = 10.0 ** math.floor(math.log10(rough))
    if power == 0.0:
        return [low, high]
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if rough <= factor * power * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Whole exponents of ten from below `low` to above `high`, at most six of them."""
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    step = -(-(last - first) // 5)
    return [float(first + k * step) for k in range(-(-(last - first) // step) + 1)]


@dataclass(frozen=True)
class Box:
    """From data to the picture."""

    x0: float
    x1: float
    y0: float
    y1: float
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP

    @property
    def bottom(self) -> float:
        return self.height - _BOTTOM

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1.0) * (self.bottom - self.top)


def levels(box: Box, ticks: Sequence[float], form: Format) -> list[str]:
    """Horizontal lines with their values."""
    parts = []
    for value in ticks:
        y = box.y(value)
        parts.append(tag("line", x1=box.left, x2=box.right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", form(value), x=box.left - 6, y=y + 3.5, class_="tick", text_anchor="end"))
    return parts


def _epochs(box: Box) -> list[str]:
    """Whole epochs along the bottom."""
    parts = []
    step = max(1.0, nice(box.x0, box.x1, count=5)[1] - nice(box.x0, box.x1, count=5)[0])
    step = float(math.ceil(step))
    value = math.ceil(box.x0 / step) * step
    while value <= box.x1 + 1e-9:
        anchor = "end" if value > box.x1 - 0.02 * (box.x1 - box.x0) else "middle"
        parts.append(tag("text", f"{value:g}", x=box.x(value), y=box.bottom + 15, class_="tick", text_anchor=anchor))
        value += step
    parts.append(tag("text", "epoch", x=box.right, y=box.bottom + 27, class_="tick", text_anchor="end"))
    return parts


def _boundaries(box: Box, stages: Sequence[tuple[float, str]]) -> list[str]:
    """A line where a stage begins, and the stage's name where there is room for it."""
    parts = []
    for k, (start, name) in enumerate(stages):
        x = box.x(start)
        end = box.x(stages[k + 1][0]) if k + 1 < len(stages) else box.right
        if start > box.x0:
            parts.append(tag("line", x1=x, x2=x, y1=box.top - 12, y2=box.bottom, class_="stage"))
        said = shortened(name, 16)
        if len(said) * _LETTER < end - x:
            parts.append(tag("text", said, x=x + 4, y=box.top - 5, class_="stage-name"))
    return parts


def _line(box: Box, series: Series) -> list[str]:
    """The stretches of a line between missing values; one value alone is a dot."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in _thinned(series.points):
        if y is None:
            stretches.append([])
        else:
            stretches[-1].append((box.x(x), box.y(y)))
    parts = []
    for stretch in stretches:
        if len(stretch) == 1:
            parts.append(tag("circle", cx=stretch[0][0], cy=stretch[0][1], r=2.6, class_=f"dot s{series.style}"))
        elif stretch:
            where = " ".join(f"{x:.1f},{y:.1f}" for x, y in stretch)
            parts.append(tag("polyline", points=where, class_=f"line s{series.style}"))
    return parts


def _thinned(points: Sequence[tuple[float, float | None]]) -> Sequence[tuple[float, float | None]]:
    """Every n-th point and the last, when there are more than can be seen."""
    step = -(-len(points) // _MOST_POINTS)
    return points if step <= 1 else [*points[::step], points[-1]]


def _mark(x: float, y: float, shape: str, label: str) -> str:
    """One spot; its shape tells it from the others without colour."""
    title = tag("title", label)
    if shape == "square":
        return tag("rect", None, title, x=x - 4.5, y=y - 4.5, width=9, height=9, class_="spot square")
    if shape == "cross":
        return tag("path", None, title, d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", class_="spot cross")
    return tag("circle", None, title, cx=x, cy=y, r=5, class_=f"spot {shape}")


def _labels(box: Box, spots: Sequence[Spot]) -> list[str]:
    """The spots' names beside them, moved apart where they would meet."""
    parts, taken = [], list[tuple[float, float, float]]()
    for spot in sorted(spots, key=lambda s: (box.y(s.y), s.x)):
        text = shortened(spot.label, 26)
        x, y, width = box.x(spot.x), box.y(spot.y) + 3.5, len(text) * _LETTER
        left = x + 10 + width > box.right + 8
        start = x - 10 - width if left else x + 10
        y = min(y, box.bottom - 2)
        while any(abs(y - other) < 12 and start < stop and begin < start + width for begin, stop, other in taken):
            y += 2
        taken.append((start, start + width, y))
        anchor = "end" if left else "start"
        parts.append(tag("text", text, x=x - 10 if left else x + 10, y=y, class_="name", text_anchor=anchor))
    return parts


def _bar(*parts: str) -> str:
    attributes = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return tag("svg", None, *parts, class_="bar", **attributes)


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """A picture with a text for those who cannot see it."""
    attributes = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label}
    return tag("svg", None, *parts, class_="chart", **attributes)


def tag(name: str, text: str | None = None, *children: str, **attributes: str | float) -> str:
    """One element: text and attributes are escaped, children are elements already."""
    said = "".join(f' {_attribute(key)}="{_value(value)}"' for key, value in attributes.items())
    inside = escape(text or "", quote=False) + "".join(children)
    return f"<{name}{said}>{inside}</{name}>" if inside else f"<{name}{said}/>"


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
