"""The race: candidates straight after the cut, at the budget; then the best of them at other levels of it.

Candidates are proposed a few together, from what is known of all before these: so they are the same whether one is
tried at a time or several.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, Trial, TrialState

from secateur.compress.candidates import Candidate
from secateur.compress.ground import FRONT_SHARE, RACE_SHARE, SECOND_SHARE, Ground, candidate_of, noted
from secateur.compress.record import RACE
from secateur.compress.workers import Hands
from secateur.errors import BudgetError, ModelError, SecateurError
from secateur.training.randomness import derive

_LEVELS = (0.5, 0.75, 1.25)  # of the budget, for the front: 0 is the whole network, 1 the budget
_TOGETHER = 4  # candidates are proposed from what is known of those before all of these


class Race:
    """The first stage of a search."""

    def __init__(self, ground: Ground, hands: Hands) -> None:
        """ground: of the search. hands: who try candidates."""
        self._ground, self._record, self._hands = ground, ground.record, hands

    def run(self) -> list[tuple[Candidate, float]]:
        """Candidates at the budget with their figures, best first; SecateurError where none came to anything."""
        record, most = self._record, min(self._ground.request.trials, self._ground.space.size)
        while record.decision("raced") is None:
            done = record.trials(RACE)
            good = any(trial.state == TrialState.COMPLETE for trial in done)
            begun = record.trials(RACE, TrialState.RUNNING)
            share = RACE_SHARE if len(done) > 1 else SECOND_SHARE
            if len(done) >= most or (good and not begun and self._ground.late(share, _last(done))):
                record.decide("raced", lambda: len(done))  # noqa: B023  # called at once
                break
            end = min(most, len(done) + self._hands.count, (len(done) // _TOGETHER + 1) * _TOGETHER)
            self._try([self._begun(number) for number in range(len(done), end)])
        ranked = self._ranked()
        if not ranked:
            raise self._refusal()
        self._front(ranked[0][0])
        return ranked

    def _begun(self, number: int) -> tuple[Trial, Candidate, float]:
        """The trial of this number, which all before it have begun."""
        space, starts = self._ground.space, self._ground.space.starts()
        chosen = starts[number] if number < len(starts) else self._proposed(number)
        trial = self._record.begun(RACE, space.params(chosen), number)
        candidate = space.suggested(trial)
        noted(trial, candidate, 1.0)
        return trial, candidate, 1.0

    def _proposed(self, number: int) -> Candidate:
        """What the sampler proposes; where that was tried already, one that was not."""
        space = self._ground.space
        seen = self._record.trials(RACE)[: number - number % _TOGETHER]
        chosen = self._record.imagined(RACE, number, seen, space.suggested)
        before = self._record.trials(RACE, TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING)[:number]
        tried = {candidate_of(trial) for trial in before}
        if chosen not in tried:
            return chosen
        left = [each for each in space.all() if each not in tried]
        return left[derive(self._ground.request.seed, "left", number) % len(left)]

    def _front(self, best: Candidate) -> None:
        """The best candidate at other levels of the budget."""
        record, space = self._record, self._ground.space
        first = record.decision("raced")
        levels = record.decide("levels", lambda: [] if self._no_time(first, best) else list(_LEVELS))
        while (done := len(record.trials(RACE)) - first) < len(levels):
            batch: list[tuple[Trial, Candidate, float]] = []
            for k in range(done, min(done + self._hands.count, len(levels))):
                trial = record.begun(RACE, {**space.params(best), "level": levels[k]}, first + k)
                candidate, level = space.suggested(trial), trial.suggest_float("level", 0.0, 2.0)
                noted(trial, candidate, level)
                batch.append((trial, candidate, level))
            self._try(batch)

    def _no_time(self, raced: int, best: Candidate) -> bool:
        """Whether as many networks again of the best candidate as there are levels would take too long."""
        each = next(_last([t]) for t in self._record.trials(RACE)[:raced] if candidate_of(t) == best)
        return self._ground.late(FRONT_SHARE, each * len(_LEVELS))

    def _try(self, batch: Sequence[tuple[Trial, Candidate, float]]) -> None:
        """Candidates straight after the cut; what they come to is written down in the order of their numbers."""
        for trial, candidate, _ in batch:
            self._ground.say(f"trial {trial.number + 1}: {candidate}")
        outcomes = self._hands.tried([(candidate, level) for _, candidate, level in batch])
        for (trial, _, _), outcome in zip(batch, outcomes, strict=True):
            if outcome.values is None:
                trial.set_user_attr("failed", outcome.failed)
                trial.set_user_attr("refused", outcome.refused)
            trial.set_user_attr("seconds", outcome.seconds)
            self._record.ended(RACE, trial, outcome.values)

    def _ranked(self) -> list[tuple[Candidate, float]]:
        trials = self._record.trials(RACE)[: self._record.decision("raced")]
        good = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        good.sort(key=lambda t: (-t.values[0], t.values[1], t.number))
        return [(candidate_of(t), t.values[0]) for t in good]

    def _refusal(self) -> SecateurError:
        """Why nothing came of it: the budget, if that was it, else what the first candidate said."""
        failed = [t.user_attrs for t in self._record.trials(RACE) if "failed" in t.user_attrs]
        refused = [attrs["failed"] for attrs in failed if attrs.get("refused")]
        return (
            BudgetError(refused[0]) if refused else ModelError(f"No candidate came to anything: {failed[0]['failed']}")
        )


def _last(trials: Sequence[FrozenTrial]) -> float:
    """Seconds that the last of these trials took, which the next may take as well."""
    return float(trials[-1].user_attrs.get("seconds", 0.0)) if trials else 0.0
