"""The report's opening: one sentence that says what was gained and lost, and the table behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from secateur.budget import KEYS, Budget
from secateur.errors import BudgetError
from secateur.report.page import words
from secateur.report.page.inputs import Accuracy, Interval, Results, Run, RuntimeRow, SkippedRow

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
    said = [*_remaining(results), _accuracy_said(results.accuracy), _speed_said(run)]
    return Headline(
        f"{model} on {data}" + (f", pruned with {method.upper() if method.islower() else method}" if method else ""),
        f"{model} on {data}: {'; '.join(part for part in said if part)}.",
        (*_accuracy_rows(results.accuracy), *_cost_rows(results), *_file_rows(results), *_latency_rows(run)),
        tuple(note for note in (_chance(results.accuracy), _collapse(results.accuracy), *_budget(results)) if note),
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


def final(accuracy: Accuracy) -> float | None:
    """The accuracy of what the run leaves behind."""
    return next((a for a in (accuracy.final, accuracy.finetuned, accuracy.pruned) if a is not None), None)


def _remaining(results: Results) -> list[str]:
    macs, params = results.remaining("macs"), results.remaining("params")
    if macs is None:
        return ["how much was removed is not known"]
    more = "" if params is None else f" and {words.percent(params)} of the parameters"
    return [f"{words.percent(macs)} of the MACs{more} remain"]


def _accuracy_said(accuracy: Accuracy) -> str:
    after = final(accuracy)
    if after is None:
        return "accuracy was not measured"
    if accuracy.dense is None:
        return f"accuracy {words.percent(after)} (the dense network's was not measured)"
    difference = after - accuracy.dense
    verdict = "rises" if difference > 0 else "falls" if difference < 0 else "stays"
    if round(1000 * difference) == 0:
        return f"accuracy stays at {words.percent(after)}"
    if images := accuracy.images:  # two shares of as many images: normal approximation, images not paired
        spread = accuracy.dense * (1 - accuracy.dense) + after * (1 - after)
        if abs(difference) <= _NORMAL * math.sqrt(spread / images):
            return f"accuracy {words.percent(accuracy.dense)} before and {words.percent(after)} after (not significant)"
    change = f"{words.points(difference, 1)}"
    return f"accuracy {verdict} from {words.percent(accuracy.dense)} to {words.percent(after)} ({change})"


def _speed_said(run: Run) -> str:
    if run.latency is None or not run.latency.runtimes:
        return "latency was not measured"
    alike: dict[str, list[str]] = {}
    for row in run.latency.runtimes:
        alike.setdefault(speed(row), []).append(runtime_name(row))
    return ", ".join(f"{said} on {words.several(names)}" for said, names in alike.items())


def _accuracy_rows(accuracy: Accuracy) -> list[Row]:
    """Accuracy at each point of the run against the dense network's."""
    named = [
        ("Accuracy with soft gates", accuracy.soft, False),
        ("Accuracy with hard masks", accuracy.hard, False),
        ("Accuracy just after the cut", accuracy.pruned, True),
        ("Accuracy after fine-tuning", accuracy.finetuned, True),
    ]
    rows = []
    for what, value, always in named:
        if value is not None or always:
            after = words.percent(value, 2)
            if value is None and accuracy.final is not None and what.endswith("fine-tuning"):
                after = "not fine-tuned"
            change = "" if value is None or accuracy.dense is None else words.points(value - accuracy.dense)
            rows.append(Row(what, words.percent(accuracy.dense, 2), after, change))
    if accuracy.final is not None and accuracy.final not in (accuracy.finetuned, accuracy.pruned):
        change = "" if accuracy.dense is None else words.points(accuracy.final - accuracy.dense)
        rows.append(
            Row("Accuracy in the end", words.percent(accuracy.dense, 2), words.percent(accuracy.final, 2), change)
        )
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


def _chance(accuracy: Accuracy) -> str:
    """How far chance alone moves an accuracy: the normal approximation of the binomial."""
    after, images = final(accuracy), accuracy.images
    if after is None or not images:
        return ""
    where = f"{images:,} images of the {accuracy.split or 'test'} split"
    either = _NORMAL * math.sqrt(after * (1 - after) / images)
    return (
        f"Each accuracy was measured once, on {where}; which images these happen to be moves "
        f"the final figure by about ±{100 * either:.2g} points (95% of the time)."
    )


def _collapse(accuracy: Accuracy) -> str:
    if accuracy.dense is None or accuracy.pruned is None or accuracy.finetuned is None:
        return ""
    fall = accuracy.dense - accuracy.pruned
    if fall < _COLLAPSED:
        return ""
    back = accuracy.finetuned - accuracy.pruned
    return (
        f"Just after the cut the accuracy is {100 * fall:.1f} points below the dense network's. That is usual: the "
        "channels that are left have not learnt to do without the others. "
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
