"""Runs: from a recipe to a folder with the pruned network and everything about it, through any number of interruptions.

outcome = start(Recipe.read("recipe.yaml"), Path("runs/a"), progress=make_progress())
outcome = resume(Path("runs/a"))
outcome.results["accuracy"]["final"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur._distributed import rank
from secateur._files import read_json, write_json
from secateur.data import digest_of
from secateur.errors import RunError
from secateur.recipe import Recipe
from secateur.report.html import write_report
from secateur.runs.changing import CHANGEABLE, Change, changed
from secateur.runs.documents import changes, describe_checks, describe_run, session
from secateur.runs.exporting import try_exports
from secateur.runs.folder import REPORT, RESULTS, VERIFICATION, Folder, locked, on_disk, refuse
from secateur.runs.preparing import Prepared, prepare
from secateur.runs.stages import Stages, file_names
from secateur.runtime import push_to_hub
from secateur.training import Engine, Progress, Silent
from secateur.training.interrupts import ending

__all__ = ["CHANGEABLE", "Outcome", "Prepared", "prepare", "resume", "start"]

Opened = Callable[[Prepared], None]


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    folder: Path
    results: dict[str, Any]
    report: Path
    already: bool = False  # it had been finished before

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Send the network to the Hugging Face Hub with a card of the run; `secateur.push_to_hub` has the options."""
        return push_to_hub(self.folder, name, **options)


def start(
    recipe: Recipe, folder: Path, *, progress: Progress | None = None, command: str = "", opened: Opened | None = None
) -> Outcome:
    """Do everything a recipe says and leave it in `folder`, which must not exist or be empty.

    Args:
        progress: who is told. command: how the run was called, for the report.
        opened: called with what was prepared, once everything is known to be in order and before anything is written.

    Raises:
        SecateurError: one sentence; nothing has been written if it is about the recipe.
        KeyboardInterrupt: after Ctrl-C; `resume` goes on from there.
    """
    refuse(folder)
    prepared = _prepared(recipe, progress)
    if opened is not None and rank() == 0:
        opened(prepared)
    if rank() == 0:
        refuse(folder)  # several processes come here one after the other
    return _go(prepared, Folder.create(folder, recipe), progress, command)


def resume(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    progress: Progress | None = None,
    command: str = "",
    opened: Opened | None = None,
) -> Outcome:
    """Go on with an interrupted run; on the CPU it ends with the same weights as one that was not interrupted.

    Args:
        folder: of the run. overrides: such as "export.onnx=false", of what does not touch training (`CHANGEABLE`); the
            stages that they concern are done again, also in a finished run.
        progress, command, opened: as in `start`.

    Raises:
        SecateurError: one sentence: this is no run, its recipe or its data have been changed, a file cannot be read.
    """
    run = Folder.open(folder)
    change = changed(run, overrides)
    if run.finished and change is None:
        return _outcome(folder, already=True)
    prepared = _prepared(run.recipe if change is None else change.recipe, progress)
    if opened is not None and rank() == 0:
        opened(prepared)
    return _go(prepared, run, progress, command, change)


def _prepared(recipe: Recipe, progress: Progress | None) -> Prepared:
    told = progress or Silent()
    try:
        return prepare(recipe, told.measured)
    finally:
        told.end_stage()  # a bar that an error or Ctrl-C has left


def _go(
    prepared: Prepared, folder: Folder, progress: Progress | None, command: str, change: Change | None = None
) -> Outcome:
    with locked(folder.path), ending(), on_disk(folder.path), ExitStack() as stack:
        recipe = prepared.recipe
        engine = Engine(
            prepared.data,
            recipe.engine,
            seed=recipe.seed,
            batch_size=recipe.data.batch_size,
            workers=recipe.data.workers,
            folder=folder.path,
            progress=progress or Silent(),
            task=prepared.task,
            about=recipe.to_dict(),
        )
        stack.callback(engine.close)
        if folder.main:  # another process would sweep away what this one is writing
            folder.sweep()
        data = folder.keep_data(digest_of(prepared.data))
        if change is not None:  # nothing is left that could refuse it
            change.make(folder)
        told = (*prepared.notes, *data, *folder.rewind(prepared.stages))
        for sentence in prepared.data.notes:
            engine.say(sentence, note=False)  # they are among the data in the results
        for sentence in told:
            engine.say(sentence)
        folder.begin_session(session(engine.described, command, prepared))
        for sentence in changes(folder.sessions):
            engine.say(sentence, note=False)  # the report says it in any case
        if len(folder.sessions) == 1 and folder.main:
            try_exports(prepared, engine.say)
        engine.wind(sum(float(stage["seconds"]) for stage in folder.stages.values()))
        stages = Stages(prepared, folder, engine)
        for stage in prepared.stages:
            if stage in folder.stages:
                continue
            if stage == "report":
                _report(prepared, folder)
            else:
                stages.run(stage)
    return _outcome(folder.path)


def _report(prepared: Prepared, folder: Folder) -> None:
    """Everything that is about the run as a whole."""
    if not folder.main:
        return
    done = folder.stages
    write_json(
        folder.path / VERIFICATION,
        describe_checks(done, {name: folder.digest(name) for name in file_names(folder.path) if name != VERIFICATION}),
        what="The verification",
    )
    files = {name: folder.digest(name) for name in file_names(folder.path)}
    write_json(folder.path / RESULTS, describe_run(prepared, done, folder.sessions, files), what="The results")
    write_report(folder.path)
    folder.finish("report", {"seconds": 0.0}, [VERIFICATION, RESULTS])


def _outcome(folder: Path, *, already: bool = False) -> Outcome:
    if rank() > 0:
        return Outcome(folder, {}, folder / REPORT, already)
    try:
        results = read_json(folder / RESULTS, what="The results")
    except RunError as error:
        raise RunError(f"{str(error).rstrip('.')}: remove {RESULTS}, and resume the run.") from error
    if not isinstance(results, dict) or results.get("format") != "secateur.run":
        raise RunError(f"{str(folder / RESULTS)!r} is damaged: remove it, and resume the run.")
    return Outcome(folder, results, folder / REPORT, already)
