"""A method that searches, as small as can be: the best of some uniform widths, after a short training of each."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from torch import nn

from secateur.errors import ConfigError
from secateur.methods import Method, MethodRow, Settings
from secateur.methods.trials import Trials
from secateur.plan import Plan
from secateur.repair import renew


class TinySettings(Settings):
    tried: int = Field(4, ge=1, description="shares tried")


class Tiny(Method):
    """Tries shares of all widths, drawn by the number of the trial."""

    name = "tiny_search"
    Config = TinySettings
    settings: TinySettings

    def search(self, trials: Trials) -> None:
        trials.begin(self.settings.tried)
        self.best: tuple[float, Plan] = (-1.0, Plan({}))
        for number in range(self.settings.tried):
            draw = np.random.default_rng([self.seed, trials.number])
            plan = self._allocate({g.name: draw.random(g.width) for g in self.graph.groups})
            found = trials.accuracy(lambda plan=plan: self.cut(plan), {"draw": number}, epochs=1)
            if found > self.best[0]:
                self.best = (found, plan)
                self.number = number
        self.found = trials.weights(self.number)

    def cut(self, plan: Plan) -> nn.Module:
        return self.graph.cut(plan).model

    def plan(self) -> Plan:
        if not hasattr(self, "best"):
            raise ConfigError("tiny_search has seen no data: call collect(batches, loss) before finish().")
        return self.best[1]

    def repair(self, model: nn.Module, plan: Plan) -> None:
        renew(model, self.graph, plan, self.found)


ROW = MethodRow(
    name="tiny_search", factory=Tiny, summary="the best of some draws", needs="calibration", labels=True,
    chance="channels are drawn by their numbers",
)  # fmt: skip
