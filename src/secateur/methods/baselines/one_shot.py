"""The baselines as methods: a criterion scores the trained network once, and the cut follows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field

from secateur.errors import ConfigError
from secateur.methods.baselines.criteria import CRITERIA, Criterion, score
from secateur.methods.baselines.gradients import accumulate_gradients
from secateur.methods.contract import Loss, Method, MethodRow, Settings
from secateur.methods.kit.scores import Scores


class NoSettings(Settings):
    """For a criterion without options."""


class Reduction(Settings):
    """For a criterion that combines a group's members."""

    reduce: Literal["sum", "mean", "max", "prod"] = Field("sum", description="how a group's members are combined")


class Members(Reduction):
    """For a criterion that scores members."""

    members: Literal["producers", "all"] = Field("producers", description="what makes a channel, or also what reads it")


class OneShot(Method):
    """Score by one criterion, once."""

    criterion: Criterion

    def score(self) -> Scores:
        """The criterion's scores of the model as it stands."""
        gradients = None
        if self.criterion.needs_data:
            if not self._gradients:
                raise ConfigError(
                    f"The method {self.name!r} has seen no data: call collect(batches, loss) before finish()."
                )
            gradients = self._gradients
        return score(self.criterion.name, self.graph, seed=self.seed, gradients=gradients, **self.settings.model_dump())

    def prepare(self) -> None:
        """Nothing is known of the gradients yet."""
        self._gradients: dict[str, torch.Tensor] = {}

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Gradients of the loss, for a criterion that needs them."""
        if self.criterion.needs_data:
            self._gradients = accumulate_gradients(self.model, batches, loss)


def _row(criterion: Criterion) -> MethodRow:
    """The method that scores by one criterion."""
    takes = criterion.options
    settings: type[Settings] = Members if "members" in takes else Reduction if "reduce" in takes else NoSettings
    name = "".join(part.capitalize() for part in criterion.name.split("_"))
    factory = type(
        name, (OneShot,), {"name": criterion.name, "Config": settings, "criterion": criterion, "__module__": __name__}
    )
    return MethodRow(
        name=criterion.name,
        summary=criterion.summary,
        paper=criterion.paper,
        year=criterion.year,
        arxiv=criterion.arxiv,
        needs="calibration" if criterion.needs_data else "nothing",
        acts="after training",
        granularity="channel",
        fidelity="the criterion only; the paper's own schedule of pruning and retraining is the recipe's business",
        factory=factory,
        settings=settings,
        chance="every score is drawn" if criterion.name == "random" else "",
    )


ROWS = tuple(_row(criterion) for criterion in CRITERIA)
