"""When what a paper does behind every epoch is done in a training of few epochs: more often, and early enough.

Papers have a hundred epochs and more, so that the last event changes little and there is time to make up for it. In
three epochs a third of the change would come with the last step.
"""

from __future__ import annotations

#: The share of a short training in which its events stand.
EARLY = 0.75


class ShortEvents:
    """Counts the events of a training in which no epoch ends within its first 1 / `least`; in others there are none.

    Such a training has `least` events, or as many as there are steps for, evenly within its first three quarters.
    """

    def __init__(self, least: int, steps: int) -> None:
        """least: how many events a short training has; 0: none, whatever its length. steps: of the training."""
        self._steps, self.most = steps, min(least, int(EARLY * steps))
        self.over = 0

    def due(self, step: int, epochs: int) -> bool:
        """Whether the next event stands behind this step, which then counts; epochs: that have ended so far."""
        if epochs or self.over >= self.most or step * self.most <= self._steps:
            return False
        if step < (self.over + 1) * EARLY * self._steps / self.most:
            return False
        self.over += 1
        return True
