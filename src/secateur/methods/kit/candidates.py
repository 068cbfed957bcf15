"""Candidates of a search: networks cut by plans, whose accuracy is asked for, where they can be cut at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.graph import Graph, SizeConflict
from secateur.methods.trials import Asked, Trials
from secateur.plan import Plan


@dataclass(frozen=True)
class Candidate:
    """A plan, what becomes of the network it cuts before that is trained and measured, and a question's other parts."""

    plan: Plan
    prepared: Callable[[nn.Module], nn.Module]
    about: Mapping[str, Any]
    epochs: int = 0


def tried(trials: Trials, graph: Graph, candidates: Iterable[Candidate]) -> list[float | None]:
    """Accuracies of what plans cut; None, and nothing is asked, where a size in the network's code is in the way.

    candidates: none waits for another's answer; taken one by one, `trials.number` being meanwhile that of the next.
    """
    possible: list[bool] = []

    def asked() -> Iterator[Asked]:
        for each in candidates:
            try:
                ready = [graph.cut(each.plan).model]
            except SizeConflict:
                possible.append(False)
                continue
            possible.append(True)
            yield Asked(_once(ready, graph, each), each.about, each.epochs)
            ready.clear()

    found = iter(trials.accuracies(asked()))
    return [next(found) if could else None for could in possible]


def _once(ready: list[nn.Module], graph: Graph, of: Candidate) -> Callable[[], nn.Module]:
    """Makes the network of what was cut already, the first time; it is not held for a second training."""
    return lambda: of.prepared(ready.pop() if ready else graph.cut(of.plan).model)
