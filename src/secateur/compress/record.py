"""The memory of a search: Optuna's studies and a few decisions, in a file that survives being killed, or in memory.

A trial that a killed process has left running is taken up again under its number with its parameters. What depends on
a clock (how many trials there are, how long is trained) is decided once and written down before it counts. So a search
that goes on ends with the same trials and the same network.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import optuna
import torch
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from secateur._files import by_system, said, write_bytes
from secateur.errors import RunError
from secateur.training.randomness import derive

T = TypeVar("T")
STUDY = "study.db"
RACE, FINALISTS, SMALLEST = "race", "finalists", "smallest"
_DIRECTIONS: Mapping[str, Sequence[str]] = {
    RACE: ("maximize", "minimize"), FINALISTS: ("maximize",), SMALLEST: ("maximize", "minimize"),
}  # fmt: skip


class Record:
    """Studies, decisions and weights of one search."""

    def __init__(self, folder: Path | None, seed: int) -> None:
        """Open or begin it. folder: where it is kept; None: in memory. RunError where that cannot be."""
        self._folder, self._seed = folder, seed
        self._new = folder is not None and not (folder / STUDY).exists()
        self._weights: dict[str, bytes] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            where = None if folder is None else f"sqlite:///{folder / STUDY}"
            self._storage: Any = optuna.storages.get_storage(where)
            self._studies = {name: self._opened(name) for name in _DIRECTIONS}
        except Exception as problem:
            raise RunError(
                f"The search in {str(folder)!r} cannot be opened ({said(problem)}): give another folder."
            ) from problem
        self._began = time.monotonic() - float(self.decision("spent") or 0.0)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, what a disk refuses ends in a sentence that says how to go on; what was written down stays."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except BrokenPipeError:  # who was told has left
            raise
        except (OSError, RunError, StorageInternalError, SQLAlchemyError) as problem:
            if self._folder is None or (isinstance(problem, RunError) and not by_system(problem)):
                raise
            cause = problem.__cause__ if isinstance(problem, StorageInternalError) and problem.__cause__ else problem
            why = said(getattr(cause, "orig", cause))  # of a database's error what the system said
            raise RunError(
                f"The search in {str(self._folder)!r} cannot go on ({why}): see to that, and ask for the same again, "
                "which goes on from there."
            ) from problem

    def forget(self) -> None:
        """Leave no trace of a search that was refused before anything was tried."""
        if self._folder is None or not self._new:
            return
        self._storage.remove_session()
        with suppress(OSError):
            (self._folder / STUDY).unlink()
            self._folder.rmdir()  # which fails where there is something else

    def _opened(self, name: str) -> Study:
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
        return optuna.create_study(
            storage=self._storage, study_name=name, directions=list(_DIRECTIONS[name]), load_if_exists=True,  # type: ignore[arg-type]
            pruner=pruner,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- decisions

    def decision(self, key: str) -> Any:
        """What was decided, or None."""
        return self._studies[RACE].user_attrs.get(key)

    def decide(self, key: str, make: Callable[[], T]) -> T:
        """What was decided under this key, or what `make` gives, written down first; plain JSON."""
        if self.decision(key) is None:
            self._studies[RACE].set_user_attr(key, make())
        found: T = self.decision(key)
        return found

    def spent(self) -> float:
        """Seconds that the search has taken, in all processes that worked on it."""
        return time.monotonic() - self._began

    def tick(self) -> None:
        """Write down how long it has taken so far."""
        self._studies[RACE].set_user_attr("spent", round(self.spent(), 3))

    # ------------------------------------------------------------------------------------------------- trials

    def named(self, figure: str, cost: str) -> None:
        """Tell dashboards what the values of trials are."""
        for name, directions in _DIRECTIONS.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._studies[name].set_metric_names([figure, cost][: len(directions)])

    def trials(self, study: str, *states: TrialState) -> list[FrozenTrial]:
        """Trials in the order of their numbers: those of these states, or all that are finished."""
        found = self._studies[study].get_trials(deepcopy=False)
        return [t for t in found if (t.state in states if states else t.state.is_finished())]

    def begun(self, study: str, params: Mapping[str, Any] | None = None, number: int | None = None) -> Trial:
        """The trial that was interrupted, or a new one; with `params`, one of these parameters.

        number: of several that run at a time, the one that is meant: one that was interrupted, or the next.
        """
        chosen = self._studies[study]
        running = {trial.number: trial for trial in self.trials(study, TrialState.RUNNING)}
        waiting = self.trials(study, TrialState.WAITING)  # where the process died between the next two steps
        if number is None:
            number = min(running) if running else len(self.trials(study))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            chosen.sampler = self._sampler(study, number)
            if number in running:
                return Trial(chosen, running[number]._trial_id)
            if params is not None and not waiting:
                chosen.enqueue_trial(dict(params))
            return chosen.ask()

    def imagined(self, study: str, number: int, seen: Sequence[FrozenTrial], ask: Callable[[Trial], T]) -> T:
        """What trial `number` would be asked for if these trials were all that there are; nothing is written down."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            apart = optuna.create_study(directions=list(_DIRECTIONS[study]), sampler=self._sampler(study, number))  # type: ignore[arg-type]
            apart.add_trials(seen)
            return ask(apart.ask())

    def _sampler(self, study: str, number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=derive(self._seed, study, number), n_startup_trials=8)

    def ended(self, study: str, trial: Trial, values: Sequence[float] | None, state: TrialState | None = None) -> None:
        """Tell what a trial came to; None: it failed, or as `state` says."""
        usual = TrialState.FAIL if values is None else TrialState.COMPLETE
        self._studies[study].tell(trial, None if values is None else list(values), state or usual)
        self.tick()

    # ------------------------------------------------------------------------------------------------- weights

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep tensors and plain values under a name, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        if self._folder is None:
            self._weights[name] = buffer.getvalue()
            return
        (self._folder / "weights").mkdir(exist_ok=True)
        write_bytes(self._folder / "weights" / f"{name}.pt", buffer.getvalue(), what="The weights")

    def kept(self, name: str) -> dict[str, Any] | None:
        """What was kept, or None; RunError where the file is damaged."""
        data = self._weights.get(name)
        if self._folder is not None:
            path = self._folder / "weights" / f"{name}.pt"
            data = path.read_bytes() if path.is_file() else None
        if data is None:
            return None
        try:
            found: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        except Exception as problem:
            raise RunError(
                f"The weights {name!r} of the search cannot be read ({said(problem)}): remove the file, and "
                "they are made again."
            ) from problem
        return found
