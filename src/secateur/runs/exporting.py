"""What a run exports: files of every format its recipe names, and the network in 8 bits, with its accuracy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._files import by_system, said
from secateur._hints import choose
from secateur.data import open_data
from secateur.errors import ConfigError, RunError, SecateurError
from secateur.recipe import Recipe
from secateur.runs.calibration import Calibration, single_images
from secateur.runs.folder import RECIPE
from secateur.runs.preparing import Prepared
from secateur.runtime import EXPORTERS, QUANTISERS, Exporter, Quantiser, open_exported
from secateur.runtime.again import network_of, note, target_of
from secateur.runtime.deploying import all_plain, deployment_note, for_format
from secateur.runtime.export import Subject, export_subject
from secateur.runtime.folder import Folder
from secateur.runtime.inputs import batch_of, with_batch
from secateur.runtime.int8 import quantise_subject
from secateur.tasks import Evaluator, Task, create
from secateur.training.interface import Split
from secateur.training.randomness import derive

Values = dict[str, Any]


def write_exports(
    prepared: Prepared, narrow: nn.Module, folder: Path, say: Callable[..., None]
) -> tuple[Values, list[str]]:
    """Write what the recipe's section export asks for; what was found of each, and the names of the files.

    A format that cannot be written is left out, and named with its reason under "failed".

    say: the engine's; sentences with `note` stand in the report.
    """
    recipe = prepared.recipe
    formats, quantisers = _wanted(recipe)
    values: Values = {}
    names: list[str] = []
    if not formats and not quantisers:
        return values, names
    inputs = prepared.network().inputs
    whole, plain = Subject.of(narrow, inputs), all_plain(narrow)
    ordinary = whole if plain is narrow else Subject.of(plain, inputs)
    calibration = calibration_of(recipe, prepared.data)
    images = single_images(prepared.data.test) if prepared.row.result == "per input" else None
    for row in (*formats, *quantisers):
        say(f"Writing {row.file}: {row.summary}.", note=False)
        key = f"int8.{row.name}" if isinstance(row, Quantiser) else row.name
        try:
            if isinstance(row, Quantiser):
                found = _quantised(row, ordinary, folder / row.file, calibration, prepared.data.test, prepared.task)
                values.setdefault("int8", {})[row.name] = found
                if ordinary is not whole:
                    say(f"In {row.file} all layers are computed plainly: quantisers know no other way.", note=True)
            else:
                made = for_format(row.name, narrow, inputs, images)
                given = inputs if made.fixed is None else with_batch(inputs, 1)
                subject = whole if made.model is narrow else Subject.of(made.model, given, fixed=made.fixed)
                values[row.name] = {**export_subject(row.name, subject, folder / row.file), **made.forms}
                if made.forms:
                    say(deployment_note(row.file, made.forms["forms"]), note=True)
                elif made.model is not narrow:
                    say(f"In {row.file} all channels are computed and masked, for batches of any size.", note=True)
            names += row.files
        except SecateurError as error:
            if by_system(error) or not folder.is_dir():  # that is no matter of the format
                raise
            for name in row.files:  # of an attempt before
                (folder / name).unlink(missing_ok=True)
            values.setdefault("failed", {})[key] = str(error)
            say(f"{row.file} was not written, and the run continues without it: {error}", note=True)
    return values, names


def try_exports(prepared: Prepared, say: Callable[..., None]) -> None:
    """Export the network as it is before any training, elsewhere, and say at once which files there will not be.

    say: the engine's.
    """
    formats, quantisers = _wanted(prepared.recipe)
    if not formats and not quantisers:
        return
    loaded = prepared.network()
    subject = Subject.of(loaded.model.eval(), loaded.inputs)
    tried = [*formats, *(EXPORTERS[row.format] for row in quantisers if EXPORTERS[row.format] not in formats)]
    try:
        with tempfile.TemporaryDirectory() as place:
            for row in tried:
                reason = _refused(row, subject, Path(place))
                if reason is not None:
                    told = f"{row.file} will not be written unless the narrow network differs: {reason}"
                    say(f"{told} The run goes on.", note=False)
    except OSError as error:
        say(f"Exports were not tried before training, for want of a folder to try them in: {said(error)}.", note=False)


def _refused(row: Exporter, subject: Subject, folder: Path) -> str | None:
    """Why a network cannot be exported, or None."""
    try:
        export_subject(row.name, subject, folder / row.file)
    except SecateurError as error:
        if by_system(error):
            raise OSError(str(error).rstrip(".")) from error
        return str(error)
    return None


def _wanted(recipe: Recipe) -> tuple[list[Exporter], list[Quantiser]]:
    formats = [row for name, row in EXPORTERS.items() if getattr(recipe.export, name)]
    return formats, [QUANTISERS[name] for name in dict.fromkeys(recipe.export.int8)]


def export_int8(
    folder: str | os.PathLike[str], form: str, path: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Write the network of a run folder in 8 bits, for the runtime of the format `form`, and test its accuracy.

    The images to calibrate with and to test on are those of the run, wherever its recipe says they lie.

    Args:
        path: where to; by default beside the other files, whose lists of hashes and results then follow.

    Returns:
        what `secateur.runtime.export_int8` found, the task's headline ("accuracy"), "images" (tested on), "path", and
        "said", the headline in words.
    """
    by_format = {row.format: row for row in QUANTISERS.values()}
    choose(form, list(EXPORTERS), "format")
    if form not in by_format:
        raise ConfigError(f"There is no quantiser for the format {form!r}: choose {' or '.join(by_format)}.")
    row = by_format[form]
    row.check()
    run = Folder.open(folder)
    if not run.has(RECIPE):
        raise RunError(
            f"{str(folder)!r} holds no {RECIPE}, which would name the images to calibrate with: use "
            "secateur.runtime.export_int8 in Python, with images of yours."
        )
    recipe = Recipe.read(run.path / RECIPE)
    network, inputs = network_of(run)
    target = target_of(run, row.file, path)
    task = create(recipe.task.name, **recipe.task.settings)
    data = open_data(recipe.data, recipe.seed, task)
    subject = Subject.of(all_plain(network), inputs)
    found = _quantised(row, subject, target, calibration_of(recipe, data), data.test, task)
    if path is None and run.results is not None:
        final = (run.results.get(task.headline) or {}).get("final")
        note(run, row.files, ("int8", row.name), found, {**found, f"float_{task.headline}": final})
    return {**found, "path": str(target), "said": f"{task.headline} {task.shown(found[task.headline])}"}


def calibration_of(recipe: Recipe, data: Any) -> Calibration:
    """The images of the training set that methods, repairs and quantisers learn from, on the CPU."""
    config, seed = recipe.data, derive(recipe.seed, "calibration")
    return Calibration(data.train, config.calibration_images, config.batch_size, seed, torch.device("cpu"))


def _quantised(
    row: Quantiser, subject: Subject, path: Path, calibration: Calibration, test: Split, task: Task
) -> Values:
    """Write one network in 8 bits, and say what it is worth."""
    found = quantise_subject(row.name, subject, path, calibration)
    size = None if found["dynamic_batch"] else batch_of(subject.inputs)
    return {**found, **_tested(open_exported(path, batch_size=size), test, calibration.size, task)}


@torch.no_grad()
def _tested(network: nn.Module, split: Split, batch_size: int, task: Task) -> Values:
    """The task's headline on all images, and how many there are; by one process alone, as the file is its own."""
    found = Evaluator(task)
    for inputs, targets in split.batches(batch_size):
        if task.samples(targets):
            found.see(network, inputs, targets)
    return {task.headline: found.result(alone=True)[task.headline], "images": found.samples}
