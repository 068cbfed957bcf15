"""Pictures of a leaderboard: every method's headline at a budget, and against the MACs over budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from secateur.report.board.tables import Document, means_at, scale_of, task_of
from secateur.report.page import words
from secateur.report.page.rivals import Point, Rival, ladder, tradeoff


def rivals(document: Document) -> list[Rival]:
    """Every method with its means, a point a budget."""
    found: dict[str, list[Point]] = {}
    for mean in document["means"]:
        of = mean["values"]
        spread = of["accuracy.final"]
        finals = tuple(
            row["accuracy"]["final"]
            for row in document["rows"]
            if (row["label"], row["budget"]) == (mean["label"], mean["budget"])
        )
        point = Point(of["macs.share"]["mean"], spread["mean"], spread["sd"], finals)
        found.setdefault(mean["label"], []).append(point)
    return [Rival(label, tuple(points), style) for style, (label, points) in enumerate(found.items())]


def curves(document: Document) -> str | None:
    """The headline against MACs; None where there is only one budget."""
    every, task, form = rivals(document), task_of(document), _form(document)
    if not any(len(rival.points) > 1 for rival in every):
        return None
    told = "; ".join(f"{r.name} {', '.join(f'{task.shown(p.y)} at {p.x:.0%}' for p in r.points)}" for r in every)
    label = f"{task.title} against the MACs that remain: {told}"
    return tradeoff(every, label=label, what=task.headline, form=form, scale=scale_of(document))


def ladder_of(document: Document, budget: str, order: Sequence[str]) -> str:
    style = {label: place for place, label in enumerate(order)}
    every = []
    for mean in means_at(document, budget):
        spread = mean["values"]["accuracy.final"]
        finals = tuple(
            row["accuracy"]["final"]
            for row in document["rows"]
            if (row["label"], row["budget"]) == (mean["label"], mean["budget"])
        )
        every.append(Rival(mean["label"], (Point(0.0, spread["mean"], spread["sd"], finals),), style[mean["label"]]))
    label = f"Final {task_of(document).headline} at {budget}, the best first"
    return ladder(every, label=label, form=_form(document), scale=scale_of(document))


def _form(document: Document) -> Callable[[float], str]:
    return _whole if task_of(document).unit == "share" else words.figure


def _whole(value: float) -> str:
    return f"{100 * value:.4g}%"
