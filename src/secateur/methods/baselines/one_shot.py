"""The baselines as methods: a criterion scores the trained network once, and the cut follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from secateur.errors import ConfigError
from secateur.graph import Graph
from secateur.methods.baselines.criteria import CRITERIA, Criterion, score
from secateur.methods.baselines.gradients import accumulate_gradients
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.hands import accepts
from secateur.methods.kit.scores import Scores
from secateur.methods.row import MethodRow

Gradients = Callable[[Graph], dict[str, torch.Tensor]]


class NoSettings(Settings):
    """For a criterion without options."""


class Reduction(Settings):
    """For a criterion that combines a group's members."""

    reduce: Literal["sum", "mean", "max", "prod"] = Field("sum", description="how a group's members are combined")


class Members(Reduction):
    """For a criterion that scores members."""

    members: Literal["producers", "all"] = Field("producers", description="what makes a channel, or also what reads it")


class OneShot(Method):
    """Score the network as it stands, once; a subclass says how."""

    @classmethod
    def scorer(cls, settings: Settings, seed: int, gradients: Gradients) -> Callable[[Graph], Mapping[str, Any]]:
        """What scores a graph: one number a channel, {group: [width]}, higher = keep.

        gradients: gives those of the loss, for one who needs them.
        """
        raise NotImplementedError

    def prepare(self) -> None:
        """Nothing is known of the gradients yet."""
        self._gradients: dict[str, torch.Tensor] = {}

    def score(self) -> Mapping[str, Any]:
        """The scores of the model as it stands."""
        return self.scorer(self.settings, self.seed, self._collected)(self.graph)

    def _collected(self, graph: Graph) -> dict[str, torch.Tensor]:
        if not self._gradients:
            raise ConfigError(
                f"The method {self.name!r} has seen no data: call collect(batches, loss) before finish()."
            )
        return self._gradients


class ByCriterion(OneShot):
    """Score by one criterion."""

    criterion: Criterion

    @classmethod
    def scorer(cls, settings: Settings, seed: int, gradients: Gradients) -> Callable[[Graph], Scores]:
        """The criterion's scores."""

        def scored(graph: Graph) -> Scores:
            known = gradients(graph) if cls.criterion.needs_data else None
            return score(cls.criterion.name, graph, seed=seed, gradients=known, **settings.model_dump())

        return scored

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Gradients of the loss, for a criterion that needs them."""
        if self.criterion.needs_data:
            self._gradients = accumulate_gradients(self.model, batches, loss)


class ByFunction(OneShot):
    """Score by a function of one's own."""

    function: ClassVar[Callable[[Graph], Mapping[str, Any]]]

    @classmethod
    def scorer(cls, settings: Settings, seed: int, gradients: Gradients) -> Callable[[Graph], Mapping[str, Any]]:
        """What the function gives."""
        return cls.function


def scoring(name: str, function: Callable[[Graph], Mapping[str, Any]], summary: str) -> MethodRow:
    """The method that scores by a function from the graph to {group: [width]}, higher = keep."""
    if not accepts(function, 1):
        raise ConfigError(
            f"The function {name!r} cannot be called with a graph alone: let it take one argument, the graph, and give "
            "scores {group: [width]}."
        )
    body = {"name": name, "function": staticmethod(function), "__module__": __name__, "__doc__": function.__doc__}
    return MethodRow(name=name, factory=type("ByFunction", (ByFunction,), body), summary=summary)


def _row(criterion: Criterion) -> MethodRow:
    """The method that scores by one criterion."""
    takes = criterion.options
    settings: type[Settings] = Members if "members" in takes else Reduction if "reduce" in takes else NoSettings
    name = "".join(part.capitalize() for part in criterion.name.split("_"))
    body = {"name": criterion.name, "Config": settings, "criterion": criterion, "__module__": __name__}
    return MethodRow(
        name=criterion.name,
        factory=type(name, (ByCriterion,), body),
        summary=criterion.summary,
        paper=criterion.paper,
        year=criterion.year,
        arxiv=criterion.arxiv,
        needs="calibration" if criterion.needs_data else "nothing",
        labels=criterion.needs_data,
        fidelity="the criterion only; the paper's schedule of pruning and retraining is left to the recipe",
        settings=settings,
        chance="every score is drawn" if criterion.name == "random" else "",
    )


ROWS = tuple(_row(criterion) for criterion in CRITERIA)
