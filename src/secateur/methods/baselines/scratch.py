"""The baseline of every method that trains: a narrow network trained from the start, its channels chosen by nothing.

Liu, Sun, Zhou, Huang, Darrell: Rethinking the Value of Network Pruning, 2019 (arXiv:1810.05270): often the widths are
what pruning finds, and training them anew does as well. The widths come from another method's plan, or are the same
share of every group.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from secateur.allocate import allocate
from secateur.errors import BudgetError
from secateur.methods.baselines.formulas import random
from secateur.methods.contract import Method, Settings
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.scores import Scores
from secateur.methods.row import MethodRow
from secateur.plan import Plan


class ScratchSettings(Settings):
    """Where the widths come from."""

    plan: str | None = Field(None, description="plan file whose widths are taken; null: the same share of every group")


class Scratch(Method):
    """Cut a network that was never trained, at random; all training comes afterwards."""

    name = "scratch"
    Config = ScratchSettings
    settings: ScratchSettings

    def prepare(self) -> None:
        """Read the plan now: a file that does not fit should not be found out later."""
        self._widths: dict[str, int] | None = None
        if self.settings.plan is not None:
            given = Plan.load(self.settings.plan)
            given.check(self.graph)
            self._widths = given.widths
            aim = Aim(self.graph, self.budget)
            if not aim.met(self._widths):
                raise BudgetError(
                    f"The widths of {self.settings.plan} do not meet the budget: give the plan of a run with this one."
                )

    def score(self) -> Scores:
        """Chance."""
        return random(self.graph, seed=self.seed)

    def plan(self) -> Plan:
        """Random channels, as many as the plan kept, or the same share of every group."""
        if self._widths is None:
            return allocate(self.score(), self.graph, self.budget, self.constraints, allocator="uniform")
        masks = {}
        for name, score in self.score().items():
            masks[name] = np.zeros(len(score), dtype=np.bool_)
            masks[name][np.argsort(-score)[: self._widths[name]]] = True
        return Plan(masks, {"criterion": "random", "budget": self.budget.as_dict()})


ROW = MethodRow(
    name="scratch",
    summary="the pruned widths, trained from the start",
    paper="Rethinking the Value of Network Pruning",
    year=2019,
    arxiv="1810.05270",
    needs="nothing",
    acts="before training",
    granularity="channel",
    fidelity="the paper's comparison with equal epochs (its Scratch-E); the channels of the new network are chosen "
    "at random",
    factory=Scratch,
    settings=ScratchSettings,
    chance="widths are kept by chance",
    begins="narrow",
    finetunes=False,
)
