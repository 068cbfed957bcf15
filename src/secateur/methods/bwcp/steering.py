"""Steering gates towards a budget while a network trains: a ramp of cost, a penalty's strength, a level for gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur._protocols import BoolArray, FloatArray
from secateur.methods.bwcp.gates import Gates
from secateur.methods.kit.aim import Aim, counts


@dataclass(frozen=True)
class Ramp:
    """From the whole network down to the budget, between two moments of a training (0 to 1)."""

    start: float
    end: float

    def wanted(self, progress: float, goal: float) -> float:
        """The share of the cost that should be left at `progress`."""
        share = (progress - self.start) / max(self.end - self.start, 1e-9)
        return 1.0 + min(max(share, 0.0), 1.0) * (goal - 1.0)


class Steering:
    """Keeps the cost of open gates on its ramp: by a penalty in the long run, by the gates' level at once.

    The strength of the penalty is that of a controller with a proportional and an integral part. It grows while gates
    that close below even odds leave too much, and shrinks, even to a reward, while they leave too little. It takes many
    steps to act; until it has, the level decides, and the channels with the least margin go first.
    """

    def __init__(
        self,
        gates: Gates,
        aim: Aim,
        ramp: Ramp,
        *,
        most: float,
        reward: float,
        proportional: float,
        gain: float,
        level: bool,
    ) -> None:
        """Take the gates and the budget; see `BWCPSettings` for the numbers."""
        self.gates, self.aim, self.ramp = gates, aim, ramp
        self.most, self.reward, self.proportional, self.gain, self.level = most, reward, proportional, gain, level
        self.strength = self._sum = 0.0

    def look(self, progress: float, since: float) -> None:
        """Adjust strength and level at `progress`, when a share `since` of the training has passed since the last."""
        wanted, margins = self.ramp.wanted(progress, self.aim.goal), self.gates.margins()
        excess = self.aim.fraction(counts(self.gates.closed_below(0.0, margins))) - wanted
        self._sum = float(np.clip(self._sum + self.gain * excess * since, -self.reward, 1.0))
        self.strength = self.most * float(np.clip(self._sum + self.proportional * excess, -self.reward, 1.0))
        if self.level:
            self.gates.level = self.level_for(wanted, margins)

    def level_for(self, wanted: float, margins: Mapping[str, FloatArray]) -> float:
        """The lowest level that leaves no more than `wanted` of the cost."""
        levels = np.unique(np.concatenate([*margins.values(), [np.inf]]))
        low, high = 0, len(levels) - 1
        while low < high:  # the cost falls as the level rises
            middle = (low + high) // 2
            left: dict[str, BoolArray] = self.gates.closed_below(float(levels[middle]), margins)
            over = self.aim.fraction(counts(left)) > wanted
            low, high = (middle + 1, high) if over else (low, middle)
        below, above = levels[max(low - 1, 0)], levels[low]
        return float((below + above) / 2 if np.isfinite(above) else below + 1.0)

    def state(self) -> dict[str, Any]:
        """What must be saved; JSON values."""
        return {"strength": self.strength, "sum": self._sum, "level": self.gates.level}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.strength, self._sum = float(state["strength"]), float(state["sum"])
        self.gates.level = float(state["level"])
