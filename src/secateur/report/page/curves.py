"""Learning curves and the headline against the MACs: which lines and points there are, and what is beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from secateur.report.page import words
from secateur.report.page.inputs import Run
from secateur.report.page.measured import Epoch
from secateur.report.page.pictures import Series, Spot, lines, scatter, swatch
from secateur.report.page.results import Results

MOST_CHARTS = 24  # of a method's own metrics
_SPIKE = 20  # times the median: above this, positive values are drawn on a logarithmic axis
_HUGE = 1e150  # a diverged loss is drawn here; differences of larger numbers overflow


@dataclass(frozen=True)
class Chart:
    """A picture with its heading; `legend` is (swatch, name and last value) for each line."""

    title: str
    picture: str
    legend: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Curves:
    """All of a run's curves. `missing`: why there are none."""

    charts: tuple[Chart, ...] = ()  # loss and headline
    method: tuple[Chart, ...] = ()  # the learning rate, and what the method says of itself
    omitted: int = 0  # of the method's metrics
    stages: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Known:
    """What this run and others know of the headline against MACs; `points` and `others` are table rows."""

    picture: str | None
    points: tuple[tuple[str, str, str], ...]
    others: tuple[tuple[str, str, str, str], ...]
    remarks: tuple[str, ...]


def curves(run: Run) -> Curves:
    """The learning curves of a run."""
    if run.metrics is None:
        return Curves(missing="The folder has no metrics.jsonl, so no learning curves can be drawn.")
    rows = [row for row in run.metrics if row.epoch > 0]
    if not rows:
        return Curves(missing="No epoch was trained, so there are no learning curves.")
    starts, task = _starts(rows), run.results.task
    xs = [starts[row.stage] + row.epoch for row in rows]
    stages = [(float(start), name) for name, start in starts.items()]

    def chart(
        title: str, form: Callable[[float], str], *named: tuple[str, int, Callable[[Epoch], float | None]]
    ) -> Chart | None:
        series = [
            Series(name, [(float(x), _drawable(value(row))) for x, row in zip(xs, rows, strict=True)], style)
            for name, style, value in named
        ]
        return _chart(title, form, [one for one in series if one.known], stages, float(max(xs)))

    found = [
        chart(
            "Loss",
            words.figure,
            ("train", 0, lambda row: row.train_loss),
            ("validation", 1, lambda row: row.validation_loss),
        ),
        chart(
            task.title,
            words.percent if task.unit == "share" else words.figure,
            ("train", 0, lambda row: row.train_quality),
            ("validation", 1, lambda row: row.validation_quality),
        )
        if task.headline != "loss"
        else None,
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row.method))
    own = [
        chart("Learning rate", words.figure, ("", 2, lambda row: row.learning_rate)),
        *(
            chart(words.shortened(key.replace("_", " "), 40), _form(key), ("", 2, partial(_own, key)))
            for key in keys[:MOST_CHARTS]
        ),
    ]
    return Curves(
        tuple(c for c in found if c),
        tuple(c for c in own if c),
        max(0, len(keys) - MOST_CHARTS),
        words.several([f"{name} from epoch {start + 1}" for name, start in starts.items()]),
    )


def known_points(run: Run, others: Sequence[tuple[Path, Results]]) -> Known:
    """The headline against the share of the MACs that remains: this run's stages, and where other runs ended."""
    found, remaining, task = run.results.quality, run.results.remaining("macs"), run.results.task
    mine = [
        ("dense", 1.0, found.dense, "ring"),
        ("just after the cut", remaining, found.pruned, "square"),
        ("after fine-tuning", remaining, found.finetuned, "dot"),
    ]
    if found.finetuned is None and found.final not in (None, found.pruned):
        mine[2] = ("final", remaining, found.final, "dot")
    spots = [Spot(x, y, name, shape) for name, x, y, shape in mine if x is not None and y is not None]
    path = [(spot.x, spot.y) for spot in spots]
    rows, remarks = [], []
    for number, (folder, other) in enumerate(others, start=1):
        x, y = other.remaining("macs"), other.quality.final
        if x is not None and y is not None:
            spots.append(Spot(x, y, str(number), "cross"))
        rows.append(
            (str(number), words.shortened(other.recipe_name or folder.name, 48), words.percent(x), task.shown(y, 2))
        )
        if not _comparable(run.results, other):
            remarks.append(
                f"Run {number} has another network, other data, another task or split: compare its point with care."
            )
    label = f"{task.title} against the MACs that remain: " + "; ".join(
        f"{spot.label} {task.shown(spot.y, 2)} at {words.percent(spot.x)}" for spot in spots
    )
    return Known(
        scatter(
            spots, path, label=label, what=task.headline, form=_whole_percent if task.unit == "share" else words.figure
        )
        if spots
        else None,
        tuple((name, words.percent(x), task.shown(y, 2)) for name, x, y, _ in mine),
        tuple(rows),
        tuple(remarks),
    )


def _own(key: str, row: Epoch) -> float | None:
    return row.method.get(key)


def _form(key: str) -> Callable[[float], str]:
    return words.percent if key.endswith("accuracy") else words.figure


def _comparable(mine: Results, other: Results) -> bool:
    return (mine.model, mine.data_name, mine.task, mine.quality.split) == (
        other.model,
        other.data_name,
        other.task,
        other.quality.split,
    )


def _starts(rows: Sequence[Epoch]) -> dict[str, int]:
    """The epoch before each stage's first, counted over all stages in the order they were trained."""
    last: dict[str, int] = {}
    for row in rows:
        last[row.stage] = max(last.get(row.stage, 0), row.epoch)
    starts, sum_ = {}, 0
    for stage, epochs in last.items():
        starts[stage] = sum_
        sum_ += epochs
    return starts


def _drawable(value: float | None) -> float | None:
    return None if value is None else max(-_HUGE, min(_HUGE, value))


def _chart(
    title: str,
    form: Callable[[float], str],
    series: list[Series],
    stages: Sequence[tuple[float, str]],
    end: float,
) -> Chart | None:
    """A chart of lines that have points; None where there is none."""
    if not series:
        return None
    ends = [(one, form(one.known[-1][1])) for one in series]
    said = [(swatch(one.style), f"{one.name} {value}") for one, value in ends]
    if not series[0].name:  # one line needs no legend
        said = [("", f"{value} at the end") for _, value in ends]
    first, last = series[-1].known[0], series[-1].known[-1]
    label = f"{title} by epoch: {form(first[1])} at epoch {first[0]:g}, {form(last[1])} at epoch {last[0]:g}"
    log = form is not words.percent and _spiked([y for one in series for _, y in one.known])
    picture = lines(series, label=label, form=_tick(form), end=end, stages=stages, logarithmic=log)
    return Chart(f"{title}, logarithmic" if log else title, picture, tuple(said))


def _spiked(values: Sequence[float]) -> bool:
    """Whether a few values tower so far above the others that these would lie flat on the ground."""
    return min(values) > 0 and max(values) > _SPIKE * median(values)


def _tick(form: Callable[[float], str]) -> Callable[[float], str]:
    """Shorter numbers along an axis."""
    return (
        _whole_percent
        if form is words.percent
        else lambda value: f"{value:.4g}" if abs(value) < 1e4 else words.count(value)
    )


def _whole_percent(value: float) -> str:
    return f"{100 * value:.4g}%"
