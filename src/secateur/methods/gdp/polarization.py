"""The gate of GDP, a smoothed count of what is not zero, and the cost of a network whose widths are sums of gates."""

from __future__ import annotations

import numpy as np
import torch

from secateur._protocols import FloatArray
from secateur.graph import Graph
from secateur.methods.kit.aim import Aim

#: Half the step of a central difference, which is exact in costs that are products of widths.
_STEP = 0.5


def smooth_count(a: torch.Tensor, eps: float) -> torch.Tensor:
    """g(a) = a^2 / (a^2 + eps): 0 at 0 only, 1/2 at sqrt(eps), near 1 far out."""
    squares = a.square()
    return squares / (squares + eps)


def reach(share: float, eps: float) -> float:
    """The |a| at which g(a) is this share: sqrt(eps share / (1 - share))."""
    return float(np.sqrt(eps * share / (1 - share)))


class SoftCost:
    """F / F0 at soft widths, and what each group's width adds to it.

    F / F0 is the fraction of the bound that is worst met, as `Aim.fraction` has it; with one bound on FLOPs alone
    that is their share.
    """

    def __init__(self, graph: Graph, aim: Aim) -> None:
        self._costs, self._aim = graph.costs, aim
        self._keys = list(aim.limits)
        self._full = np.array([aim.full[key] for key in self._keys])
        self._limits = np.array([aim.limits[key] for key in self._keys])

    def at(self, widths: FloatArray) -> tuple[float, FloatArray]:
        """F / F0 at these widths [groups], and its derivatives c_u / F0 = dF/dS_u / F0 [groups]."""
        steps = _STEP * np.eye(len(widths))
        costs = self._evaluate(np.concatenate([widths[None], widths + steps, widths - steps]))
        goal = self._aim.goal
        left = goal + (1 - goal) * (costs - self._limits) / np.maximum(self._full - self._limits, 1e-9)
        worst = left[:, int(left[0].argmax())]
        above, below = np.split(worst[1:], 2)
        return float(worst[0]), (above - below) / (2 * _STEP)

    def _evaluate(self, widths: FloatArray) -> FloatArray:
        if self._keys == ["macs"]:  # and not what else there is to know, in every step
            return np.asarray(self._costs.macs_by_call(widths).sum(-1)[:, None])
        found = self._costs.evaluate(widths)
        return np.stack([found[key] for key in self._keys], -1)
