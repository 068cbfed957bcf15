"""The three figures a person remembers: how much faster, how much smaller, and what became of the headline."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.report.page import words
from secateur.report.page.headline import against, epochs_apart, final, interval, quality_change, runtime_name, speed
from secateur.report.page.inputs import Run
from secateur.report.page.results import Results


@dataclass(frozen=True)
class Card:
    """One figure; `sure`: it is beyond chance, or was counted. `lines` stand small below it."""

    figure: str
    what: str
    lines: tuple[str, ...]
    sure: bool = True


def cards(run: Run) -> tuple[Card, ...]:
    """Speed, size and headline of a run; what is not known comes last."""
    found = (_speed(run), _size(run.results), _quality(run.results))
    return tuple(sorted(found, key=lambda card: card.figure == "–"))


def _speed(run: Run) -> Card:
    """The runtime that gains most beyond chance, else the first; all others below it."""
    rows = [row for row in (run.latency.runtimes if run.latency else []) if row.ratio is not None]
    if not rows:
        return Card("–", "latency was not measured", (), sure=False)
    first = max(rows, key=lambda row: row.ratio.median if row.apart and row.ratio else 0.0)
    others = tuple(f"{runtime_name(row)}: {speed(row, spread=True)}" for row in rows if row is not first)
    assert first.ratio is not None
    median, name = first.ratio.median, runtime_name(first)
    noisy = ("The machine was noisy: measure again on a quiet one.",) if first.noisy else ()
    if not first.apart:  # the interval itself: any one figure in it would be remembered as a gain
        what = f"the dense network's speed on {name} (95%): not significant"
        return Card(interval(first.ratio), what, (*noisy, *others), sure=False)
    slower = median < 1
    figure = words.ratio(1 / median if slower else median)
    within = f"95% interval {interval(first.ratio)}"
    return Card(figure, f"{'slower' if slower else 'faster'} on {name}", (within, *noisy, *others))


def _size(results: Results) -> Card:
    """The file of weights, else the parameters, else the MACs."""
    macs, params = results.remaining("macs"), results.remaining("params")
    shares = ((macs, "MACs"), (params, "parameters"))
    left = [f"{words.percent(share)} of the {name}" for share, name in shares if share is not None]
    lines = (f"{words.several(left)} remain",) if left else ()
    row, before = results.files.get("model.safetensors"), results.dense_bytes
    if row and row.bytes and before:
        sizes = f"{words.size(before)} → {words.size(row.bytes)}"
        return Card(words.ratio(before / row.bytes), "smaller file of weights", (sizes, *lines))
    for rest, name in ((params, "fewer parameters"), (macs, "fewer MACs")):
        if rest:
            return Card(words.ratio(1 / rest), name, lines)
    return Card("–", "how much was removed is not known", lines, sure=False)


def _quality(results: Results) -> Card:
    task, (dense, how), after = results.task, against(results.quality), final(results.quality)
    if after is None:
        return Card("–", f"{task.headline} was not measured", (), sure=False)
    if dense is None:
        return Card(task.shown(after), task.headline, ("The dense network's was not measured.",))
    change = quality_change(results, dense, after)
    between = f" (95% interval {change.between})" if change.between else ""
    lines = [f"{task.difference(after - dense)}{between}: {change.verdict}"]
    if results.quality.images:
        lines.append(f"on {results.quality.images:,} {results.quality.split or 'test'} images, measured once")
    if (epochs := epochs_apart(results)) is not None:
        lines.append(f"trained for {epochs[1]:,} epochs in all, the dense network for {epochs[0]:,}")
    what = f"{task.headline}, the dense network {how}" if how else task.headline
    return Card(f"{task.shown(dense)} → {task.shown(after)}", what, tuple(lines))
