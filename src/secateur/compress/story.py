"""From the record of a search to what is told of it: what was tried, why this network, what was met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from secateur.compress.ground import Ground, clone
from secateur.compress.judging import AGREEMENT
from secateur.compress.record import FINALISTS, RACE, SMALLEST
from secateur.compress.refining import Choice
from secateur.compress.result import Compressed, Tried, pareto, share, told
from secateur.surgery import Result


def story(
    ground: Ground, ranked: Sequence[Any], choice: Choice, result: Result, figure: float, rounds: int, within: bool
) -> Compressed:
    """The result with its story.

    Args:
        ranked: candidates straight after the cut, best first, with their figures. choice: what was chosen.
        result, figure, rounds: the final network, how good it is, how long it was trained.
        within: whether the drop that was allowed was kept to before the last training.
    """
    tried = tuple(
        _tried(ground, stage, trial) for stage in (RACE, FINALISTS, SMALLEST) for trial in ground.record.trials(stage)
    )
    measured = _measured(ground, result)
    last = Tried("final", 0, str(choice.candidate), figure, result.reached(ground.request.key), rounds, 0.0)
    drop = ground.request.max_drop
    met = drop is None or (
        figure >= ground.original - drop / 100 - 1e-9 and (choice.level == 1 or not ground.request.fixed)
    )
    said = (
        *_why(ground, ranked, choice, tried),
        _trained(choice, rounds, ground),
        _before_after(ground, figure),
        *_drop(ground, choice, result, figure, met),
        *_timed(measured, ground),
        *((ground.judge.note,) if ground.judge.note else ()),
        *_left_out(ground),
        *ground.source.notes,
    )
    return Compressed.of(
        result,
        unit=ground.judge.unit,
        original=ground.original,
        figure=figure,
        key=ground.request.key,
        tried=tried,
        front=pareto([*tried, last]),
        said=tuple(line for line in said if line),
        met=met,
        measured=measured,
        seconds=ground.record.spent(),
    )


def _tried(ground: Ground, stage: str, trial: FrozenTrial) -> Tried:
    attrs = trial.user_attrs
    figure = trial.values[0] if trial.values else attrs.get("figure")
    if stage == RACE:
        stage = RACE if trial.number < ground.record.decision("raced") else "front"
    what = attrs.get("what", "")
    if stage == FINALISTS:
        what += f", {trial.params['optimiser']}" + (", taught" if trial.params["distil"] else "")
    cost = trial.values[1] if trial.values and len(trial.values) > 1 else attrs.get("cost")
    rounds = trial.last_step or 0 if stage == FINALISTS else int(attrs.get("rounds", 0))
    return Tried(stage, trial.number, what, figure, cost, rounds, attrs.get("seconds", 0.0), attrs.get("failed", ""))


def _why(ground: Ground, ranked: Sequence[Any], choice: Choice, tried: Sequence[Tried]) -> list[str]:
    """What was tried, and what spoke for the chosen one."""
    unit = ground.judge.unit
    race = [each for each in tried if each.stage == RACE]
    failed = sum(1 for each in race if each.failed)
    where = f"{ground.source.held_count:,} held-out training images" if ground.source.held_count else "noise"
    lines = [
        f"{len(race)} candidates were compared straight after the cut on {where}"
        + (f"; {failed} failed, with the reason in the list." if failed else ".")
    ]
    figures = {str(candidate): figure for candidate, figure in ranked}
    own = figures[str(choice.candidate)]
    others = [f"{name} ({told(figure, unit)})" for name, figure in figures.items() if name != str(choice.candidate)][:2]
    rank = list(figures).index(str(choice.candidate)) + 1
    beside = f"; others: {', '.join(others)}" if others else ""
    lines.append(f"Chosen: {choice.candidate}, {told(own, unit)} straight after the cut, place {rank}{beside}.")
    trained = [t for t in ground.record.trials(FINALISTS) if t.state == TrialState.COMPLETE]
    if len(trained) > 1:
        lines.append(
            f"It was the best of {len(ground.record.trials(FINALISTS))} short trainings of the first candidates."
        )
    return lines


def _trained(choice: Choice, rounds: int, ground: Ground) -> str:
    if not rounds:
        why = "there are no images to train on" if ground.source.round is None else (
            "epochs=0" if ground.request.epochs == 0 else "the time does not allow it"
        )  # fmt: skip
        return f"Nothing was trained in the end: {why}."
    if not ground.judge.labelled:
        how = "to imitate the original"
    else:
        how = "with the original as teacher for half of the loss" if choice.distil else "without a teacher"
    part = "" if ground.schedule["steps"] >= ground.source.steps else f" of {ground.schedule['steps']} batches"
    return f"Trained for {rounds} rounds{part or ' of all images'} with {choice.optimiser}, {how}."


def _before_after(ground: Ground, figure: float) -> str:
    unit = ground.judge.unit
    line = f"{unit[0].upper()}{unit[1:]} on the held-out images: {told(ground.original, unit)} before, {told(figure, unit)} after"
    interval = ground.judge.interval(figure)
    if interval is not None:
        line += f" (95%: {told(interval[0], unit)} to {told(interval[1], unit)})"
    chosen = "" if unit == AGREEMENT else "; networks were chosen on these images, so measure it once on test images"
    return f"{line}{chosen}."


def _drop(ground: Ground, choice: Choice, result: Result, figure: float, met: bool) -> list[str]:
    drop = ground.request.max_drop
    if drop is None:
        return []
    lost, left = 100 * (ground.original - figure), f"{ground.request.key} {share(result.reached(ground.request.key))}"
    if met and not ground.request.fixed:
        line = f"The smallest network found within {drop:g} points: {left}, {max(lost, 0.0):.2f} points lost."
    elif met:
        line = f"Within the drop of {drop:g} points: {max(lost, 0.0):.2f} lost."
    elif lost <= drop + 1e-7:
        line = (
            f"{ground.request.budget} cannot be met within {drop:g} points; the nearest that can is this network, with {left} "
            f"and {max(lost, 0.0):.2f} points lost."
        )
    else:
        line = f"No network within {drop:g} points was found; the nearest is this one, with {left} and {lost:.2f} points lost."
    one = 100 / ground.source.held_count
    coarse = f"One of the held-out images is worth {one:.2f} points, more than the drop." if one > drop else ""
    return [line, *([coarse] if coarse else [])]


def _measured(ground: Ground, result: Result) -> dict[str, Any] | None:
    """Both networks timed by turns on the runtime that was asked for."""
    if ground.request.runtime is None:
        return None
    from secateur.runtime import measure

    ground.say(f"timing both networks on {ground.request.runtime}")
    target = ground.request.budget.target
    return measure(
        clone(ground.model).eval(), clone(result.model).eval(), ground.example, runtimes=[ground.request.runtime],
        batch_size=1 if target is None else target.batch, threads=1 if target is None else target.threads,
    )  # fmt: skip


def _timed(measured: dict[str, Any] | None, ground: Ground) -> list[str]:
    if measured is None:
        return []
    lines = [f"Measured on {row['runtime']}: {row['said']}." for row in measured["runtimes"]]
    lines += [f"Not measured on {row['runtime']}: {row['reason']}." for row in measured.get("skipped", ())]
    asked = 1 / ground.shares["latency"] if "latency" in ground.shares else 0.0
    for row in measured["runtimes"]:
        if row["ratio"]["high"] < asked and ground.request.fixed:
            lines.append(
                f"That is less than the {asked:.2f}x asked for, which the prediction from layer times promised: ask for "
                f"speedup={asked * asked / row['ratio']['median']:.2f} to have it."
            )
    return lines


def _left_out(ground: Ground) -> list[str]:
    out = ground.space.left_out
    return [f"Not tried, for want of {'labels' if ground.source.shown else 'images'}: {', '.join(out)}."] if out else []
