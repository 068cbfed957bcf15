"""What all stages of a search stand on: the network, the images, the record, the schedule, and networks made once."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from optuna.trial import FrozenTrial, Trial
from torch import nn

from secateur.allocate import MEASURED, Constraints
from secateur.allocate.reach import unreachable
from secateur.compress.candidates import Candidate, Space
from secateur.compress.held_out import SHOWN, Source, rows_of
from secateur.compress.judging import Judge, call, evaluating
from secateur.compress.making import Maker
from secateur.compress.record import Record
from secateur.compress.request import Request, shares_of
from secateur.compress.training import Tuner
from secateur.errors import BudgetError, ConfigError, ModelError, RunError
from secateur.graph import Graph, trace
from secateur.graph.modules import clone_module, named_tensors
from secateur.latency import price
from secateur.methods.kit.measured import LEAST, passes
from secateur.surgery import Result
from secateur.tasks import Task

RACE_SHARE, FRONT_SHARE = 0.25, 0.35  # of the time, after which a stage makes way for the next
SECOND_SHARE = 0.4  # until which a second candidate is tried: one alone is no choice
_MEASURING_SHARE = 0.1  # of the time, that measuring groups one by one may take
_UNTRAINED = 2  # times as much of it where no training follows
_REPAIR_SHARE, _PASSES = 0.06, 4  # of the time, for one repair; how often it goes through its images, about
_SHOWN_LEAST = 64  # images for repairs, however short the time is
_JUDGED_SHARE, _JUDGED_LEAST = 0.02, 500  # of the time, for one look at held-out images; how many there are at least
_TRAINING_SHARE = 0.65  # of the time is for all training
ROUNDS = 80  # at most, where time alone says how long to train
_TRAINED_PER_JUDGED = 8  # seconds of training in a round at least, for each of judging it, up to an epoch
_SHORT = 16  # a finalist is trained for a 16th of what there is
FINALISTS_LEAST = 3  # candidates that are trained for a short while, all of which must fit into
_FINALISTS_TIME = 0.2  # of the time: otherwise the best straight after the cut is trained at once
_QUARTER = 4  # or a quarter of the epochs that are asked for


class Ground:
    """One search's ground; making it looks at the original, or at what the record says of it."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, request: Request, source: Source, task: Task, record: Record, *,
        options: Mapping[str, Any], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """options: of `prune`, for every candidate. say: told what is being done.

        Raises:
            ConfigError: what is asked cannot be told from these data. RunError: the record is of another search.
        """
        self.model, self.example, self.request = model, example_inputs, request
        self.task, self.record, self.options, self.say = task, record, dict(options), say
        self.held_out = source.held_count  # of which those that fit into the time are compared on
        self.source = source = source.judging(record.decide("judged", lambda: self._judged(source)))
        self.judge = Judge(source, task, model)
        self.maker = Maker(model, example_inputs, request, source, task, self.judge, self.options)
        self.tuner = Tuner(source, self.judge, record)
        if request.max_drop is not None and self.judge.note:
            raise ConfigError(
                f"max_drop is a drop of the {task.headline}, which cannot be told here: give a budget, such as "
                f"flops=0.5, or more labelled images. {self.judge.note}"
            )
        self._look()
        self.maker.source = source.showing(record.decide("shown", self._shown))
        measuring = record.decide("measuring", self._measuring)
        data, labels = source.shown is not None, self.judge.labelled
        self.space = Space(request, data=data, labels=labels, measuring=measuring)

    def known(self) -> list[str]:
        """What is known before the search begins: how networks are judged, and what is not tried or seen in full."""
        said = [self.judge.note, self._left_out(), self._unmeasured(), self._fewer()]
        return [line for line in (*said, *self.task.notes, *self.source.notes) if line]

    def _left_out(self) -> str:
        out = ", ".join(self.space.left_out)
        return f"Not tried, for want of {'labels' if self.source.shown else 'images'}: {out}." if out else ""

    def _unmeasured(self) -> str:
        if MEASURED in self.space.allocators or MEASURED not in self.request.allocators:
            return ""
        few = self.source.shown is None or self.source.count < LEAST
        return f"Not tried, for want of {'images' if few else 'time'}: the allocator {MEASURED!r}."

    def _fewer(self) -> str:
        """What is looked at less for want of time."""
        shown, held = self.record.decision("shown"), self.source.held_count
        parts = [f"methods and repairs see about {shown:,} images"] if shown < min(SHOWN, self.source.count) else []
        if held < self.held_out:
            parts.append(f"networks are compared on {held:,} of {self.held_out:,} held-out images")
        return f"For want of time {' and '.join(parts)}." if parts else ""

    def _measuring(self) -> bool:
        """Whether groups can be measured one by one within a part of the race: there are images and there is time."""
        if self.source.shown is None or self.source.count < LEAST:
            return False
        if self.request.seconds is None:
            return True
        share = _MEASURING_SHARE * (_UNTRAINED if self.request.epochs == 0 else 1)
        return passes(self.groups) * self._each < share * self.request.seconds

    def _judged(self, source: Source) -> int:
        """Held-out images that networks are compared on: fewer where looking at all of them would take the time.

        A drop that may not be exceeded is measured on all.
        """
        if self.request.seconds is None or self.request.max_drop is not None:
            return source.held_count
        inputs, _ = next(iter(source.held()))
        seconds = [_seconds(self.model, inputs) for _ in range(2)][-1] / rows_of(inputs)
        return max(int(_JUDGED_SHARE * self.request.seconds / seconds), _JUDGED_LEAST)

    def _shown(self) -> int:
        """Images that methods and repairs see: fewer where a repair would take the time from training."""
        if self.request.seconds is None or self.request.epochs == 0:
            return SHOWN
        fitting = _REPAIR_SHARE * self.request.seconds / (_PASSES * max(self._each, 1e-6))
        return min(max(int(fitting), _SHOWN_LEAST), SHOWN)

    @property
    def _each(self) -> float:
        """Seconds for an image forward."""
        return self.judging / max(self.source.held_count, 1)

    def _look(self) -> None:
        """What the original costs and achieves, and how long its training takes."""
        self.say("the original")
        if self.record.decide("identity", self._identity) != self._identity():
            raise RunError(
                "The search in this folder is of another network, other data or another task: give another folder."
            )
        self.record.named(self.judge.unit, f"share of {self.request.key}")
        graph = trace(self.model, self.example, attention=self.options.get("attention", "heads"))
        self.groups = len(graph.groups)
        constraints = Constraints(*(self.options[name] for name in ("ignore", "min_channels", "max_ratio")))
        price(graph, self.request.budget, Constraints(), self.options.get("watch"))
        _check_reach(graph, self.request, constraints)
        self.shares: dict[str, float] = self.record.decide(
            "shares", lambda: shares_of(self.request.budget, graph.cost())
        )
        self.maker.shares = self.shares
        began = time.monotonic()
        self.original: float = self.record.decide("original", lambda: self.judge(self.model))
        self.judging: float = self.record.decide("judging", lambda: round(time.monotonic() - began, 4))  # seconds
        if not math.isfinite(self.original):
            raise ModelError(
                "The original's answers on the held-out images are not finite: give sound weights and data."
            )
        self.schedule: dict[str, int] = self.record.decide("schedule", self._schedule)

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, tensor in named_tensors(self.model).items():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(name.encode() + (flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""))
        images = [self.source.count, self.held_out]
        return {"weights": digest.hexdigest(), "images": images, "request": self.request.as_json()}

    def _schedule(self) -> dict[str, int]:
        if self.source.round is None or self.request.epochs == 0:
            return dict.fromkeys(("rounds", "steps", "short", "finalists"), 0)
        if self.request.seconds is None:
            return untimed(self.request.epochs or ROUNDS, self.source.steps)
        step = self.tuner.seconds_of_step(clone(self.model), self.tuner.distils[0])
        return timed(self.request.seconds, self.request.epochs, self.source.steps, step, self.judging)

    # ------------------------------------------------------------------------------------------------- for all stages

    def late(self, share: float, coming: float = 0.0) -> bool:
        """Whether more than this share of the time is over, or will be after what takes so many seconds."""
        return self.request.seconds is not None and self.record.spent() + coming > share * self.request.seconds

    def made(self, candidate: Candidate, level: float, *, verify: bool = False) -> Result:
        """The network of a candidate at a level of the budget; made once, the same each time it is asked for."""
        return self.maker.made(candidate, level, verify=verify)

    def share_at(self, level: float) -> float:
        """What a level of the budget leaves of the cost that is told."""
        return 1 - level * (1 - self.shares[self.request.key])


