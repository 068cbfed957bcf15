"""The report's opening: one sentence that says what was gained and lost, and the table behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from secateur.budget import KEYS, Budget
from secateur.errors import BudgetError
from secateur.report.page import words
from secateur.report.page.inputs import Run
from secateur.report.page.measured import Interval, RuntimeRow, SkippedRow
from secateur.report.page.results import Quality, Results

RUNTIMES: Mapping[str, str] = {
    "pytorch": "PyTorch",
    "compiled": "PyTorch compiled",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
}
_COSTS = {
    "macs": "MACs",
    "params": "Parameters",
    "activations": "Activations",
    "peak_activations": "Peak of activations",
    "latency": "Predicted latency (microseconds)",
}
_NORMAL = 1.96  # standard errors to either side of a 95% interval
_COLLAPSED = 0.10  # a fall of ten points just after the cut is worth a word of comfort


@dataclass(frozen=True)
class Row:
    """One line of the headline table; `exact` figures stand small below the readable ones, `share` is a bar."""

    what: str
    before: str
    after: str
    change: str
    exact: tuple[str, str] = ("", "")
    share: float | None = None


@dataclass(frozen=True)
class Headline:
    """Title, sentence, table and what is to be said of it."""

    title: str
    sentence: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def headline(run: Run) -> Headline:
    """The opening of a run's report."""
    results = run.results
    model, data = words.network(results.model, results.kind), words.data_set(results.data_name)
    method = words.shortened(results.method.name, 40) if results.method else None
    said = [*_remaining(results), _quality_said(results), _speed_said(run)]
    return Headline(
        f"{model} on {data}" + (f", pruned with {method.upper() if method.islower() else method}" if method else ""),
        f"{model} on {data}: {'; '.join(part for part in said if part)}.",
        (*_quality_rows(results), *_cost_rows(results), *_file_rows(results), *_latency_rows(run)),
        tuple(note for note in (_chance(results), _collapse(results), *_budget(results)) if note),
    )


def speed(row: RuntimeRow, *, spread: bool = False) -> str:
    """What the paired ratio of one runtime means; where intervals overlap there is no speed-up."""
    if row.ratio is None:
        return row.said or words.UNKNOWN
    low, high = row.ratio.low or row.ratio.median, row.ratio.high or row.ratio.median
    between = f" ({interval(row.ratio)})" if spread else ""
    if not row.apart:
        return f"no speed-up{between}"
    if high < 1:
        return f"{words.ratio(1 / row.ratio.median)} slower" + (
            f" ({words.ratio(1 / high)} to {words.ratio(1 / low)})" if spread else ""
        )
    return f"{words.ratio(row.ratio.median)} faster{between}"


def interval(ratio: Interval) -> str:
    """The bounds of a paired ratio."""
    return f"{words.ratio(ratio.low or ratio.median)} to {words.ratio(ratio.high or ratio.median)}"


def runtime_name(row: RuntimeRow | SkippedRow) -> str:
    """A runtime's name for people."""
    return RUNTIMES.get(row.runtime, words.shortened(row.runtime, 24))


def final(quality: Quality) -> float | None:
    """The headline of what the run leaves behind."""
    return next((a for a in (quality.final, quality.finetuned, quality.pruned) if a is not None), None)


def _remaining(results: Results) -> list[str]:
    macs, params = results.remaining("macs"), results.remaining("params")
    if macs is None:
        return ["how much was removed is not known"]
    more = "" if params is None else f" and {words.percent(params)} of the parameters"
    return [f"{words.percent(macs)} of the MACs{more} remain"]


def _quality_said(results: Results) -> str:
    task, dense, after = results.task, results.quality.dense, final(results.quality)
    if after is None:
        return f"{task.headline} was not measured"
    before, now = task.shown(dense), task.shown(after)
    if dense is None:
        return f"{task.headline} {now} (the dense network's was not measured)"
    difference = after - dense
    if (round(1000 * difference) == 0) if task.unit == "share" else before == now:
        return f"{task.headline} stays at {now}"
    if (images := results.quality.images) and task.headline == "accuracy":
        # two shares of as many images: normal approximation, images not paired
        spread = dense * (1 - dense) + after * (1 - after)
        if abs(difference) <= _NORMAL * math.sqrt(spread / images):
            return f"accuracy {before} before and {now} after (not significant)"
    verdict = "rises" if difference > 0 else "falls"
    return f"{task.headline} {verdict} from {before} to {now} ({task.difference(difference, 1)})"


def _speed_said(run: Run) -> str:
    if run.latency is None or not run.latency.runtimes:
        return "latency was not measured"
    alike: dict[str, list[str]] = {}
    for row in run.latency.runtimes:
        alike.setdefault(speed(row), []).append(runtime_name(row))
    return ", ".join(f"{said} on {words.several(names)}" for said, names in alike.items())


