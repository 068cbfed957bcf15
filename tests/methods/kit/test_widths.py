"""From wanted widths to a plan: legal, within the budget, 99% of it used where an exchange can, near the wanted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from _fake_graph import FakeConv, FakeGraph, build, resnet50
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.allocate import Constraints
from secateur.budget import KEYS, Budget
from secateur.errors import BudgetError, ConfigError
from secateur.graph import trace
from secateur.methods.kit.widths import fitted_plan, fitted_widths

CLOSE = 0.99


@st.composite
def networks(draw: st.DrawFn) -> FakeGraph:
    """Chains of a few narrow layers, with skips that tie two of them into one stream."""
    widths = draw(st.lists(st.integers(2, 14), min_size=1, max_size=4))
    convs = [FakeConv("stem", (), 0, pixels=16, frozen_in=3)]
    for group in range(1, len(widths)):
        pixels, kernel = draw(st.sampled_from([1, 16, 64])), draw(st.sampled_from([1, 3]))
        convs.append(FakeConv(f"b{group}.in", (group - 1,), group, pixels, kernel))
        if draw(st.booleans()):
            convs.append(FakeConv(f"b{group}.back", (group,), draw(st.integers(0, group)), pixels, 1))
    convs.append(FakeConv("head", (len(widths) - 1,), None, 1, 1, frozen_out=5))
    return build(widths, convs, norms=False)


RULES = st.builds(
    Constraints,
    align=st.sampled_from([1, 1, 2, 4]),
    min_channels=st.integers(1, 4),
    max_ratio=st.sampled_from([1.0, 0.9, 0.5]),
    ignore=st.sampled_from([(), ("stem",)]),
)
LIMITS = st.dictionaries(st.sampled_from(["flops", "params"]), st.floats(0.05, 1.0), min_size=1)


def share(graph: FakeGraph, budget: Budget, widths: dict[str, int]) -> float:
    """How much of the nearest bound is used; above 1 where one is not met."""
    whole = graph.costs.evaluate([group.width for group in graph.groups])
    found = graph.costs.evaluate([widths[group.name] for group in graph.groups])
    return max(
        float(found[KEYS[key]]) / (value * float(whole[KEYS[key]]) if value <= 1 else value)
        for key, value in budget.bounds
    )


def allowed(graph: FakeGraph, rules: Constraints) -> list[list[int]]:
    """All legal widths of every group."""
    grid = zip(graph.groups, *map(np.ndarray.tolist, rules.grid(graph)), strict=True)
    return [[floor, *rules.ends(group.width, floor, step).tolist()] for group, floor, step in grid]


@settings(max_examples=60)
@given(networks(), RULES, LIMITS, st.integers(0, 99))
def test_legal_within_the_budget_and_near_it(
    graph: FakeGraph, rules: Constraints, limits: dict[str, float], seed: int
) -> None:
    rng, budget = np.random.default_rng(seed), Budget.parse(limits)
    wanted = {group.name: float(rng.uniform(0, 1.3) * group.width) for group in graph.groups}
    legal = allowed(graph, rules)
    floors = {group.name: widths[0] for group, widths in zip(graph.groups, legal, strict=True)}
    if share(graph, budget, floors) > 1:
        with pytest.raises(BudgetError, match="cannot be met"):
            fitted_widths(graph, budget, rules, wanted)
        return
    found = fitted_widths(graph, budget, rules, wanted)
    assert all(found[group.name] in widths for group, widths in zip(graph.groups, legal, strict=True))
    used = share(graph, budget, found)
    assert used <= 1
    if used < CLOSE:  # no exchange of two groups gets nearer
        names = [group.name for group in graph.groups]
        for one, other in itertools.product(range(len(names)), repeat=2):
            for width, against in itertools.product(legal[one], legal[other]):
                tried = share(graph, budget, found | {names[one]: width, names[other]: against})
                assert tried <= used + 1e-12 or tried > 1


@settings(max_examples=60)
@given(networks(), st.sampled_from([1, 2, 4]), st.floats(0.2, 1.0), st.integers(0, 99))
def test_wanted_widths_that_fit_are_kept(graph: FakeGraph, align: int, close: float, seed: int) -> None:
    """A budget of just what the rounded widths cost gives these widths, also where the wanted ones are between two."""
    rules, rng = Constraints(align=align), np.random.default_rng(seed)
    legal = allowed(graph, rules)
    chosen = {group.name: int(rng.choice(widths)) for group, widths in zip(graph.groups, legal, strict=True)}
    cost = float(graph.costs.evaluate([chosen[group.name] for group in graph.groups])["macs"])
    budget = Budget.parse({"flops": cost * (1 + 0.009 * close)})
    between = {name: width + float(rng.uniform(-0.49, 0.49)) * min(1, align) for name, width in chosen.items()}
    assert fitted_widths(graph, budget, rules, between) == chosen


@settings(max_examples=40)
@given(networks(), st.floats(0.1, 1.0), st.floats(0.2, 5.0), st.integers(0, 99))
def test_wider_budgets_and_factors(graph: FakeGraph, part: float, factor: float, seed: int) -> None:
    """What is wanted beyond the budget counts in proportion only, and the plan depends on nothing but the arguments."""
    rng = np.random.default_rng(seed)
    wanted = {group.name: float(rng.uniform(0.5, 1) * group.width) for group in graph.groups}
    budget = Budget.parse({"flops": max(part, 0.4)})
    try:
        whole = fitted_widths(graph, budget, Constraints(), {name: 100 * width for name, width in wanted.items()})
    except BudgetError:
        return
    more = fitted_widths(graph, budget, Constraints(), {name: 100 * factor * width for name, width in wanted.items()})
    assert whole == more


def test_proportions_decide_where_the_wanted_widths_are_too_dear() -> None:
    """Costs of widths 10 and 10 that add up: 12 in proportions 1 to 2 is 4 and 8."""
    convs = [FakeConv("a", (), 0, kernel=1, frozen_in=1), FakeConv("b", (), 1, kernel=1, frozen_in=1)]
    graph = build((10, 10), convs, norms=False)
    assert fitted_widths(graph, Budget.parse("flops=12"), Constraints(), {"a": 10, "b": 20}) == {"a": 4, "b": 8}
    assert fitted_widths(graph, Budget.parse("flops=12"), Constraints(), {"a": 1, "b": 2}) == {"a": 4, "b": 8}
    assert fitted_widths(graph, Budget.parse("flops=18"), Constraints(), {"a": 9, "b": 20}) == {"a": 8, "b": 10}


def test_a_large_network_ends_within_a_hundredth() -> None:
    graph, rng = resnet50(), np.random.default_rng(0)
    wanted = {group.name: float(rng.uniform(0.2, 1) * group.width) for group in graph.groups}
    for rules in (Constraints(), Constraints(align=8, max_ratio=0.9)):
        found = fitted_widths(graph, Budget.parse("flops=0.5"), rules, wanted)
        assert CLOSE <= share(graph, Budget.parse("flops=0.5"), found) <= 1
        assert all(width % rules.align == 0 for width in found.values())


def test_a_plan_keeps_the_first_of_every_group() -> None:
    """Ties fall to the lower index; an order may depend on the widths; unspent budget is said."""
    graph = build((4, 2), [FakeConv("a", (), 0, kernel=1, frozen_in=1), FakeConv("b", (0,), 1, kernel=1)], norms=False)
    scores = {"a": np.array([0.0, 3.0, 3.0, 3.0]), "b": np.array([1.0, 2.0])}
    plan = fitted_plan(graph, Budget.parse("flops=4"), Constraints(), {"a": 2.2, "b": 1}, scores)
    assert plan.masks["a"].tolist() == [False, True, True, False]
    assert plan.masks["b"].tolist() == [False, True]
    assert plan.provenance["wanted"] == {"a": 2.2, "b": 1.0}
    assert "unspent" not in plan.provenance
    seen = {}
    rough = fitted_plan(
        graph, Budget.parse("flops=3.9"), Constraints(), {"a": 2, "b": 1}, lambda widths: seen.update(widths) or scores
    )
    assert seen == rough.widths == {"a": 1, "b": 2}  # 3 of 3.9
    assert rough.provenance["unspent"].startswith("76.9% of the budget is used: ")


def test_a_residual_stream_is_one_width() -> None:
    """What a real network ties goes together, and the plan is cut as it is."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
            self.back, self.head = nn.Conv2d(24, 16, 3, padding=1), nn.Conv2d(16, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            return self.head(x + self.back(self.inner(x).relu()))

    graph = trace(Net(), torch.zeros(1, 3, 8, 8))
    wanted = {group.name: group.width * part for group, part in zip(graph.groups, (0.8, 0.6), strict=True)}
    order = {group.name: np.arange(group.width) for group in graph.groups}
    plan = fitted_plan(graph, Budget.parse("flops=0.5"), Constraints(align=2), wanted, order)
    assert len(plan.masks) == 2
    assert all(width % 2 == 0 for width in plan.widths.values())
    assert graph.cut(plan).model.stem.out_channels == plan.widths[graph.groups[0].name]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [({"a": 2.0}, "'b' is missing"), ({"a": float("nan"), "b": 1.0}, "'a'"), ({"a": 1.0, "b": -1.0}, "'b'")],
)
def test_what_is_no_width_is_refused(wanted: dict[str, float], said: str) -> None:
    graph = build((4, 2), [FakeConv("a", (), 0, kernel=1, frozen_in=1), FakeConv("b", (0,), 1, kernel=1)], norms=False)
    with pytest.raises(ConfigError, match=said):
        fitted_widths(graph, Budget.parse("flops=0.5"), Constraints(), wanted)
