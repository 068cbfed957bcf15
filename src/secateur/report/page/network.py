"""A drawing of the network: every layer as a block as high as it is wide in channels, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from secateur.report.page.pictures import svg, tag
from secateur.report.page.results import Results
from secateur.report.page.words import number_of, shortened

_WIDTH, _HIGHEST, _TOP, _BOTTOM = 340.0, 96.0, 18.0, 34.0
_LETTER = 5.8
_LEAST = 1.5  # of a block's height: one channel can be seen, too
_MOST = 340  # blocks; of a deeper network every n-th layer is drawn


@dataclass(frozen=True)
class Block:
    """One layer: channels that it puts out, before and after."""

    name: str
    before: int
    after: int


def blocks(results: Results) -> list[Block]:
    """The layers in order of execution; the groups where the run lists no layers."""
    layers = [
        Block(row.name, row.out_before, row.out_after)
        for row in results.layers
        if row.out_before and row.out_after is not None and row.macs_before
    ]
    return layers or [Block(row.name, row.width, row.kept) for row in results.groups]


def network(results: Results) -> str | None:
    """The drawing, as wide as a phone; None where there is nothing to draw."""
    every = blocks(results)
    if not every:
        return None
    step = -(-len(every) // _MOST)
    drawn = every[::step]
    most = max(block.before for block in drawn) or 1
    pitch, middle = _WIDTH / len(drawn), _TOP + _HIGHEST / 2
    gap = min(2.5, 0.25 * pitch)
    parts = [tag("line", x1=0, x2=_WIDTH, y1=middle, y2=middle, class_="grid")]
    for place, block in enumerate(drawn):
        title = tag("title", f"{shortened(block.name, 80)}: {block.before} to {block.after} channels")
        bars = [
            tag(
                "rect",
                x=place * pitch + gap / 2,
                width=pitch - gap,
                y=middle - _height(width, most) / 2,
                height=_height(width, most),
                rx=min(1.5, (pitch - gap) / 4),
                class_=style,
            )
            for width, style in ((block.before, "was"), (block.after, "is"))
            if width
        ]
        parts.append(tag("g", None, title, *bars))
    parts += _labels(drawn, pitch)
    return svg(_WIDTH, _TOP + _HIGHEST + _BOTTOM, _told(every), parts)


def _height(width: int, most: int) -> float:
    return max(_LEAST, _HIGHEST * width / most)


def _labels(drawn: Sequence[Block], pitch: float) -> list[str]:
    """Above every run of layers that were equally wide its width, below it what is left, where there is room."""
    parts, free, place = [], -1.0, 0
    for before, run in groupby(drawn, key=lambda block: block.before):
        kept = [block.after for block in run]
        low, high = min(kept), max(kept)
        left, middle = place * pitch, (place + len(kept) / 2) * pitch
        above, below = f"{before}", f"{low}" if low == high else f"{low}–{high}"
        half = _LETTER * max(len(above), len(below)) / 2
        x = min(max(middle, half), _WIDTH - half)
        if x - half > free:
            ends: dict[str, Any] = {"x": x, "text_anchor": "middle"}
            parts.append(tag("text", above, y=_TOP - 7, class_="tick", **ends))
            parts.append(tag("text", below, y=_TOP + _HIGHEST + 14, class_="kept", **ends))
            if place:
                parts.append(tag("line", x1=left, x2=left, y1=_TOP - 4, y2=_TOP + _HIGHEST + 4, class_="stage"))
            free = x + half + _LETTER
        place += len(kept)
    foot = _TOP + _HIGHEST + 29
    parts.append(tag("text", "input", x=0, y=foot, class_="tick"))
    parts.append(tag("text", "output", x=_WIDTH, y=foot, class_="tick", text_anchor="end"))
    return parts


def _told(every: Sequence[Block]) -> str:
    whole, left = sum(block.before for block in every), sum(block.after for block in every)
    return f"{number_of(len(every), 'layer')} from input to output: {whole:,} channels before, {left:,} after"