def _quality_rows(results: Results) -> list[Row]:
    """The headline at each point of the run against the dense network's."""
    task, found = results.task, results.quality
    dense = task.shown(found.dense, 2)
    named = [
        (f"{task.title} with soft gates", found.soft, False),
        (f"{task.title} with hard masks", found.hard, False),
        (f"{task.title} just after the cut", found.pruned, True),
        (f"{task.title} after fine-tuning", found.finetuned, True),
    ]
    if found.final is not None and found.final not in (found.finetuned, found.pruned):
        named.append((f"{task.title} in the end", found.final, False))
    rows = []
    for what, value, always in named:
        if value is not None or always:
            after = task.shown(value, 2)
            if value is None and found.final is not None and what.endswith("fine-tuning"):
                after = "not fine-tuned"
            change = "" if value is None or found.dense is None else task.difference(value - found.dense)
            rows.append(Row(what, dense, after, change))
    return rows


def _cost_rows(results: Results) -> list[Row]:
    rows = []
    for key, name in _COSTS.items():
        before, after = getattr(results.before, key), getattr(results.after, key)
        rest = results.remaining(key)
        if before is not None or after is not None or key in ("macs", "params"):
            change = "" if rest is None else f"{words.percent(rest)} left"
            exact = (words.exactly(before), words.exactly(after))
            rows.append(Row(name, words.count(before), words.count(after), change, exact, rest))
    return rows


def _file_rows(results: Results) -> list[Row]:
    before = results.dense_bytes
    row = results.files.get("model.safetensors")
    after = row.bytes if row else None
    rest = after / before if before and after is not None else None
    change = "" if rest is None else f"{words.percent(rest)} left"
    exact = tuple(f"{words.exactly(n)} bytes" if n is not None else "" for n in (before, after))
    return [Row("File of weights", words.size(before), words.size(after), change, (exact[0], exact[1]), rest)]


def _latency_rows(run: Run) -> list[Row]:
    if run.latency is None or not run.latency.runtimes:
        return [Row("Latency", words.UNKNOWN, words.UNKNOWN, "")]
    rows = []
    for row in run.latency.runtimes:
        dense, pruned = row.dense, row.pruned
        spreads = tuple(
            f"{words.milliseconds(t.p10_ms)} to {words.milliseconds(t.p90_ms)}"
            if t and t.p10_ms is not None and t.p90_ms is not None
            else ""
            for t in (dense, pruned)
        )
        share = None
        if dense and pruned and dense.median_ms and pruned.median_ms is not None:
            share = pruned.median_ms / dense.median_ms
        rows.append(
            Row(
                f"Latency, {runtime_name(row)}",
                words.milliseconds(dense.median_ms if dense else None),
                words.milliseconds(pruned.median_ms if pruned else None),
                speed(row, spread=True),
                (spreads[0], spreads[1]),
                share,
            )
        )
    rows += [
        Row(f"Latency, {runtime_name(skipped)}", words.UNKNOWN, words.UNKNOWN, "") for skipped in run.latency.skipped
    ]
    return rows


def _chance(results: Results) -> str:
    """How far chance alone moves an accuracy: the normal approximation of the binomial."""
    after, images, task = final(results.quality), results.quality.images, results.task
    if after is None or not images:
        return ""
    where = f"{images:,} images of the {results.quality.split or 'test'} split"
    if task.headline != "accuracy":  # no share of images
        return f"Each {task.headline} was measured once, on {where}."
    either = _NORMAL * math.sqrt(max(after * (1 - after), 0.0) / images)
    return (
        f"Each accuracy was measured once, on {where}; which images these happen to be moves "
        f"the final figure by about ±{100 * either:.2g} points (95% of the time)."
    )


def _collapse(results: Results) -> str:
    found, task = results.quality, results.task
    if found.dense is None or found.pruned is None or found.finetuned is None or task.unit != "share":
        return ""
    fall = found.dense - found.pruned
    if fall < _COLLAPSED:
        return ""
    back = found.finetuned - found.pruned
    return (
        f"Just after the cut the {task.headline} is {100 * fall:.1f} points below the dense network's. That is usual: "
        "the channels that are left have not learnt to do without the others. "
        f"Fine-tuning gave {100 * back:.1f} points back."
    )


def _budget(results: Results) -> list[str]:
    """What was asked for and what was reached, in the unit it was asked in."""
    asked = results.budget
    if asked is None:
        return []
    try:
        bounds = Budget.parse(asked).bounds if isinstance(asked, str | dict) else ()
    except BudgetError:
        bounds = ()
    told = []
    for key, bound in bounds:
        before, after = getattr(results.before, KEYS[key]), getattr(results.after, KEYS[key])
        if results.sparse is not None and key == "params":  # what is bounded are weights that are not zero
            before, after = results.sparse.weights, results.sparse.nonzero
        if not before or after is None:
            continue
        name = _COSTS[KEYS[key]] if results.sparse is None else "weights that are not zero"
        reached = after / before if bound <= 1 else after
        form = words.percent if bound <= 1 else words.count
        off = reached / bound - 1
        told.append(
            f"{name} {form(reached)} of at most {form(bound)} ("
            f"{'over by' if off > 0 else 'under by'} {abs(100 * off):.2g}% of it)"
        )
    said = words.plain(asked)
    return [f"Budget {said}: {', '.join(told)}." if told else f"Budget {said}."]
