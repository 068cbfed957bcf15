"""When a gradual method prunes, and when it gathers statistics for that."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rounds:
    """`count` rounds between two shares of a training, each ending with an act of pruning.

    steps: of the whole training. every: steps between two batches of statistics; fewer where a round has not ten of
    those. most: batches of statistics in one round.
    """

    count: int
    start: float
    end: float
    steps: int
    every: int = 1
    most: int = 1

    def over(self, step: int) -> int:
        """Rounds that are over after this step."""
        share = (step / self.steps - self.start) / (self.end - self.start)
        return max(0, min(self.count, math.floor(share * self.count + 1e-9)))

    def looks(self, step: int, done: int) -> bool:
        """Whether statistics are gathered at this step, after `done` rounds: at the end of one, and before it."""
        if done >= self.count:
            return False
        length = (self.end - self.start) * self.steps / self.count
        left = math.ceil(self.start * self.steps + (done + 1) * length - 1e-9) - step
        interval = max(1, min(self.every, int(length // 10)))
        return left <= 0 or (left % interval == 0 and left // interval < self.most)
