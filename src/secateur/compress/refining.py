"""The later stages: short trainings of the best, the smallest network within a drop, and the last training."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn

from secateur.compress.candidates import Candidate
from secateur.compress.ground import FINALISTS_LEAST, Ground, clone, fitting, noted
from secateur.compress.record import FINALISTS, SMALLEST
from secateur.compress.training import OPTIMISERS, Diverged, Plan, Told
from secateur.errors import BudgetError
from secateur.surgery import Result
from secateur.training.randomness import derive

_TRAININGS = 6  # of finalists at most
_FINALISTS_SHARE, _SMALLEST_SHARE = 0.5, 0.7  # of the time, after which they make way
_LAST_SHARE = 0.95
_STEPS, _CLOSE = 5, 0.04  # bisections at most, and levels that are close enough
_LEAST = 0.05  # share of the cost below which no network is looked for


@dataclass(frozen=True)
class Choice:
    """A network to be made: its candidate and level, how it is trained, and the name of what it was trained to."""

    candidate: Candidate
    level: float
    optimiser: str = next(iter(OPTIMISERS))
    distil: float = 0.0
    kept: str = ""
    figure: float = -math.inf


class Refining:
    """What follows the race."""

    def __init__(self, ground: Ground) -> None:
        """ground: of the search."""
        self._ground, self._record = ground, ground.record

    # ------------------------------------------------------------------------------------------------- finalists

    def finalists(self, ranked: Sequence[tuple[Candidate, float]]) -> Choice:
        """Short trainings of the best candidates, ended early where halving says so; the best of them."""
        record, distils = self._record, self._ground.tuner.distils
        # a teacher makes a step of a network half as large take five thirds of the time
        straight = Choice(ranked[0][0], 1.0, distil=distils[-1], figure=ranked[0][1])
        schedule = self._ground.schedule
        if not schedule.get("finalists", schedule["short"]):  # searches of before had them in any case
            return straight
        names = [str(candidate) for candidate, _ in ranked[:FINALISTS_LEAST]]
        known = dict(zip(names, ranked, strict=False))
        ways = [
            {"candidate": name, "optimiser": optimiser, "distil": distil}
            for optimiser, distil, name in itertools.product(OPTIMISERS, distils, names)
        ]
        most = min(_TRAININGS, len(ways))
        while record.decision("trained") is None:
            done = record.trials(FINALISTS)
            if len(done) >= most or (done and self._ground.late(_FINALISTS_SHARE)):
                record.decide("trained", lambda: len(done))  # noqa: B023  # called at once
                break
            trial = record.begun(FINALISTS, ways[len(done)] if len(done) < len(names) else self._proposed(ways, done))
            self._train(trial, *known[trial.suggest_categorical("candidate", names)])
        found = [
            Choice(
                known[given["candidate"]][0],
                1.0,
                given["optimiser"],
                given["distil"],
                f"finalists-{t.number}",
                t.values[0],
            )
            for t in record.trials(FINALISTS, TrialState.COMPLETE)
            for given in (t.params,)
        ]
        return max(found, key=lambda choice: choice.figure, default=straight)

    def _proposed(self, ways: Sequence[dict[str, Any]], done: Sequence[FrozenTrial]) -> dict[str, Any]:
        """What the sampler proposes of these ways to train; where that was tried already, one that was not."""
        values = {key: list(dict.fromkeys(way[key] for way in ways)) for key in ways[0]}
        number = len(done)
        chosen = self._record.imagined(
            FINALISTS, number, done, lambda trial: {k: trial.suggest_categorical(k, v) for k, v in values.items()}
        )
        tried = [trial.params for trial in done]
        left = [way for way in ways if way not in tried]
        return chosen if chosen in left else left[derive(self._ground.request.seed, "training", number) % len(left)]

    def _train(self, trial: Trial, candidate: Candidate, untrained: float) -> None:
        """One short training, which the study's pruner may end. untrained: the figure straight after the cut."""
        began = time.monotonic()
        optimiser = trial.suggest_categorical("optimiser", list(OPTIMISERS))
        distil = trial.suggest_categorical("distil", list(self._ground.tuner.distils))
        noted(trial, candidate, 1.0)
        self._ground.say(f"training {trial.number + 1}: {candidate}, {optimiser}")
        short, state = self._ground.schedule["short"], TrialState.COMPLETE

        def told(number: int, figure: float) -> bool:
            nonlocal state
            trial.report(figure, number)
            if number < short and trial.should_prune():
                state = TrialState.PRUNED
            return state == TrialState.PRUNED

        choice = Choice(candidate, 1.0, optimiser, distil, f"finalists-{trial.number}")
        figure = self._tuned(choice, trial, told, untrained)
        trial.set_user_attr("seconds", round(time.monotonic() - began, 3))
        if figure is None:
            self._record.ended(FINALISTS, trial, None)
        elif state == TrialState.PRUNED:
            self._record.ended(FINALISTS, trial, None, state)  # its value is what was last reported
        else:
            self._record.ended(FINALISTS, trial, [figure])

    def _tuned(self, choice: Choice, trial: Trial, told: Told, untrained: float | None = None) -> float | None:
        """The figure of a network after a short training; None where it diverged. What is told stands in the trial."""
        ground = self._ground
        result = ground.made(choice.candidate, choice.level)
        short = ground.schedule["short"]
        trial.set_user_attr("cost", result.reached(ground.request.key))
        trial.set_user_attr("rounds", short)
        plan = Plan(choice.optimiser, choice.distil, short, ground.schedule["steps"], ground.request.seed)
        try:
            figure = ground.tuner.tune(clone(result.model), plan, choice.kept, told, figure=untrained)
        except Diverged as error:
            trial.set_user_attr("failed", str(error))
            return None
        trial.set_user_attr("figure", figure)
        return figure

    # ------------------------------------------------------------------------------------------------- smallest

    def smallest(self, best: Choice) -> Choice:
        """The smallest network within the drop, by bisection of levels with the best candidate.

        The figure is taken to fall with the level. Where no level is within the drop, the one that drops least.
        """
        ground, record = self._ground, self._record
        fixed = ground.request.fixed
        if fixed and self.within(best.figure):
            return best
        low, high = (1.0, self._last()) if self.within(best.figure) else (0.0, 1.0)
        seen = [best]
        for number in range(_STEPS):
            done = record.trials(SMALLEST)
            if len(done) <= number and (high - low < _CLOSE or ground.late(_SMALLEST_SHARE)):
                record.decide("bisected", lambda: number)  # noqa: B023  # called at once
            if record.decision("bisected") == number:
                break
            if len(done) <= number:
                self._bisect(best, (low + high) / 2)
            middle = record.trials(SMALLEST)[number]
            figure = middle.values[0] if middle.values else -math.inf
            level = middle.params["level"]
            seen.append(replace(best, level=level, kept=f"smallest-{number}", figure=figure))
            low, high = (level, high) if self.within(figure) else (low, level)
        good = [choice for choice in seen if self.within(choice.figure)]
        if good:
            return max(good, key=lambda choice: choice.level)
        return max(seen, key=lambda choice: choice.figure)

    def within(self, figure: float) -> bool:
        """Whether a figure is within the drop that may be."""
        drop = self._ground.request.max_drop
        return drop is None or self._ground.judge.points(self._ground.original, figure) <= drop + 1e-7

    def _least(self) -> float:
        """The least figure that is within the drop that may be."""
        ground, drop = self._ground, self._ground.request.max_drop
        return -math.inf if drop is None else ground.original - drop / ground.judge.points(1.0, 0.0)

    def _last(self) -> float:
        """The level that leaves the least share of the cost that is looked for."""
        return (1 - _LEAST) / max(1 - self._ground.shares[self._ground.request.key], 1e-6)

    def _bisect(self, best: Choice, level: float) -> None:
        """One step: the candidate at this level, trained for a short while."""
        began = time.monotonic()
        trial = self._record.begun(SMALLEST, {"level": level})
        level = trial.suggest_float("level", 0.0, 1e4)
        noted(trial, best.candidate, level)
        self._ground.say(f"level {level:.2f}: {best.candidate}, {self._ground.share_at(level):.0%} left")
        choice = replace(best, level=level, kept=f"smallest-{trial.number}")
        try:
            figure = self._tuned(choice, trial, lambda number, figure: False)
        except BudgetError as error:  # so small cannot be
            trial.set_user_attr("failed", str(error))
            figure = None
        trial.set_user_attr("seconds", round(time.monotonic() - began, 3))
        self._record.ended(SMALLEST, trial, None if figure is None else [figure, trial.user_attrs["cost"]])

    # ------------------------------------------------------------------------------------------------- final

    def final(self, choice: Choice) -> tuple[Result, float, int, int]:
        """The network, proved, trained for what time is left; its figure, rounds of training, and steps of each."""
        ground = self._ground
        result = ground.made(choice.candidate, choice.level, verify=True)
        kept = self._record.kept(choice.kept) if choice.kept else None
        if kept is not None:
            result.model.load_state_dict(kept["best"])
        rounds, steps = self._record.decide("last training", lambda: self._rounds(result.model, choice.distil))
        if not rounds:
            result.model.eval()
            return result, ground.judge(result.model), 0, steps
        plan = Plan(choice.optimiser, choice.distil, rounds, steps, ground.request.seed)
        ground.say(f"training the best for {rounds} round{'s' * (rounds > 1)}")
        known = choice.figure if math.isfinite(choice.figure) else None
        late = functools.partial(ground.late, 1.0)
        try:
            figure = ground.tuner.tune(
                result.model, plan, "final", self._told, figure=known, late=late, least=self._least()
            )
        except Diverged:
            figure = ground.judge(result.model)  # of its best round
        result.model.eval()
        return result, figure, rounds, steps

    def _told(self, number: int, figure: float) -> bool:
        self._ground.say(f"round {number}: {self._ground.judge.unit} {self._ground.judge.told(figure)}")
        return False

    def _rounds(self, model: nn.Module, distil: float) -> tuple[int, int]:
        """Rounds of the last training, and steps of each: as many as are asked for, or as the time allows."""
        ground = self._ground
        rounds, steps, seconds = ground.schedule["rounds"], ground.schedule["steps"], ground.request.seconds
        if seconds is None or not rounds:
            return rounds, steps
        step = ground.tuner.seconds_of_step(clone(model), distil)
        left = _LAST_SHARE * seconds - self._record.spent()
        return fitting(left, ground.request.epochs, steps, ground.source.steps, step, ground.judging)
