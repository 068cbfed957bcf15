"""From scores to a plan: which channels stay so that the budget is met.

    plan = allocate(scores, graph, "flops=0.5", Constraints(align=8), allocator="global")

Every bound is met from below, and no further block of channels fits within all bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Real
from typing import Any

import numpy as np
import torch

from secateur._hints import check_graph, choose, few, nearest, readable
from secateur._protocols import Array, CostLike, FloatArray, GraphLike, IntArray
from secateur.allocate.alignment import straight
from secateur.allocate.blocks import Bounds, stack, whole_cost
from secateur.allocate.constraints import Constraints
from secateur.allocate.exchanges import used
from secateur.allocate.normalise import NORMALISATIONS, normalisation
from secateur.allocate.patterns import matched, parse_patterns
from secateur.allocate.reach import unreachable
from secateur.allocate.strategies import ALLOCATORS as _BUDGETED
from secateur.budget import KEYS, Budget
from secateur.errors import BudgetError, ConfigError
from secateur.plan import Plan, fingerprint

__all__ = ["ALLOCATORS", "MEASURED", "NORMALISATIONS", "Constraints", "allocate", "fitting_scores"]

#: Names of all allocators.
ALLOCATORS: tuple[str, ...] = (*_BUDGETED, "ratios")
#: Name of the one that looks at images: "per_cost" of what `secateur.prune` measured.
MEASURED = "measured"


def allocate(
    scores: Mapping[str, Array],
    graph: GraphLike,
    budget: str | Mapping[str, float | str] | Budget | None,
    constraints: Constraints | None = None,
    *,
    allocator: str = "global",
    normalise: str = "mean",
    ratios: Mapping[str, float] | None = None,
) -> Plan:
    """Return the plan that keeps the best-scored channels within the budget.

    scores: one finite number a channel for every group, higher = keep.
    graph: the traced network.
    budget: see `Budget.parse`; may be None with allocator="ratios", where it is only checked.
    allocator: "global" (one threshold over normalised scores), "uniform" (the same share of every group), "per_cost"
        (score over marginal cost, taken anew as widths shrink) or "ratios".
    constraints: what no plan may do; None: one channel of every group stays, and nothing else is asked.
    normalise: how scores become comparable between groups, one of NORMALISATIONS.
    ratios: for allocator="ratios", {module pattern: share of channels to remove}; the last pattern that matches a
        group wins, and one that wins nowhere is refused.

    Ties fall to the earlier group, then the lower channel index; the result depends on nothing but the arguments.
    """
    constraints = constraints or Constraints()
    choose(allocator, ALLOCATORS, "allocator")
    check_graph(graph, "allocate")
    values = fitting_scores(scores, graph, normalise)
    ranks = [np.argsort(-score, kind="stable") for score in values]
    parsed = None if budget is None else Budget.parse(budget)
    original = whole_cost(graph)
    chosen: dict[str, Any] = {}
    if allocator == "ratios":
        chosen = _ratios(graph, ratios)
        widths = _explicit(graph, chosen, constraints)
        _check_reached(graph, widths, parsed, original)
    else:
        if ratios is not None:
            raise ConfigError(f"ratios are given but the allocator is {allocator!r}: use allocator='ratios'.")
        if parsed is None:
            raise BudgetError(f"The allocator {allocator!r} needs a budget: give one such as 'flops=0.5'.")
        ranked = [score[rank] for score, rank in zip(values, ranks, strict=True)]
        widths = _within(ranked, graph, parsed, constraints, allocator, original)
    masks = {}
    for group, rank, width in zip(graph.groups, ranks, widths.tolist(), strict=True):
        masks[group.name] = np.zeros(group.width, dtype=np.bool_)
        masks[group.name][rank[:width]] = True
    provenance = {
        **getattr(scores, "provenance", {}),
        "allocator": allocator,
        "normalise": normalise,
        "constraints": asdict(constraints) | {"ignore": list(constraints.ignore), "keep": list(constraints.keep)},
        "budget": None if parsed is None else parsed.as_dict(),
        "reached": _reached(graph, widths, parsed, original),
    }
    if chosen:
        provenance["ratios"] = chosen
    notes = [constraints.alignment(graph).note(widths), _untouched(graph, widths, chosen)]
    if any(notes):
        provenance["notes"] = [note for note in notes if note]
    return Plan(masks, provenance, fingerprint(graph))


def _within(
    ranked: list[FloatArray],
    graph: GraphLike,
    budget: Budget,
    constraints: Constraints,
    allocator: str,
    original: CostLike,
) -> IntArray:
    """Return the widths a budgeted allocator chooses; BudgetError if no legal widths are within the budget."""
    floors, steps = constraints.grid(graph)
    bounds = Bounds(graph.costs, budget.limits(original))
    if not bounds.fit(floors[None])[0]:
        raise unreachable(graph, budget, constraints, original)

    def choose(tops: IntArray) -> IntArray:
        kept = [values[:top] for values, top in zip(ranked, tops.tolist(), strict=True)]
        return _BUDGETED[allocator](stack(kept, floors, constraints, steps), bounds)

    return straight(constraints.alignment(graph), floors, choose, lambda widths: float(used(bounds, widths[None])[0]))


def fitting_scores(scores: Mapping[str, Array], graph: GraphLike, normalise: str) -> list[FloatArray]:
    """Return the normalised scores in the order of the groups.

    Args:
        scores: one number a channel, for every group by name, shape ``[width]``; larger means kept longer.
        graph: the groups, with their names and widths.
        normalise: a name in ``NORMALISATIONS``, or ``none``.

    Raises:
        ConfigError: naming the group whose scores are missing, of another width or no finite numbers.
    """
    function = normalisation(normalise)
    if not isinstance(scores, Mapping):
        raise ConfigError(f"Scores are a {type(scores).__name__}: give {{group: one number for each of its channels}}.")
    names = {group.name for group in graph.groups}
    for name in scores:
        if name not in names:
            close = nearest(str(name), names)
            hint = f"did you mean {close[0]!r}?" if close else "score the groups of this graph."
            raise ConfigError(f"Scores are given for {name!r}, which is no group of this network: {hint}")
    result = []
    for group in graph.groups:
        if group.name not in scores:
            raise ConfigError(f"Scores for group {group.name!r} are missing: score every group.")
        score = _numbers(scores[group.name], group.name)
        if score.shape != (group.width,):
            raise ConfigError(
                f"Scores of group {group.name!r} have shape {score.shape}: "
                f"give one number for each of its {group.width} channels."
            )
        if not np.isfinite(score).all():
            raise ConfigError(f"Scores of group {group.name!r} hold NaN or infinity: give finite numbers.")
        result.append(function(score))
    return result


def _numbers(given: object, name: str) -> FloatArray:
    """Scores of one group as numbers, whatever holds them; ConfigError where they are none."""
    try:
        if isinstance(given, torch.Tensor):
            given = given.detach().cpu().double() if not given.is_complex() else given.detach().cpu().numpy()
        found = np.asarray(given)
        if found.dtype.kind == "c":
            raise TypeError("complex")
        return found.astype(np.float64)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"Scores of group {name!r} are no numbers: give one real number for each channel.") from error


def _ratios(graph: GraphLike, ratios: Mapping[str, float] | None) -> dict[str, float]:
    """Return {group: share to remove} for every group that a pattern matches; the last pattern wins."""
    if ratios is not None and not isinstance(ratios, Mapping):
        raise ConfigError(
            f"ratios={ratios!r:.60} is not understood: give layer patterns and the share of channels to remove, such "
            "as {'layer1.*': 0.3}."
        )
    if not ratios:
        raise ConfigError("The allocator 'ratios' needs ratios: give some such as {'layer1.*': 0.3}.")
    chosen: dict[str, float] = {}
    winner: dict[str, str] = {}  # by group, its pattern
    given: Mapping[str, object] = ratios
    for pattern, (text, ratio) in zip(parse_patterns(graph, ratios, "ratios"), given.items(), strict=True):
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= float(ratio) <= 1:
            raise ConfigError(f"ratios has {text!r}: {ratio!r}: give the share of channels to remove, from 0 to 1.")
        hit = [group.name for group in graph.groups if matched(pattern, group.members)]
        if not hit:
            reasons = [frozen.reason for frozen in graph.frozen if matched(pattern, frozen.members)]
            why = f" ({reasons[0]})" if reasons else ""
            raise ConfigError(
                f"ratios pattern {text!r} matches only modules whose channels cannot be pruned{why}: remove it."
            )
        _check_wins(winner, hit, text, chosen, float(ratio))
        chosen.update(dict.fromkeys(hit, float(ratio)))
        winner.update(dict.fromkeys(hit, text))
    return chosen


def _check_wins(
    winner: Mapping[str, str], hit: list[str], text: str, chosen: Mapping[str, float], ratio: float
) -> None:
    """ConfigError where another share for `hit` takes from an earlier pattern all groups that it has."""
    for loser in dict.fromkeys(winner[name] for name in hit if name in winner and chosen[name] != ratio):
        if not {name for name, text_of in winner.items() if text_of == loser} - set(hit):
            raise ConfigError(
                f"ratios has {loser!r} and {text!r}, whose channels can only go together: give one share for both."
            )


def _untouched(graph: GraphLike, widths: IntArray, ratios: Mapping[str, float]) -> str:
    """Which groups keep all channels though ratios would take some, in a sentence; nothing where there are none."""
    pairs = zip(graph.groups, widths.tolist(), strict=True)
    left = [group.name for group, width in pairs if ratios.get(group.name) and width == group.width]
    if not left:
        return ""
    return f"Nothing is removed from {few(left)}: constraints allow no cut up to what ratios ask for."


def _explicit(graph: GraphLike, ratios: Mapping[str, float], constraints: Constraints) -> IntArray:
    """Return the widths for explicit ratios: the smallest legal ones that remove no more than asked."""
    widths = []
    for group, floor, step in zip(graph.groups, *map(np.ndarray.tolist, constraints.grid(graph)), strict=True):
        wanted = group.width - math.floor(ratios.get(group.name, 0.0) * group.width + 1e-9)
        legal = np.concatenate([[floor], constraints.ends(group.width, floor, step)])
        widths.append(int(legal[np.searchsorted(legal, wanted)]))
    return np.array(widths, dtype=np.int64)


def _check_reached(graph: GraphLike, widths: IntArray, budget: Budget | None, original: CostLike) -> None:
    """Raise BudgetError if explicit ratios leave more than the budget allows."""
    if budget is None:
        return
    for key, row in _reached(graph, widths, budget, original).items():
        if row["reached"] > row["limit"]:
            raise BudgetError(
                f"The ratios leave {key} at {readable(row['reached'])}, above the budget of {readable(row['limit'])}: "
                "raise the ratios, or give no budget."
            )


def _reached(
    graph: GraphLike, widths: IntArray, budget: Budget | None, original: CostLike
) -> dict[str, dict[str, float]]:
    """Return for each bound its limit, what was reached, the original, and the fraction of it that remains."""
    costs = graph.costs.evaluate(widths[None])
    keys = [key for key in KEYS if KEYS[key] in costs] if budget is None else [key for key, _ in budget.bounds]
    limits = budget.limits(original) if budget is not None else {}
    result = {}
    for key in keys:
        cost, whole = int(costs[KEYS[key]][0]), int(getattr(original, KEYS[key]))
        row: dict[str, float] = {"limit": limits[KEYS[key]]} if budget is not None else {}
        result[key] = row | {"reached": cost, "original": whole, "fraction": cost / whole if whole else 1.0}
    return result
