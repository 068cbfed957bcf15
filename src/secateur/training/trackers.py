"""The rows of metrics.jsonl for trackers of experiments too: TensorBoard, W&B and others, by Accelerate."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from secateur._files import said, whole_lines
from secateur._importing import imported
from secateur.errors import ConfigError
from secateur.recipe import TRACKERS

_PROJECT = "secateur"
#: What each is told besides the project, where it can be: the name of the run.
_NAMED: Mapping[str, str] = {"wandb": "name", "mlflow": "run_name", "swanlab": "experiment_name", "trackio": "name"}


def check_trackers(names: Iterable[str]) -> None:
    """See that the packages of these trackers are there, and what import paths name.

    Raises:
        ConfigError: one is not; one sentence.
    """
    for name in names:
        if name in TRACKERS and importlib.util.find_spec(TRACKERS[name]) is None:
            package = TRACKERS[name].replace("_", "-")
            raise ConfigError(
                f"engine.trackers names {name}, and {package} is not installed: pip install {package}, or leave it out."
            )
        if name not in TRACKERS:
            _own(name)


class Trackers:
    """What follows one run; each tracker begins with the first row.

    folder: of the run; its name is that of the run there. about: the recipe, which trackers keep as the configuration.
    say: told, once, of a tracker that fails; training goes on without it.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        accelerator: Any,
        folder: Path,
        about: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        check_trackers(names)
        self._names, self._accelerator, self._folder, self._about, self._say = names, accelerator, folder, about, say
        self._at_work: list[Any] | None = None
        self._before: dict[str, int] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """One epoch's numbers under STAGE/NAME, over the optimiser steps of all stages together."""
        stage = row["stage"]
        values = {
            f"{stage}/{name}": value
            for name, value in {**row, **row.get("method", {})}.items()
            if isinstance(value, int | float) and name not in ("epoch", "step")
        }
        step = self._steps_before(stage) + row["step"]
        if self._at_work is None:
            begun = [self._try(name, functools.partial(self._begun, name)) for name in self._names]
            self._at_work = [tracker for tracker in begun if tracker is not None]
        for tracker in tuple(self._at_work):
            self._try(tracker.name, functools.partial(tracker.log, values, step=step), tracker)

    def end(self) -> None:
        """Say that nothing follows."""
        for tracker in self._at_work or ():
            self._try(tracker.name, tracker.finish)
        self._at_work = None

    def _begun(self, name: str) -> Any:
        """A tracker that has been told what the run is."""
        accelerator = self._accelerator
        accelerator.project_configuration.set_directories(str(self._folder))
        accelerator.log_with = [name if name in TRACKERS else _own(name)(self._folder.name, str(self._folder))]
        accelerator.trackers = []
        given = {_NAMED[name]: self._folder.name} if name in _NAMED else {}
        # TensorBoard's files lie in the folder of the run, under its own name; others have the project as their own
        project = "tensorboard" if name == "tensorboard" else _PROJECT
        accelerator.init_trackers(project, _flat(self._about) or None, {name: given})
        return accelerator.trackers[0]

    def _try(self, name: str, work: Callable[[], Any], failing: Any = None) -> Any:
        """What the work gives; None where it fails, which is said."""
        try:
            return work()
        except Exception as error:  # whatever a service far away raises; the rows are in metrics.jsonl all the same
            self._say(f"The tracker {name} fails and is left out from here on ({type(error).__name__}: {said(error)}).")
            if self._at_work and failing in self._at_work:
                self._at_work.remove(failing)
        return None

    def _steps_before(self, stage: str) -> int:
        """Optimiser steps of the stages that went before."""
        if stage not in self._before:
            last: dict[str, int] = {}
            for row in whole_lines(self._folder / "metrics.jsonl", what="The metrics"):
                last[row["stage"]] = row["step"]
            self._before[stage] = sum(step for other, step in last.items() if other != stage)
        return self._before[stage]


def _own(name: str) -> Callable[..., Any]:
    """A tracker class of the user's own."""
    from accelerate.tracking import GeneralTracker

    found = imported(name, "tracker")
    if not inspect.isclass(found) or not issubclass(found, GeneralTracker):
        raise ConfigError(
            f"The tracker {name!r} is no subclass of accelerate.tracking.GeneralTracker: name one, or one of "
            f"{', '.join(TRACKERS)}."
        )
    return found


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested sections as one, for trackers that take words and numbers only."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{where}{key}.")
        elif value is not None:
            found[f"{where}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