def untimed(rounds: int, steps: int) -> dict[str, int]:
    """The schedule of so many rounds of so many steps: as `timed`, whatever it takes."""
    return {"rounds": rounds, "steps": steps, "short": max(rounds // _QUARTER, 1), "finalists": 1}


def timed(seconds: float, epochs: int | None, steps: int, step: float, judging: float) -> dict[str, int]:
    """What fits into a search of so many seconds.

    Args:
        epochs: of the last training that are asked for; None: as the time allows. steps: of an epoch.
        step, judging: seconds of a step of training, and of a look at the held-out images.

    Returns:
        rounds: of the last training; steps: of each, an epoch or a part of one; short: rounds of a finalist's training;
        finalists: whether there are any, 0 where they would take the time from the last training.
    """
    left = _TRAINING_SHARE * seconds
    least = min(math.ceil(_TRAINED_PER_JUDGED * judging / step), int(left / step / _QUARTER))
    steps = min(steps, max(int(left / step / _SHORT), least, 1))
    rounds = min(epochs or ROUNDS, int(left / (step * steps + judging)))
    short = max(rounds // (_QUARTER if epochs else _SHORT), 1) if rounds else 0
    fits = FINALISTS_LEAST * short * (step * steps + judging) < _FINALISTS_TIME * seconds
    return {"rounds": rounds, "steps": steps, "short": short, "finalists": int(short > 0 and fits)}


def fitting(left: float, epochs: int | None, steps: int, whole: int, step: float, judging: float) -> tuple[int, int]:
    """Rounds of the last training, and steps of each, that fill so many seconds.

    Args:
        epochs: that are asked for; None: as many as fit. steps: of a round, as planned; whole: of an epoch.
        step, judging: seconds of a step of the network that is trained, and of a look at the held-out images.
    """
    rounds = max(min(epochs or ROUNDS, int(left / (step * steps + judging))), 1)
    most = int((left / rounds - judging) / step)
    return (rounds, min(most, whole)) if most > 0 else (0, steps)


def _check_reach(graph: Graph, request: Request, constraints: Constraints) -> None:
    """BudgetError unless some alignment leaves widths within the budget; ConfigError for a pattern of no layer."""
    original = graph.cost()
    limits = request.budget.limits(original)
    for align in request.aligns:
        costs = graph.costs.evaluate(replace(constraints, align=align).floors(graph)[None])
        if all(float(costs[key][0]) <= limit for key, limit in limits.items()):
            return
    error = unreachable(graph, request.budget, replace(constraints, align=min(request.aligns)), original)
    if request.fixed:
        raise error
    raise BudgetError(
        f"A search for a drop alone begins at {request.budget}, which is out of reach: give a budget as well. {error}"
    )


def _seconds(model: nn.Module, inputs: Any) -> float:
    """How long the answer to a batch takes."""
    began = time.monotonic()
    with evaluating(model), torch.no_grad():
        call(model, inputs)
    return max(time.monotonic() - began, 1e-6)


def clone(model: nn.Module) -> nn.Module:
    """A copy with weights of its own, as trainable as the model's."""
    return clone_module(model, lambda tensor: tensor.detach().clone())


def noted(trial: Trial, candidate: Candidate, level: float) -> None:
    """What a trial tries, where dashboards and resumed searches find it."""
    trial.set_user_attr("what", str(candidate))
    trial.set_user_attr("candidate", candidate.as_json())
    trial.set_user_attr("level", level)


def candidate_of(trial: FrozenTrial) -> Candidate:
    """What a trial tried."""
    return Candidate(**trial.user_attrs["candidate"])
