"""Why a budget cannot be met: the smallest reachable cost, and what holds it up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secateur._hints import readable
from secateur._protocols import CostLike, GraphLike
from secateur.allocate.constraints import Constraints
from secateur.budget import KEYS, Budget
from secateur.errors import BudgetError

_NAMED = 6  # obstacles named in one sentence
_WORDS = {
    "flops": "multiply-accumulates",
    "params": "parameters",
    "activations": "activation elements",
    "peak": "activation elements at a time",
    "latency": "microseconds",
}


def unreachable(graph: GraphLike, budget: Budget, constraints: Constraints, original: CostLike) -> BudgetError:
    """Return the error for a budget that even the smallest legal widths exceed; the first such bound is explained."""
    limits = budget.limits(original)
    ladder = _ladder(graph, constraints)
    costs = graph.costs.evaluate(np.stack([constraint.floors(graph) for _, constraint in ladder]))
    key = next(key for key, _ in budget.bounds if costs[KEYS[key]][0] > limits[KEYS[key]])
    values = [float(value) for value in costs[KEYS[key]]]
    whole = float(getattr(original, KEYS[key]))
    held = [
        (before - after, words) for before, after, (words, _) in zip(values[:-1], values[1:], ladder[1:], strict=True)
    ]
    held.append((values[-1], _bottom(graph)))
    # a stable sort, so that equal shares keep their order
    obstacles = sorted((item for item in held if item[0] > 0), key=lambda item: -item[0])
    told = "; ".join(
        f"{words} ({readable(amount)}, {amount / max(whole, 1):.1%})" for amount, words in obstacles[:_NAMED]
    )
    told += "; and others" if len(obstacles) > _NAMED else ""
    given, written = dict(budget.bounds)[key], budget.as_dict()[key]
    hint = " (a value above 1 is an absolute number, not a percentage)" if 1 < given <= 100 else ""
    shown = written if isinstance(written, str) else f"{written:g}"
    return BudgetError(
        f"The budget {key}={shown}{hint} cannot be met: the smallest reachable number of {_WORDS[key]} is "
        f"{values[0]:.0f}, {key}={_ceiling(values[0] / max(whole, 1))} of the original {whole:.0f}; "
        f"what stands in the way, largest first: {told}. Raise the budget or relax one of these."
    )


def _ceiling(fraction: float) -> str:
    """Return a fraction rounded up to four digits, so that it can be typed as a budget."""
    return f"{np.ceil(fraction * 1e4) / 1e4:.4f}"


def _ladder(graph: GraphLike, constraints: Constraints) -> list[tuple[str, Constraints]]:
    """Return ever looser constraints, each with the words for what was lifted last; the drops between them add up."""
    rungs = [("", constraints)]
    for text, names in constraints.ignored(graph).items():
        looser = replace(rungs[-1][1], ignore=tuple(other for other in rungs[-1][1].ignore if other != text))
        rungs.append((f"ignore={text!r} keeps {_count(len(names), 'group')} whole", looser))
    if constraints.keep:
        kept = _count(len(constraints.keep), "group")
        rungs.append((f"the method cannot prune {kept}", replace(rungs[-1][1], keep=())))
    rungs.append((f"max_ratio={constraints.max_ratio:g}", replace(rungs[-1][1], max_ratio=1.0)))
    rungs.append((f"min_channels={constraints.min_channels}", replace(rungs[-1][1], min_channels=1)))
    rungs.append((f"align={constraints.align}", replace(rungs[-1][1], align=1)))
    return rungs


def _bottom(graph: GraphLike) -> str:
    """Return the words for what no option can lift: widths that are frozen, and the last channel of each group."""
    if not graph.frozen:
        return "one channel must stay in every group"
    largest = sorted(graph.frozen, key=lambda frozen: -frozen.width)[:3]
    named = ", ".join(f"{frozen.name}: {frozen.width} channels, {frozen.reason}" for frozen in largest)
    frozen = _count(len(graph.frozen), "width")
    return f"one channel must stay in every group and {frozen} cannot be pruned, such as {named}"


def _count(number: int, word: str) -> str:
    """Return '1 group' or '3 groups'."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
