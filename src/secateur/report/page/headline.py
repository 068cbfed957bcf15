"""The report's opening: one sentence that says what was gained and lost, and the table behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from secateur.budget import KEYS, Budget
from secateur.errors import BudgetError
from secateur.report.page import words
from secateur.report.page.inputs import Run
from secateur.report.page.measured import Interval, RuntimeRow, SkippedRow
from secateur.report.page.results import Quality, Results
from secateur.tasks.chance import beyond, newcombe, wilson

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
    "latency": "Predicted latency",
}
_COLLAPSED = 0.10  # a fall of ten points just after the cut is worth a word of comfort


@dataclass(frozen=True)
class Row:
    """One line of the headline table; `exact` figures stand small below the readable ones, `share` is a bar.

    between: 95% interval of the change. sure: whether the change is beyond chance, or was counted.
    """

    what: str
    before: str
    after: str
    change: str
    exact: tuple[str, str] = ("", "")
    share: float | None = None
    between: str = ""
    sure: bool = True


@dataclass(frozen=True)
class Change:
    """What a difference of two headlines means: its 95% interval, if there is one, and whether it leaves 0 out."""

    between: str
    verdict: str
    sure: bool


@dataclass(frozen=True)
class Headline:
    """Title, sentence, table and what is to be said of it."""

    title: str
    sentence: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def _named(method: str) -> str:
    """A method in a title: short names are abbreviations, but for a few words."""
    return method.upper() if method.islower() and len(method) <= 6 and method not in ("random", "taylor") else method


def headline(run: Run) -> Headline:
    """The opening of a run's report."""
    results = run.results
    model, data = words.network(results.model, results.kind), words.data_set(results.data_name)
    method = words.shortened(results.method.name, 40) if results.method else None
    said = [*_remaining(results), _quality_said(results), _speed_said(run)]
    return Headline(
        f"{model} on {data}" + (f", pruned with {_named(method)}" if method else ""),
        f"{model} on {data}: {'; '.join(part for part in said if part)}.",
        (*_quality_rows(results), *_cost_rows(results), *_file_rows(results), *_latency_rows(run)),
        tuple(n for n in (_chance(results), _longer(results), _collapse(results), *_budget(results)) if n),
    )


def speed(row: RuntimeRow, *, spread: bool = False) -> str:
    """What the paired ratio of one runtime means; where its interval holds 1, nothing is claimed."""
    if row.ratio is None:
        return row.said or words.UNKNOWN
    between = f" ({interval(row.ratio)})" if spread else ""
    if not row.apart:
        return f"not significant{between}" if spread else "no significant change of latency"
    median = row.ratio.median
    return f"{words.ratio(1 / median)} slower{between}" if median < 1 else f"{words.ratio(median)} faster{between}"


def quality_change(results: Results, before: float, after: float) -> Change:
    """Whether two headlines of this run differ by more than chance; only for shares of images it can be said."""
    task, images = results.task, results.quality.images
    if task.headline != "accuracy" or not images:
        return Change("", "measured once, without an interval", sure=False)
    low, high = newcombe(before, after, images)
    sure = beyond((low, high))
    between = f"{words.points(low).removesuffix(' points')} to {words.points(high)}"
    return Change(between, "significant" if sure else "not significant", sure)


def interval(ratio: Interval) -> str:
    """The bounds of a paired ratio; of one below 1 those of its inverse, how many times slower."""
    low, high = ratio.low or ratio.median, ratio.high or ratio.median
    low, high = (1 / high, 1 / low) if high < 1 else (low, high)
    return f"{words.ratio(low)} to {words.ratio(high)}"


def runtime_name(row: RuntimeRow | SkippedRow) -> str:
    """A runtime's name for people."""
    return RUNTIMES.get(row.runtime, words.shortened(row.runtime, 24))


def final(quality: Quality) -> float | None:
    """The headline of what the run leaves behind."""
    return next((a for a in (quality.final, quality.finetuned, quality.pruned) if a is not None), None)


def against(quality: Quality) -> tuple[float | None, str]:
    """The dense network's headline that the final one is held against, and how it was trained, if for as long."""
    return (quality.dense, "") if quality.longer is None else (quality.longer, "trained as long")


def _remaining(results: Results) -> list[str]:
    macs, params = results.remaining("macs"), results.remaining("params")
    if macs is None:
        return ["how much was removed is not known"]
    more = "" if params is None else f" and {words.percent(params)} of the parameters"
    mean = "" if results.expected is None else f" (on average over {results.expected.images:,} images)"
    return [f"{words.percent(macs)} of the MACs{mean}{more} remain"]


def _quality_said(results: Results) -> str:
    task, (dense, how), after = results.task, against(results.quality), final(results.quality)
    if after is None:
        return f"{task.headline} was not measured"
    before, now = task.shown(dense), task.shown(after)
    if dense is None:
        return f"{task.headline} {now} (the dense network's was not measured)"
    if how:
        verdict = quality_change(results, dense, after).verdict
        return f"{task.headline} {now}, and {before} of the dense network {how} ({verdict})"
    difference = after - dense
    if (round(1000 * difference) == 0) if task.unit == "share" else before == now:
        return f"{task.headline} stays at {now}"
    change = quality_change(results, dense, after)
    if not change.sure:
        return f"{task.headline} {before} before and {now} after ({change.verdict})"
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
        if value is None and not always:
            continue
        shown = "not fine-tuned" if found.final is not None and what.endswith("fine-tuning") else ""
        rows.append(_quality_row(results, what, value, shown))
    if found.longer is not None:  # of the dense network, so it stands in its column
        row = _quality_row(results, "Dense network trained as long", found.longer)
        rows.append(replace(row, before=row.after, after="–", exact=(row.exact[1], "")))
    return rows


