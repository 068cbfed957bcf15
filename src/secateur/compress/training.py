"""Fine-tuning in rounds, each with its figure on the held-out images and a checkpoint, so that a killed one goes on."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.compress.held_out import Source, rows_of
from secateur.compress.judging import Judge, call, imitation, moved
from secateur.compress.record import Record
from secateur.errors import ModelError
from secateur.recipe import Training
from secateur.tasks import Task
from secateur.training.optimisers import make_optimiser, set_rate
from secateur.training.randomness import derive, preserved, seed_all
from secateur.training.schedules import learning_rate

_TEMPERATURE = 4.0
_TIMED = 3  # steps
_WARMUP = 0.05  # share of the rounds in which the rate rises
#: What takes the steps; names as trials have them.
OPTIMISERS: Mapping[str, Mapping[str, Any]] = {
    "sgd 0.01": {"optimiser": "sgd", "lr": 0.01, "nesterov": True},
    "sgd 0.03": {"optimiser": "sgd", "lr": 0.03, "nesterov": True},
    "sgd 0.003": {"optimiser": "sgd", "lr": 0.003, "nesterov": True},
    "adamw 0.001": {"optimiser": "adamw", "lr": 1e-3},
    "adamw 0.0003": {"optimiser": "adamw", "lr": 3e-4},
}
_TAUGHT = (0.5, 0.0)  # shares of the loss in which the original network is the teacher
Told = Callable[[int, float], bool]


class Diverged(ModelError):
    """The loss stopped being a number."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained: an entry of OPTIMISERS, the teacher's share, rounds and steps of each, a seed."""

    optimiser: str
    distil: float
    rounds: int
    steps: int
    seed: int


class Tuner:
    """Trains narrow networks in place."""

    def __init__(self, source: Source, judge: Judge, record: Record) -> None:
        """source: the images. judge: what says how good a network is. record: where checkpoints are kept."""
        self._source, self._judge, self._record = source, judge, record
        taught = judge.labelled and type(judge.task).distilled is not Task.distilled
        #: Shares of the loss in which the original may be the teacher.
        self.distils = _TAUGHT if taught else (0.0,)

    def tune(
        self, model: nn.Module, plan: Plan, name: str, told: Told = lambda number, score: False, *,
        figure: float | None = None, late: Callable[[], bool] = lambda: False, least: float | None = None,
    ) -> float:  # fmt: skip
        """Train for the rounds of the plan; the network then has the weights of its best round, or of before.

        With `least` it has those of its last round, unless the best is better by more than chance. A rate that falls
        ends where it is meant to end, and the held-out images are ones that the original may know by heart: on them a
        network looks better the less it has been trained away from the original.

        Args:
            name: of the checkpoint, from which it goes on where there is one.
            told: hears each round's number (from 1) and figure; True ends the training.
            figure: the network's own before any training, where it is known.
            late: asked before each round; True ends the training.
            least: a figure that the last round must have reached to be preferred to the best.

        Returns:
            the figure of the round whose weights it has.

        Raises:
            Diverged: the loss is no number any more; what was best until then is kept.
        """
        if not plan.rounds:
            return self._judge(model) if figure is None else figure
        settings = Training(
            epochs=plan.rounds, warmup=_WARMUP * plan.rounds, weight_decay=1e-4, **OPTIMISERS[plan.optimiser]
        )
        device = next((t.device for t in model.parameters()), torch.device("cpu"))
        optimiser = make_optimiser(model, settings)
        state = self._record.kept(name)
        if state is None:
            figure = self._judge(model) if figure is None else figure
            state = {"round": 0, "figure": figure, "best": _weights(model), "over": False}
        else:
            model.load_state_dict(state["now"])
            optimiser.load_state_dict(state["optimiser"])
        try:
            while state["round"] < plan.rounds and not state["over"] and not late():
                number = state["round"] + 1
                with preserved(device):
                    seed_all(derive(plan.seed, name, number))
                    self._round(model, plan, settings, optimiser, number)
                score = self._judge(model)
                if not math.isfinite(score):
                    raise Diverged("The network's answers are not finite any more.")
                if score >= state["figure"]:
                    state |= {"figure": score, "best": _weights(model)}
                state |= {"round": number, "last": score, "over": bool(told(number, score))}
                state |= {"now": _weights(model), "optimiser": optimiser.state_dict()}
                self._record.keep(name, state)
                self._record.tick()
        finally:
            model.load_state_dict(state["best"])
        best, last = float(state["figure"]), float(state.get("last", -math.inf))
        if least is None or last < least or not self._judge.alike(best, last):
            return best
        model.load_state_dict(state["now"])
        return last

    def seconds_of_step(self, model: nn.Module, distil: float) -> float:
        """How long one step of training takes, by a few of them on `model`, which is spoilt by it."""
        plan = Plan(next(iter(OPTIMISERS)), distil, 1, _TIMED, 0)
        settings = Training(epochs=1, lr=1e-6)
        optimiser = make_optimiser(model, settings)
        with preserved(next((t.device for t in model.parameters()), torch.device("cpu"))):
            self._round(model, plan, settings, optimiser, 1)  # warms up
            began = time.monotonic()
            self._round(model, plan, settings, optimiser, 1)
        return max(time.monotonic() - began, 1e-4) / min(_TIMED, self._source.steps)

    def _round(
        self, model: nn.Module, plan: Plan, settings: Training, optimiser: torch.optim.Optimizer, number: int
    ) -> None:
        assert self._source.round is not None
        model.train()
        for step, (inputs, target) in enumerate(itertools.islice(self._source.round(number), plan.steps)):
            if rows_of(inputs) < 2:  # batch norm has no variance of one
                continue
            set_rate(optimiser, learning_rate(settings, (number - 1) * plan.steps + step, plan.steps))
            optimiser.zero_grad()
            loss = self._loss(model, inputs, target, plan.distil)
            if not bool(torch.isfinite(loss)):
                raise Diverged(f"The loss is no number any more in round {number} with {plan.optimiser}.")
            loss.backward()
            optimiser.step()

    def _loss(self, model: nn.Module, inputs: Any, target: Any, distil: float) -> torch.Tensor:
        """The task's loss, and the teacher's share of it; without labels imitation of the original alone."""
        task = self._judge.task
        if not self._judge.labelled:
            return imitation(call(model, inputs), self._judge.original_of(inputs))
        given, wanted = moved(model, inputs, target)
        answer = task.answer(model, given, wanted)
        loss = task.loss(answer, wanted)
        if not distil:
            return loss
        taught = task.distilled(answer, self._judge.original_of(inputs), _TEMPERATURE)
        return (1 - distil) * loss + distil * taught


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
