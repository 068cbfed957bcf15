"""What stays whatever its scores, as several methods have it: a share of every group, residual streams."""

from __future__ import annotations

from dataclasses import dataclass, fields

from secateur._hints import few
from secateur.allocate import Constraints
from secateur.errors import BudgetError
from secateur.graph.readers import summed
from secateur.methods.contract import Method


@dataclass(frozen=True)
class _Down(Constraints):
    """Constraints that round the share of a group that stays down."""

    def floor(self, width: int, step: int | None = None) -> int:
        lowest = max(1, self.min_channels, int((1.0 - self.max_ratio) * width + 1e-9))
        step = self.align if step is None else step
        return int(min(-(-lowest // step) * step, width))


def leave(method: Method, share: float, setting: str, *, down: bool = False) -> None:
    """Let every plan of the method keep this share of every group; BudgetError naming the setting if it cannot be.

    down: whether it is rounded down to whole channels, at least one; else up.
    """
    ratio = 1.0 - share
    if ratio >= method.constraints.max_ratio:
        return
    given = {field.name: getattr(method.constraints, field.name) for field in fields(method.constraints)}
    method.constraints = (_Down if down else Constraints)(**given | {"max_ratio": ratio})
    try:
        method._check_reach()
    except BudgetError as error:
        raise BudgetError(f"With {setting}={share:g}, t{str(error).removeprefix('T')}") from None


def keep_streams(method: Method) -> None:
    """Keep what several layers make together by a sum, residual streams, whole, unless the budget is out of reach."""
    streams = [g.name for g, several in zip(method.graph.groups, summed(method.graph), strict=True) if several]
    if not streams:
        return
    given, method.constraints = method.constraints, method.constraints.keeping(streams)
    note = f"Channels that several layers make together stay whole: {few(streams)}."
    try:
        method._check_reach()
    except BudgetError:
        method.constraints = given
        note = f"The budget cannot be met with residual streams whole, so they are pruned: {few(streams)}."
    method.notes.append(note)
