"""From the record of a search to what is told of it: what was tried, why this network, what was met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from secateur.compress.candidates import Candidate
from secateur.compress.ground import Ground, clone
from secateur.compress.judging import AGREEMENT
from secateur.compress.record import FINALISTS, RACE, SMALLEST
from secateur.compress.refining import Choice
from secateur.compress.result import Compressed, Tried, pareto, share
from secateur.runtime import measure
from secateur.surgery import Result


class Story:
    """What is told of one search that is over."""

    def __init__(
        self, ground: Ground, ranked: Sequence[tuple[Candidate, float]], choice: Choice, result: Result, figure: float,
        rounds: int, steps: int,
    ) -> None:  # fmt: skip
        """ranked: candidates straight after the cut, best first. result, figure, rounds, steps: the last training's."""
        self._ground, self._ranked, self._choice = ground, ranked, choice
        self._result, self._figure, self._rounds, self._steps = result, figure, rounds, steps
        self._judge, self._request = ground.judge, ground.request
        self._lost = max(self._judge.points(ground.original, figure), 0.0)
        drop = self._request.max_drop
        #: Whether the drop is kept to, and the budget, where one was asked for.
        self._within = drop is None or self._lost <= drop + 1e-7
        self.met = self._within and (choice.level == 1 or not self._request.fixed)

    def told(self) -> Compressed:
        """The result with its story; both networks are timed for it, where a runtime was named."""
        ground, record = self._ground, self._ground.record
        tried = tuple(self._tried(stage, t) for stage in (RACE, FINALISTS, SMALLEST) for t in record.trials(stage))
        left = self._result.reached(self._request.key)
        last = Tried("final", 0, str(self._choice.candidate), self._figure, left, self._rounds, 0.0)
        measured = self._measured()
        said = [
            self._before_after(),
            *self._drop(),
            *self._timed(measured),
            *self._why(tried),
            self._trained(),
            *ground.known(),
        ]
        return Compressed.of(
            self._result,
            unit=self._judge.unit,
            scale="share" if self._judge.percent else self._judge.task.unit,
            original=ground.original,
            figure=self._figure,
            key=self._request.key,
            tried=tried,
            front=pareto([*tried, last]),
            said=tuple(said),
            met=self.met,
            measured=measured,
            seconds=record.spent(),
        )

    def _tried(self, stage: str, trial: FrozenTrial) -> Tried:
        attrs = trial.user_attrs
        what, rounds = attrs.get("what", ""), int(attrs.get("rounds", 0))
        if stage == RACE and trial.number >= self._ground.record.decision("raced"):
            stage = "front"
        if stage == FINALISTS:
            what += f", {trial.params['optimiser']}" + (", taught" if trial.params["distil"] else "")
            rounds = trial.last_step or 0
        figure = trial.values[0] if trial.values else attrs.get("figure")
        cost = trial.values[1] if trial.values and len(trial.values) > 1 else attrs.get("cost")
        return Tried(
            stage, trial.number, what, figure, cost, rounds, attrs.get("seconds", 0.0), attrs.get("failed", "")
        )

    # ------------------------------------------------------------------------------------------------- sentences

    def _why(self, tried: Sequence[Tried]) -> list[str]:
        """What was tried, and what spoke for the chosen one."""
        tell, held = self._judge.told, self._ground.source.held_count
        race = [each for each in tried if each.stage == RACE]
        failed = sum(1 for each in race if each.failed)
        where = f"{held:,} held-out training images" if held else "noise"
        more = f"; {failed} failed, each with its reason in the list." if failed else "."
        many = "1 candidate was" if len(race) == 1 else f"{len(race)} candidates were"
        lines = [f"{many} compared straight after the cut on {where}{more}"]
        figures = {str(candidate): figure for candidate, figure in self._ranked}
        own = str(self._choice.candidate)
        others = [f"{name} ({tell(figure)})" for name, figure in figures.items() if name != own][:2]
        beside = f"; others: {', '.join(others)}" if others else ""
        place = list(figures).index(own) + 1
        lines.append(
            f"Chosen: {own}, {tell(figures[own])} straight after the cut, place {place} of {len(figures)}{beside}."
        )
        trainings = [each for each in tried if each.stage == FINALISTS]
        if len(trainings) > 1:
            lines.append(f"It did best in {len(trainings)} short trainings of the first candidates.")
        elif self._rounds and self._ground.schedule.get("finalists") == 0:
            lines.append("Short trainings of several would have taken too much of the time, so the first was trained.")
        return lines

    def _trained(self) -> str:
        if not self._rounds:
            asked = "epochs=0" if self._request.epochs == 0 else "the time does not allow it"
            why = "there are no images to train on" if self._ground.source.round is None else asked
            return f"Nothing was trained in the end: {why}."
        taught = "with the original as teacher for half of the loss" if self._choice.distil else "without a teacher"
        how = taught if self._judge.labelled else "to imitate the original"
        part = "all images" if self._steps >= self._ground.source.steps else f"{self._steps} batches"
        many = f"{self._rounds} round{'s' * (self._rounds > 1)}"
        return f"Trained for {many} of {part} with {self._choice.optimiser}, {how}."

    def _before_after(self) -> str:
        unit, tell = self._judge.unit, self._judge.told
        line = f"{unit[0].upper()}{unit[1:]} before {tell(self._ground.original)}, after {tell(self._figure)}"
        interval = self._judge.interval(self._figure)
        if interval is not None:
            line += f" (95%: {tell(interval[0])} to {tell(interval[1])})"
        if unit == AGREEMENT:
            return f"{line}."
        return (
            f"{line}, on the held-out images. The search chose by these, and the original may have been trained on "
            "them: measure both once on test images."
        )

    def _drop(self) -> list[str]:
        drop = self._request.max_drop
        if drop is None:
            return []
        unit = "points" if self._judge.percent else self._judge.task.unit
        left = f"{share(self._result.reached(self._request.key))} of the {self._request.key}"
        lost = f"{self._lost:.2f} {unit} lost"
        if self.met:
            smallest = "" if self._request.fixed else f"The smallest network found leaves {left}. "
            lines = [f"{smallest}Within the drop of {drop:g} {unit}: {lost}."]
        elif self._within:
            lines = [
                f"The budget {self._request.budget} cannot be met with a drop of {drop:g} {unit}; the nearest network "
                f"that keeps to it leaves {left}, {lost}."
            ]
        else:
            lines = [
                f"A drop of {drop:g} {unit} cannot be kept to, whatever the size; the nearest network leaves {left}, "
                f"{lost}."
            ]
        one = 100 / self._ground.source.held_count
        if self._judge.percent and one > drop:
            lines.append(f"One of the held-out images is worth {one:.2f} points, more than the drop.")
        return lines

    def _measured(self) -> dict[str, Any] | None:
        """Both networks timed by turns on the runtime that was asked for."""
        runtime, target = self._request.runtime, self._request.budget.target
        if runtime is None:
            return None
        self._ground.say(f"timing both networks on {runtime}")
        return measure(
            clone(self._ground.model).eval(), clone(self._result.model).eval(), self._ground.example,
            runtimes=[runtime], batch_size=target.batch if target else 1, threads=target.threads if target else 1,
        )  # fmt: skip

    def _timed(self, measured: dict[str, Any] | None) -> list[str]:
        if measured is None:
            return []
        lines = [f"Measured on {row['runtime']}: {row['said']}." for row in measured["runtimes"]]
        lines += [f"Not measured on {row['runtime']}: {row['reason']}." for row in measured.get("skipped", ())]
        asked = 1 / self._ground.shares["latency"] if "latency" in self._ground.shares else 0.0
        for row in measured["runtimes"]:
            if row["ratio"]["high"] < asked and self._choice.level == 1:
                next_one = asked * asked / row["ratio"]["median"]
                lines.append(
                    f"That is less than the {asked:.2f}x that the prediction from layer times promised: ask for "
                    f"speedup={next_one:.2f} to come closer."
                )
        return lines
