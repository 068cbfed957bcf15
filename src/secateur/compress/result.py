"""What a search ends with: the network, what was tried, why this one was chosen, and the front of accuracy and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from secateur._files import write_bytes, write_json
from secateur._summary import Summary
from secateur.runtime import push_to_hub
from secateur.surgery import Result
from secateur.tasks import shown

REPORT, PICTURE = "compress.json", "front.svg"
_SHOWN = 12


@dataclass(frozen=True)
class Tried:
    """One candidate: what it was, its figure on the held-out images, the share of the cost it leaves, its seconds.

    stage: "race", "front", "finalists" (trained, `rounds` of them) or "smallest". failed: why it came to nothing.
    """

    stage: str
    number: int
    what: str
    figure: float | None
    cost: float | None
    rounds: int
    seconds: float
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Compressed(Result):
    """The network that `compress` ends with: a `Result` with the story of the search.

    unit: of all figures, such as "accuracy"; scale: how they are written, "share", "number" or "dB". original, figure:
    of the networks before and after, on the held-out images. key: the cost of the front, such as "latency". tried:
    all candidates. front: those that no other beats in both. said: what was done and why, in sentences. met: whether
    everything that was asked is. measured: dense and pruned timed by turns on the runtime asked for, as in
    `latency.json`; None where none was.
    """

    unit: str
    scale: str
    original: float
    figure: float
    key: str
    tried: tuple[Tried, ...]
    front: tuple[Tried, ...]
    said: tuple[str, ...]
    met: bool
    measured: Mapping[str, Any] | None
    seconds: float

    @classmethod
    def of(cls, result: Result, **story: Any) -> Compressed:
        """A result with its story."""
        return cls(**{field.name: getattr(result, field.name) for field in fields(Result)}, **story)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Send the network to the Hugging Face Hub with a card; `secateur.push_to_hub` has the options."""
        return push_to_hub(self, name, **options)

    def document(self) -> dict[str, Any]:
        """All of it but the network, as plain JSON."""
        return {
            "format": "secateur.compress",
            "version": 1,
            "unit": self.unit,
            "scale": self.scale,
            "original": self.original,
            "figure": self.figure,
            "met": self.met,
            "remains": {key: self.reached(key) for key in ("flops", "params", self.key)},
            "seconds": round(self.seconds, 1),
            "said": list(self.said),
            "notes": list(self.notes),
            "cost": self.key,
            "tried": [vars(each) for each in self.tried],
            "front": [vars(each) for each in self.front],
            "measured": self.measured,
            "widths": self.plan.widths,
        }

    def write(self, folder: Path) -> None:
        """The report into a folder: compress.json, and front.svg where matplotlib is installed."""
        write_json(folder / REPORT, self.document(), what="The report")
        picture = drawn(self)
        if picture is not None:
            write_bytes(folder / PICTURE, picture, what="The picture")

    def _summary(self) -> Summary:
        ranked = sorted(self.tried, key=lambda each: -(each.figure if each.figure is not None else -1e9))
        rows = [
            (
                each.what,
                "failed" if each.figure is None else shown(each.figure, self.scale),
                share(each.cost),
                each.stage,
                str(each.rounds),
                f"{each.seconds:.0f}",
            )
            for each in ranked[:_SHOWN]
        ]
        whole = super()._summary()
        columns = ("tried", self.unit, f"{self.key} left", "stage", "rounds", "seconds")
        return Summary((*whole.head, *self.said), columns, tuple(rows), whole.foot, ": result.tried has them all")


def share(cost: float | None) -> str:
    """A share of the original's cost."""
    return "" if cost is None else f"{cost:.1%}"


def drawn(found: Compressed) -> bytes | None:
    """The front as SVG; None without matplotlib."""
    points = [each for each in found.tried if each.figure is not None and each.cost is not None]
    marks = [
        ("tried", [each for each in points if not each.rounds], "o", "0.6"),
        ("trained", [each for each in points if each.rounds], "s", "tab:blue"),
    ]
    lines = [("front", sorted(found.front, key=lambda each: each.cost or 0.0), "-", "0.4")]

    def paint(axes: Any) -> None:
        for name, group, mark, colour in marks:
            if group:
                axes.scatter(
                    [100 * (e.cost or 0.0) for e in group],
                    [e.figure for e in group],
                    marker=mark,
                    color=colour,
                    label=name,
                )
        for name, group, style, colour in lines:
            axes.plot(
                [100 * (e.cost or 0.0) for e in group], [e.figure for e in group], style, color=colour, label=name
            )
        axes.scatter(
            [100 * found.reached(found.key)], [found.figure], marker="*", s=160, color="tab:red", label="chosen"
        )
        axes.scatter([100], [found.original], marker="D", color="black", label="original")
        axes.set_xlabel(f"{found.key} left, % of the original")
        axes.set_ylabel(f"{found.unit} on held-out images")
        axes.legend()

    return svg(paint)


def svg(paint: Any) -> bytes | None:
    """What `paint(axes)` draws, as SVG that is the same each time; None without matplotlib."""
    import importlib.util
    import io

    if importlib.util.find_spec("matplotlib") is None:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "secateur"}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.3)
        paint(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def pareto(points: Sequence[Tried]) -> tuple[Tried, ...]:
    """Those that no other one beats: none has at least the figure at no more cost, and one of them strictly."""
    known = [(p, p.figure, p.cost) for p in points if p.figure is not None and p.cost is not None]
    return tuple(
        p
        for p, figure, cost in known
        if not any(f >= figure and c <= cost and (f, c) != (figure, cost) for _, f, c in known)
    )
