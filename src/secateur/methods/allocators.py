"""Who makes widths of a method's scores: an allocator by its name, or an object that makes the plan itself.

Below the contract, whose constructor takes either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from secateur._hints import choose
from secateur.allocate import ALLOCATORS, MEASURED, Constraints
from secateur.budget import Budget
from secateur.errors import ConfigError
from secateur.graph import Graph
from secateur.plan import Plan


class Allocator(Protocol):
    """What makes a plan of scores in a way of its own, such as `secateur.methods.kit.measured.Measured`."""

    name: ClassVar[str]

    def plan(self, graph: Graph, scores: Mapping[str, Any], budget: Budget, constraints: Constraints) -> Plan:
        """The plan within the budget; see `secateur.allocate.allocate`."""


def allocator_of(given: Any, method: str, *, follows: bool) -> tuple[str, Allocator | None]:
    """The allocator's name, and the object where it is none of the usual ones.

    given: a name, or an `Allocator`. method: whose. follows: whether its widths follow from its scores alone.

    Raises:
        ConfigError: there is none of that name, or the method finds its widths itself.
    """
    if given == MEASURED:
        raise ConfigError(
            'allocator="measured" looks at images: give a secateur.methods.kit.measured.Measured(batches) in its '
            "place, or use secateur.prune(..., data=batches) or a recipe."
        )
    if not hasattr(given, "plan"):
        return choose(given, [name for name in ALLOCATORS if name != "ratios"], "allocator"), None
    if not follows:
        raise ConfigError(
            f"The method {method!r} finds its widths itself, and the allocator {given.name!r} goes with methods whose "
            "widths follow from scores, such as cap or l1: leave the allocator out, or choose such a method."
        )
    return given.name, given
