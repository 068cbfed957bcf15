"""Candidates of a search: networks cut by plans, whose accuracy is asked for, where they can be cut at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from secateur.graph import Graph, SizeConflict
from secateur.methods.trials import Trials
from secateur.plan import Plan


def tried(
    trials: Trials,
    graph: Graph,
    plan: Plan,
    prepared: Callable[[nn.Module], nn.Module],
    about: Mapping[str, Any],
    epochs: int = 0,
) -> float | None:
    """Accuracy of the network that a plan cuts; None, and nothing is asked, where a size in its code is in the way.

    prepared: what becomes of the cut network before it is trained and measured. about, epochs: see `Trials.accuracy`.
    """
    try:
        ready = [graph.cut(plan).model]
    except SizeConflict:
        return None
    found = trials.accuracy(
        lambda: prepared(ready.pop() if ready else graph.cut(plan).model), about, epochs=epochs
    )  # the first one is used once, and not held for a second training
    ready.clear()
    return found
