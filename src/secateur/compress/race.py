"""The race: candidates straight after the cut, at the budget; then the best of them at other levels of it."""

from __future__ import annotations

import math
import time

from optuna.trial import FrozenTrial, Trial, TrialState

from secateur.compress.candidates import Candidate
from secateur.compress.ground import FRONT_SHARE, RACE_SHARE, Ground, candidate_of, noted
from secateur.compress.record import RACE
from secateur.errors import BudgetError, ModelError, SecateurError
from secateur.training.randomness import derive

_LEVELS = (0.5, 0.75, 1.25)  # of the budget, for the front: 0 is the whole network, 1 the budget


class Race:
    """The first stage of a search."""

    def __init__(self, ground: Ground) -> None:
        """ground: of the search."""
        self._ground, self._record = ground, ground.record

    def run(self) -> list[tuple[Candidate, float]]:
        """Candidates at the budget with their figures, best first; SecateurError where none came to anything."""
        space, record = self._ground.space, self._record
        starts, most = space.starts(), min(self._ground.request.trials, space.size)
        while record.decision("raced") is None:
            done = record.trials(RACE)
            distinct = len({trial.user_attrs.get("what") for trial in done})
            good = any(trial.state == TrialState.COMPLETE for trial in done)
            if distinct >= most or (good and self._ground.late(RACE_SHARE)):
                record.decide("raced", lambda: len(done))  # noqa: B023  # called at once
                break
            chosen = starts[len(done)] if len(done) < len(starts) else self._left(done)
            self._attempt(record.begun(RACE, None if chosen is None else space.params(chosen)), 1.0)
        ranked = self._ranked()
        if not ranked:
            raise self._refusal()
        self._front(ranked[0][0])
        return ranked

    def _left(self, done: list[FrozenTrial]) -> Candidate | None:
        """One that was not tried, where the sampler has just repeated itself; None where it may choose."""
        if "same_as" not in done[-1].user_attrs:
            return None
        tried = {trial.user_attrs.get("what") for trial in done}
        left = [each for each in self._ground.space.all() if str(each) not in tried]
        return left[derive(self._ground.request.seed, "left", len(done)) % len(left)] if left else None

    def _front(self, best: Candidate) -> None:
        """The best candidate at other levels of the budget."""
        record = self._record
        levels = record.decide("levels", lambda: [] if self._ground.late(FRONT_SHARE) else list(_LEVELS))
        for k, level in enumerate(levels):
            if len(record.trials(RACE)) <= record.decision("raced") + k:
                self._attempt(record.begun(RACE, {**self._ground.space.params(best), "level": level}), None)

    def _attempt(self, trial: Trial, level: float | None) -> None:
        """One candidate straight after the cut; `level` None: it is a parameter of the trial."""
        began = time.monotonic()
        candidate = self._ground.space.suggested(trial)
        level = trial.suggest_float("level", 0.0, 2.0) if level is None else level
        noted(trial, candidate, level)
        self._ground.say(f"trial {trial.number + 1}: {candidate}")
        same = next((t for t in self._record.trials(RACE, TrialState.COMPLETE) if _same(t, candidate, level)), None)
        if same is not None:
            trial.set_user_attr("same_as", same.number)
        values = list(same.values) if same is not None else self._straight(trial, candidate, level)
        trial.set_user_attr("seconds", round(time.monotonic() - began, 3))
        self._record.ended(RACE, trial, values)

    def _straight(self, trial: Trial, candidate: Candidate, level: float) -> list[float] | None:
        """Figure and share of the cost; None where it failed, with the reason in the trial."""
        try:
            result = self._ground.made(candidate, level)
            figure = self._ground.judge(result.model)
            if not math.isfinite(figure):
                raise ModelError("Its answers are not finite.")
        except (SecateurError, RuntimeError) as error:  # of one candidate, which must not end the others
            trial.set_user_attr("failed", " ".join(str(error).split())[:500])
            trial.set_user_attr("refused", isinstance(error, BudgetError))
            return None
        return [figure, result.reached(self._ground.request.key)]

    def _ranked(self) -> list[tuple[Candidate, float]]:
        trials = self._record.trials(RACE)[: self._record.decision("raced")]
        good = [t for t in trials if t.state == TrialState.COMPLETE and "same_as" not in t.user_attrs]
        good.sort(key=lambda t: (-t.values[0], t.values[1], t.number))
        return [(candidate_of(t), t.values[0]) for t in good]

    def _refusal(self) -> SecateurError:
        """Why nothing came of it: the budget, if that was it, else what the first candidate said."""
        failed = [t.user_attrs for t in self._record.trials(RACE) if "failed" in t.user_attrs]
        refused = [attrs["failed"] for attrs in failed if attrs.get("refused")]
        return (
            BudgetError(refused[0]) if refused else ModelError(f"No candidate came to anything: {failed[0]['failed']}")
        )


def _same(trial: FrozenTrial, candidate: Candidate, level: float) -> bool:
    return candidate_of(trial) == candidate and trial.user_attrs["level"] == level
