"""The proof in words: what was compared, how well it agreed, what was frozen, and which files there are."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.graph.explain import shorten, shorten_reasons
from secateur.report.page import words
from secateur.report.page.inputs import Run
from secateur.report.page.measured import Exported
from secateur.report.page.results import Proof, Results

_SETTLED = 0.005  # half a point between soft and hard gates
_LOST = 0.01  # a point of accuracy between the network and the one in 8 bits
_EXPORTS = {
    "onnx": ("model.onnx", "ONNX file"),
    "pt2": ("model.pt2", "torch.export file"),
    "openvino": ("model.xml", "OpenVINO files"),
    "executorch": ("model.pte", "ExecuTorch file"),
}
_USUAL = ("onnx", "pt2")  # their absence is worth a line
_INT8 = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Statement:
    """One thing proven, or not: `state` is "yes", "no" or "unknown"; `reasons` stand below it."""

    state: str
    title: str
    text: str
    reasons: tuple[str, ...] = ()


def statements(run: Run) -> tuple[Statement, ...]:
    """What was checked of a run, in words."""
    found = run.results
    return (_cut(run.proof), *_masks(found), *_exports(run), *_int8(found), *_not_exported(found))


def frozen(results: Results) -> tuple[tuple[str, str], ...]:
    """(widths, reason) of what could not be pruned, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in results.frozen or ():
        width = "" if row.width is None else f" ({row.width:,})"
        reasons.setdefault(row.reason or "no reason was given", []).append(row.name + width)
    return tuple((words.several(shorten(names), 12), reason) for reason, names in reasons.items())


def unsupported(results: Results) -> tuple[tuple[str, str], ...]:
    """(operator, modules) of what has no rule."""
    operators: dict[str, list[str]] = {}
    for row in results.unsupported:
        operators.setdefault(row.operator, []).append(row.module or "the model")
    return tuple((name, words.several(shorten(where), 12)) for name, where in operators.items())


def files(results: Results) -> tuple[tuple[str, str, str], ...]:
    """(name, size, sha256) of the files of the folder."""
    return tuple((name, words.size(row.bytes), row.sha256 or "not known") for name, row in results.files.items())


def _cut(proof: Proof | None) -> Statement:
    """The comparison with the masked original, on random weights and input."""
    if proof is None:
        return Statement("unknown", "The cut", "was not verified, or its verification is missing from the folder.")
    compared = "" if proof.outputs is None else f", {words.number_of(proof.outputs, 'output value')} compared"
    limit = "not given" if proof.tolerance is None else f"{proof.tolerance:.0e}"
    if proof.exact:
        said = (
            "is exact: with random weights and input, the cut network computes what the original computes with the "
            f"removed channels set to zero (relative error {words.error(proof.max_relative_error)}, "
            f"tolerance {limit}{compared})."
        )
        return Statement("yes", "The cut", said)
    good = proof.structural_error is not None and (proof.tolerance is None or proof.structural_error <= proof.tolerance)
    if good:
        said = (
            "is right but not exact: the cut network equals the original with these channels taken out (relative "
            f"error {words.error(proof.structural_error)}, tolerance {limit}{compared}); it differs from the original "
            f"with them set to zero (relative error {words.error(proof.max_relative_error)}), for removing a channel "
            "changes what other channels compute."
        )
        return Statement("yes", "The cut", said, tuple(shorten_reasons(proof.reasons)))
    said = (
        f"is not proven: relative error {words.error(proof.max_relative_error)} against the original with the removed "
        f"channels set to zero, {words.error(proof.structural_error)} with them taken out (tolerance {limit})."
    )
    return Statement("no", "The cut", said, tuple(shorten_reasons(proof.reasons)))


def _masks(results: Results) -> list[Statement]:
    """How the network with gates compares with the one that is left, in the task's headline."""
    task, images = results.task, results.quality.images
    soft, hard, pruned = results.quality.soft, results.quality.hard, results.quality.pruned
    found = []
    if soft is not None and hard is not None:
        alike = abs(hard - soft) <= _SETTLED * task.scale
        said = (
            f"{'agree' if alike else 'disagree'}: {task.headline} {task.shown(hard, 2)} with hard masks, "
            f"{task.shown(soft, 2)} with soft ones ({task.difference(hard - soft)})."
        )
        found.append(Statement("yes" if alike else "no", "Soft and hard gates", said))
    if hard is not None and pruned is not None:
        one_image = task.scale / (images or 1_000_000)  # may tip over by rounding
        alike = abs(hard - pruned) <= 1.001 * one_image
        if hard == pruned:
            said = f"have the same {task.headline}: {task.shown(hard, 2)}."
        else:
            said = (
                f"{'agree but for an image' if alike else 'disagree'}: {task.headline} {task.shown(hard, 2)} with hard "
                f"masks, {task.shown(pruned, 2)} when cut ({task.difference(pruned - hard)})."
            )
        found.append(Statement("yes" if alike else "no", "Masked and cut network", said))
    return found


def _exports(run: Run) -> list[Statement]:
    return [
        _export(getattr(run.checks, key) if run.checks else None, file in run.results.files, file, what)
        for key, (file, what) in _EXPORTS.items()
        if (key in _USUAL and key not in run.results.not_exported) or file in run.results.files
    ]


def _not_exported(results: Results) -> list[Statement]:
    """Formats that the recipe names and the network could not be written in."""
    found = []
    for key, reason in results.not_exported.items():
        int8 = key.removeprefix("int8.")
        file, what = _EXPORTS.get(key, (key, "File"))
        title = f"In 8 bits for {_INT8.get(int8, int8)}" if int8 != key else f"{what} ({file})"
        found.append(Statement("no", title, "was not written.", (reason,)))
    return found


def _int8(results: Results) -> list[Statement]:
    """What is left of the headline in whole numbers of 8 bits."""
    found, task = [], results.task
    for name, row in results.int8.items():
        title = f"In 8 bits for {_INT8.get(name, name)}"
        of = "" if row.images is None else words.number_of(row.images, "test image")
        said = f"{task.headline} {task.shown(row.quality, 2)}" + (f" on {of}" if of else "")
        if task.headline == "accuracy":
            said = f"the network gets {task.shown(row.quality, 2)}{f' of {of}' if of else ''} right"
        change = None if row.float_quality is None else row.quality - row.float_quality
        if change is not None:
            said += f", and {task.shown(row.float_quality, 2)} in floating point ({task.difference(change)})"
        if row.calibration_images is not None:
            said += f"; calibrated with {words.number_of(row.calibration_images, 'training image')}"
        size = "" if row.bytes is None else f" It takes {words.size(row.bytes)}."
        lost = change is not None and (-change if task.higher_is_better else change) > _LOST * task.scale
        found.append(Statement("no" if lost else "yes", title, f"{said}.{size}"))
    return found


def _export(found: Exported | None, there: bool, file: str, what: str) -> Statement:
    title = f"{what} ({file})"
    if found is None:
        said = (
            "is in the folder, but how well it agrees is not known." if there else "is not among the files of this run."
        )
        return Statement("unknown", title, said)
    worst, limit = found.max_relative_error, found.tolerance
    said = f"relative error {words.error(worst)}" + ("" if limit is None else f", tolerance {limit:.0e}")
    if worst is None or (limit is not None and worst > limit):
        return Statement("no", title, f"differs from the network it was made from ({said}).")
    batch = {None: "", True: " with any batch size"}.get(found.dynamic_batch, " with a fixed batch size")
    reasons = (found.reason,) if found.reason and found.dynamic_batch is False else ()
    return Statement("yes", title, f"computes what the network computes{batch} ({said}).", reasons)
