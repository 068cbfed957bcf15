"""Networks of candidates straight after the cut, and how good they are; the same wherever they are made.

A maker knows nothing of the record of a search, so that workers can have one of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from secateur.compress.candidates import Candidate
from secateur.compress.held_out import Source
from secateur.compress.judging import Judge
from secateur.compress.request import Request, scaled
from secateur.errors import BudgetError, ModelError, SecateurError
from secateur.methods.kit.measured import Measured
from secateur.surgery import Result
from secateur.tasks import Task
from secateur.training.randomness import derive, preserved, seed_all

_AT_HAND = 4  # networks that are kept at hand: the best three, and one that is being made


@dataclass(frozen=True)
class Outcome:
    """What a candidate came to: figure and share of the cost; None where it failed, and why.

    refused: it failed because the budget is out of its reach. seconds: it took.
    """

    values: tuple[float, float] | None
    failed: str = ""
    refused: bool = False
    seconds: float = 0.0


@dataclass
class Maker:
    """Makes networks of candidates.

    options: of `prune`, for every candidate. shares: what the budget leaves of each cost, by key.
    """

    model: nn.Module
    example: Any
    request: Request
    source: Source
    task: Task
    judge: Judge
    options: Mapping[str, Any]
    shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = next((t.device for t in self.model.parameters()), torch.device("cpu"))
        self._made: dict[tuple[Candidate, float], Result] = {}
        self._figures: dict[tuple[Candidate, float], float] = {}
        self._measured: Measured | None = None

    def made(self, candidate: Candidate, level: float, *, verify: bool = False) -> Result:
        """The network of a candidate at a level of the budget; made once, the same each time it is asked for."""
        found = self._made.get((candidate, level))
        if found is None:
            budget = self.request.budget if level == 1 else scaled(self.request.budget, self.shares, level)
            with preserved(self.device):
                seed_all(derive(self.request.seed, str(candidate)))
                found = candidate.pruned(
                    self.model, self.example, budget, self.source, self.task if self.judge.labelled else None,
                    options=self.options, seed=self.request.seed, verify=verify,
                    measured=self._known(),
                )  # fmt: skip
            self._keep((candidate, level), found)
        elif verify and found.verification is None:
            found = replace(found, verification=found.graph.verify(found.cut, found.plan, seed=self.request.seed))
            self._made[candidate, level] = found
        return found

    def _keep(self, key: tuple[Candidate, float], found: Result) -> None:
        """Keep a network at hand, in place of the worst one: the best at the budget are asked for again."""
        self._made[key] = found
        if len(self._made) > _AT_HAND:
            others = [each for each in self._made if each != key]
            del self._made[min(others, key=lambda each: (each[1] == 1, self._figures.get(each, -math.inf)))]

    def _known(self) -> Measured | None:
        """What was measured of groups, for all candidates; None without data."""
        shown = self.source.shown
        if self._measured is None and shown is not None:
            self._measured = Measured(_Anew(shown), self.request.seed)
        return self._measured

    def tried(self, candidate: Candidate, level: float) -> Outcome:
        """What a candidate comes to; its own failure ends no other."""
        began = time.monotonic()
        try:
            result = self.made(candidate, level)
            figure = self.judge(result.model)
            if not math.isfinite(figure):
                raise ModelError("Its answers are not finite.")
            self._figures[candidate, level] = figure
        except (SecateurError, RuntimeError) as error:
            why = " ".join(str(error).split())[:500]
            return Outcome(None, why, isinstance(error, BudgetError), _since(began))
        return Outcome((figure, result.reached(self.request.key)), seconds=_since(began))


class _Anew:
    """Batches that begin anew each time they are gone through."""

    def __init__(self, begin: Callable[[], Iterable[Any]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[Any]:
        return iter(self._begin())


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
