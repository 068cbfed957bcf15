"""Where a budget stands: how far widths are from it, as one number, for methods that approach it while training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secateur._protocols import Array, GraphLike
from secateur.allocate.blocks import whole_cost
from secateur.budget import Budget

#: How much of a budget is used in the end, where the channels are small enough.
CLOSE = 0.99


class Aim:
    """A budget on one graph; 1 stands for the whole network, `goal` for one that meets every bound."""

    def __init__(self, graph: GraphLike, budget: Budget) -> None:
        """Take the costs of the whole network."""
        self.groups = {group.name: group.width for group in graph.groups}
        self._costs = graph.costs
        self.full = self.cost({})
        self.limits = budget.limits(whole_cost(graph))
        self.goal = min(1.0, *(limit / self.full[key] for key, limit in self.limits.items()))

    def cost(self, widths: Mapping[str, float]) -> dict[str, float]:
        """Every cost at these widths; groups not named are whole."""
        given = np.array([widths.get(name, width) for name, width in self.groups.items()], dtype=np.float64)
        return {key: float(value) for key, value in self._costs.evaluate(given).items()}

    def fraction(self, widths: Mapping[str, float]) -> float:
        """How much of the network is left: 1 for all, `goal` where the bound that is worst met is just met."""
        cost = self.cost(widths)
        excess = [(cost[key] - limit) / max(self.full[key] - limit, 1e-9) for key, limit in self.limits.items()]
        return self.goal + (1.0 - self.goal) * max(excess)

    def met(self, widths: Mapping[str, float]) -> bool:
        """Whether every bound holds."""
        cost = self.cost(widths)
        return all(cost[key] <= limit for key, limit in self.limits.items())

    def used(self, widths: Mapping[str, float]) -> float:
        """The share of the bound that is nearest."""
        cost = self.cost(widths)
        return max(cost[key] / limit for key, limit in self.limits.items())

    def close(self, widths: Mapping[str, float]) -> bool:
        """Whether at least `CLOSE` of some bound is used."""
        return self.used(widths) >= CLOSE


def counts(masks: Mapping[str, Array]) -> dict[str, float]:
    """Widths of masks."""
    return {name: float(np.count_nonzero(mask)) for name, mask in masks.items()}
