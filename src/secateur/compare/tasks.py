"""What the engines of a comparison share: tasks, what each of them does, and which others wait for it.

Every task is a folder that can be continued, so that a process that dies costs no more than the work since its last
checkpoint, wherever it goes on.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from secateur import runs
from secateur._files import said
from secateur.compare import bases
from secateur.errors import RunError, SecateurError
from secateur.recipe import Recipe
from secateur.runs.folder import STATE, Folder
from secateur.training import Progress


@dataclass(frozen=True)
class Task:
    """A run, or a base network where `base` says so."""

    name: str
    recipe: Recipe  # of a run its own, of a base network that of the comparison
    seed: int
    folder: Path
    base: bool = False
    needs: str | None = None  # the task that must be done before


@dataclass(frozen=True)
class Done:
    """A task that is over. `said`: why it came to nothing; `details`: where, if the fault is ours."""

    task: Task
    said: str | None = None
    details: str = ""
    seconds: float = 0.0


class Begun(Protocol):
    """Told when a task begins; `again`: why, if it is not for the first time."""

    def __call__(self, task: Task, again: str = "") -> None: ...


@dataclass(frozen=True)
class Engine:
    """Does all tasks, each after what it needs, and yields each as it ends; `jobs`: how many at a time."""

    jobs: int
    run: Callable[[Sequence[Task], Begun], Generator[Done, None, None]]


def attempt(task: Task, command: str, progress: Progress | None = None) -> Done:
    """Do one task, or go on with it."""
    began = time.monotonic()
    why, details = None, ""
    try:
        if task.base:
            bases.train(task.recipe, task.seed, task.folder, progress=progress, command=command)
        elif (task.folder / STATE).is_file():
            _check(task)
            runs.resume(task.folder, progress=progress, command=command)
        else:
            runs.start(task.recipe, task.folder, progress=progress, command=command)
    except SecateurError as error:
        why = str(error)
    except Exception as error:  # one defect must not end a night of measurements
        why = f"Secateur itself failed ({type(error).__name__}: {said(error)[:300]}): please report it."
        details = traceback.format_exc()
    return Done(task, why, details, time.monotonic() - began)


def _check(task: Task) -> None:
    """RunError unless the run that is there is of this cell; where its base network lies does not matter."""
    there = Folder.open(task.folder).recipe
    model = there.model.model_copy(update={"weights": task.recipe.model.weights})
    if there.model_copy(update={"model": model}) != task.recipe:
        raise RunError(f"{str(task.folder)!r} holds a run of another recipe: remove it, or give another --out.")


class Queue:
    """What is left to do."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._waiting = list(tasks)
        self._open = {task.name for task in tasks}  # not over
        self._lost: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Task | None:
        """The first that needs nothing that is open."""
        for task in self._waiting:
            if task.needs not in self._open:
                self._waiting.remove(task)
                return task
        return None

    def close(self, done: Done) -> list[Done]:
        """One is over, and with it those that cannot do without it."""
        self._open.discard(done.task.name)
        if done.said is None:
            return [done]
        lost = [task for task in self._waiting if task.needs == done.task.name]
        self._waiting = [task for task in self._waiting if task not in lost]
        self._open -= {task.name for task in lost}
        return [done, *(Done(task, f"Its base network could not be trained: {done.said}") for task in lost)]
