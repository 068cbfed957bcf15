"""Binary structural search: how much each of several units may lose while a measured accuracy stays above falling bars.

The bar falls by an equal step from unit to unit, in order; what a unit does not use of it is left to those behind it,
for bars are absolute. A budget is met by bisection over the step.

Source: Xie et al. (arXiv:2108.13728), as in the authors' structural_search.py; the bisection over the step is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur._progress import follow

#: Whether the accuracy of a network whose unit k has lost the share shares[k] reaches a bar; units behind the last are
#: whole.
Reaches = Callable[[tuple[float, ...], float], bool]


def largest_share(reaches: Callable[[float], bool], most: float, halvings: int) -> float:
    """The largest share found, by so many halvings of [0, most], at which the accuracy reaches the bar; else 0."""
    low, high = 0.0, most
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class StructuralSearch:
    """The search over `units` units.

    start: accuracy of the whole network. most: largest share a unit may lose. halvings: of each unit's search.
    """

    units: int
    reaches: Reaches
    start: float
    most: float
    halvings: int

    def run(self, step: float, enough: Callable[[Sequence[float]], bool] | None = None) -> tuple[float, ...]:
        """The shares all units lose, with bars start - step, start - 2 step, ...

        enough: asked after every unit; once it holds, the search ends and units behind lose nothing.
        """
        shares: tuple[float, ...] = ()
        for unit in range(self.units):
            bar = self.start - step * (unit + 1)
            found = largest_share(
                lambda share, before=shares, bar=bar: self.reaches((*before, share), bar),  # type: ignore[misc]
                self.most, self.halvings,
            )  # fmt: skip
            shares = (*shares, found)
            if enough is not None and enough(shares):
                break
        return (*shares, *([0.0] * (self.units - len(shares))))

    def toward(self, fits: Callable[[Sequence[float]], bool], rounds: int) -> tuple[tuple[float, ...], float]:
        """The shares at the largest step found that does not meet a budget yet, and this step.

        fits: whether shares meet the budget; once some do, larger ones must. rounds: bisections of [0, start].
        """
        low, high = 0.0, self.start
        shares: tuple[float, ...] | None = None
        for _ in follow("searches", range(rounds)):
            # small steps matter most, so the first guesses are small: the middle of the roots
            step = ((low**0.5 + high**0.5) / 2) ** 2
            found = self.run(step, fits)
            if fits(found):
                high = step
            else:
                low, shares = step, found
        return (shares if shares is not None else self.run(low)), low
