"""What the race is run between: ways to choose channels and to repair the rest, as parameters of Optuna's trials."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import BaseTrial
from torch import nn

from secateur.allocate import MEASURED
from secateur.budget import Budget
from secateur.compress.held_out import Source
from secateur.compress.request import MEASURED_ONLY, METHODS, Request, repair_names
from secateur.errors import ConfigError
from secateur.methods import method as row_of
from secateur.methods.baselines import OneShot
from secateur.methods.kit.measured import Measured
from secateur.prune import prune
from secateur.surgery import Result
from secateur.tasks import Task

#: Where a race begins: (method, repairs, allocator) that did well; the sampler goes on from what these reach.
_STARTS = (
    ("fpgm", "least_squares", "global"), ("lamp", "least_squares", "global"), ("fpgm", "least_squares", MEASURED),
    ("fpgm", "least_squares+distillation", MEASURED), ("cap", "least_squares", MEASURED), ("cp", "none", ""),
    ("l1", "least_squares", "uniform"), ("taylor", "batchnorm", "global"),
    ("fpgm", "batchnorm", "per_cost"), ("l1", "none", "global"),
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One way to prune: a method, repairs ("none", or names joined by +), an allocator ("": its own), align."""

    method: str
    repair: str
    allocator: str
    align: int

    def __str__(self) -> str:
        """As it is told."""
        mended = "" if self.repair == "none" else f" with {self.repair.replace('+', ' and ')}"
        spread = f", {self.allocator}" if self.allocator else ""
        return f"{self.method}{mended}{spread}" + (f", align {self.align}" if self.align > 1 else "")

    def as_json(self) -> dict[str, Any]:
        """As a trial has it."""
        return asdict(self)

    def pruned(
        self, model: nn.Module, example_inputs: Any, budget: Budget, source: Source, task: Task | None, *,
        options: Mapping[str, Any], seed: int, verify: bool = False, measured: Measured | None = None,
    ) -> Result:  # fmt: skip
        """A copy of the network pruned so; SecateurError where that cannot be. measured: what is known of groups."""
        repair = repair_names(self.repair)
        row = row_of(self.method)
        learns = row.needs == "calibration" or bool(repair)
        assert source.shown is not None or not learns
        return prune(
            model,
            example_inputs,
            method=self.method,
            budget=budget,
            data=list(source.shown()) if learns and source.shown is not None else None,
            loss=task.loss if task is not None and row.labels else None,
            repair=repair,
            allocator=measured if measured is not None and self.allocator == MEASURED else self.allocator or None,
            align=self.align,
            seed=seed,
            verify=verify,
            **options,
        )


class Space:
    """The candidates that can be made of a request with what data there are."""

    def __init__(self, request: Request, *, data: bool, labels: bool, measuring: bool = True) -> None:
        """ConfigError where nothing is left. measuring: whether there are images and time to measure groups on."""
        self.repairs = request.repairs if data else ("none",)
        self.allocators = tuple(each for each in request.allocators if each != MEASURED or (data and measuring))
        rows = [row_of(name) for name in request.methods if request.methods != METHODS or self._quick(name)]
        known = {r.name for r in rows if labels or not r.labels or (r.name in MEASURED_ONLY and self._quick(r.name))}
        fitting = [r.name for r in rows if r.needs == "nothing" or (data and r.name in known)]
        if not fitting:
            raise ConfigError(
                f"None of the methods {', '.join(request.methods)} can work "
                f"{'without labels' if data else 'without data'}: name one that needs none, such as l1."
            )
        self.methods = tuple(fitting)
        if not self.allocators:
            raise ConfigError(
                f"allocators={list(request.allocators)!r} needs images and time to measure on, and there are too few: "
                "name one that needs none, such as global."
            )
        self.aligns = request.aligns
        self.left_out = tuple(r.name for r in rows if r.name not in fitting)

    def starts(self) -> list[Candidate]:
        """Those that are tried first: each method at least once."""
        found = []
        for name, repair, allocator in _STARTS:
            if name in self.methods and (repair in self.repairs or len(self.repairs) == 1):
                own = self._spread(name)
                chosen = allocator if allocator in own else own[0]
                found.append(
                    Candidate(name, repair if repair in self.repairs else self.repairs[0], chosen, self.aligns[0])
                )
        seen = {each.method for each in found}
        found += [
            Candidate(name, self.repairs[0], self._spread(name)[0], self.aligns[0])
            for name in self.methods
            if name not in seen
        ]
        return list(dict.fromkeys(found))

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return sum(len(self.repairs) * len(self._spread(name)) * len(self.aligns) for name in self.methods)

    def all(self) -> list[Candidate]:
        """Every one."""
        return [
            Candidate(name, repair, allocator, align)
            for name in self.methods
            for repair, allocator, align in itertools.product(self.repairs, self._spread(name), self.aligns)
        ]

    def suggested(self, trial: BaseTrial) -> Candidate:
        """What a trial is to try; the allocator is a parameter only of methods that score."""
        name = trial.suggest_categorical("method", self.methods)
        repair = trial.suggest_categorical("repair", self.repairs)
        spread = self._spread(name)
        allocator = trial.suggest_categorical("allocator", spread) if len(spread) > 1 else spread[0]
        align = trial.suggest_categorical("align", self.aligns)
        return Candidate(name, repair, allocator, align)

    def params(self, candidate: Candidate) -> dict[str, Any]:
        """The parameters of a trial that tries this one."""
        values = candidate.as_json()
        if len(self._spread(candidate.method)) == 1:
            values.pop("allocator")
        return values

    def _spread(self, name: str) -> tuple[str, ...]:
        """Allocators to try with a method: of one that only scores any, of others their own, or measured widths."""
        factory: Any = row_of(name).factory
        if isinstance(factory, type) and issubclass(factory, OneShot):
            return self.allocators
        return (MEASURED,) if name in MEASURED_ONLY and self._quick(name) else ("",)

    def _quick(self, name: str) -> bool:
        """Whether it does not search for widths where measuring them is meant to take the place of that."""
        return name not in MEASURED_ONLY or MEASURED in self.allocators