def _quality_row(results: Results, what: str, value: float | None, otherwise: str = "") -> Row:
    """One headline beside the dense network's as it was cut; `otherwise`: what stands where it was not measured."""
    task, dense = results.task, results.quality.dense
    exact = (_within(results, dense), _within(results, value))
    before, after = task.shown(dense, 2), task.shown(value, 2)
    if value is None or dense is None:
        return Row(what, before, otherwise or after if value is None else after, "", exact)
    told = quality_change(results, dense, value)
    return Row(what, before, after, task.difference(value - dense), exact, between=told.between, sure=told.sure)


def _within(results: Results, value: float | None) -> str:
    """Wilson's interval of an accuracy."""
    if value is None or results.task.headline != "accuracy" or not results.quality.images:
        return ""
    low, high = wilson(value, results.quality.images)
    return f"{words.percent(low)} to {words.percent(high)}"


def _cost_rows(results: Results) -> list[Row]:
    rows = []
    for key, name in _COSTS.items():
        before, after = getattr(results.before, key), getattr(results.after, key)
        if key == "macs" and results.expected is not None:
            name = f"MACs (mean over {results.expected.images:,} images)"
        rest = results.remaining(key)
        if before is not None or after is not None or key in ("macs", "params"):
            change = "" if rest is None else f"{words.percent(rest)} left"
            if key == "latency":
                shown = [words.UNKNOWN if n is None else words.milliseconds(n / 1000) for n in (before, after)]
                rows.append(Row(name, shown[0], shown[1], change, share=rest))
                continue
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
        if row.apart and dense and pruned and dense.median_ms and pruned.median_ms is not None:
            share = pruned.median_ms / dense.median_ms
        rows.append(
            Row(
                f"Latency, {runtime_name(row)}",
                words.milliseconds(dense.median_ms if dense else None),
                words.milliseconds(pruned.median_ms if pruned else None),
                "not significant" if row.ratio and not row.apart else speed(row),
                (spreads[0], spreads[1]),
                share,
                interval(row.ratio) if row.ratio else "",
                row.apart,
            )
        )
    rows += [
        Row(f"Latency, {runtime_name(skipped)}", words.UNKNOWN, words.UNKNOWN, "") for skipped in run.latency.skipped
    ]
    return rows


def _chance(results: Results) -> str:
    """What the intervals of the accuracies are, or that there are none."""
    after, images, task = final(results.quality), results.quality.images, results.task
    if after is None or not images:
        return ""
    where = f"{images:,} images of the {results.quality.split or 'test'} split"
    if task.headline != "accuracy":  # no share of images
        return f"Each {task.headline} was measured once, on {where}: how far chance moves it is not known."
    return (
        f"Each accuracy was measured once, on {where}; the intervals (95%, Wilson's, and Newcombe's of a difference) "
        "say what other images of the same kind could give, not what another seed of the training could."
    )


def epochs_apart(results: Results) -> tuple[int, int] | None:
    """Epochs of the dense network and of the pruned one in all, where no dense one was trained for as long."""
    acts = results.method.acts if results.method else None
    parts = {stage: results.epochs.get(stage) or 0 for stage in ("pretrain", "train", "finetune")}
    dense, whole = parts["pretrain"] or (parts["train"] if acts == "after training" else 0), sum(parts.values())
    if results.quality.dense is None or results.quality.longer is not None or not 0 < dense < whole:
        return None
    return dense, whole


def _longer(results: Results) -> str:
    """When the dense network was trained for fewer epochs than the one that is left."""
    epochs = epochs_apart(results)
    if epochs is None:
        return ""
    dense, whole = epochs
    return (
        f"The dense network was trained for {words.number_of(dense, 'epoch')}, the pruned one for {whole:,} in all: a "
        "part of any gain may be the longer training. `secateur compare` trains both for as long."
    )


def _off(percent: float) -> str:
    """Two digits at least, and no exponent."""
    return f"{percent:.2g}" if percent < 99.5 else f"{percent:,.0f}"


def _collapse(results: Results) -> str:
    found, task = results.quality, results.task
    if found.dense is None or found.pruned is None or found.finetuned is None or task.unit != "share":
        return ""
    fall = found.dense - found.pruned
    if fall < _COLLAPSED:
        return ""
    back = 100 * (found.finetuned - found.pruned)
    gave = f"gave {back:.1f} points back" if back >= 0 else f"took another {-back:.1f} points"
    return (
        f"Just after the cut the {task.headline} is {100 * fall:.1f} points below the dense network's. That is usual: "
        "the channels that are left have not learnt to do without the others. "
        f"Fine-tuning {gave}."
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
            f"{'over by' if off > 0 else 'under by'} {_off(abs(100 * off))}% of it)"
        )
    said = words.plain(asked)
    return [f"Budget {said}: {', '.join(told)}." if told else f"Budget {said}."]
