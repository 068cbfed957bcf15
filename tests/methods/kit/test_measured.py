"""Groups made comparable by measuring: the hull is right, trials are of what is cut, no trial is made twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.allocate import Constraints, allocate
from secateur.errors import ConfigError, ModelError
from secateur.graph import trace
from secateur.methods.baselines.criteria import score
from secateur.methods.kit import measured as module
from secateur.methods.kit.measured import GroupTrials, Measured, marginal

IMAGE = torch.zeros(1, 3, 8, 8)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5),
    ).eval()  # fmt: skip


def batches(count: int = 8, size: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 3, 8, 8, generator=generator), torch.zeros(size, dtype=torch.long))] * count


@pytest.mark.parametrize(
    ("removed", "errors", "wanted"),
    [
        ([0, 2, 4], [0.0, 2.0, 6.0], [1, 1, 2, 2, 4]),  # convex already; behind the last trial twice its slope
        ([0, 1, 2], [0.0, 4.0, 4.0], [2, 2, 4]),  # the hull goes below the first
        ([0, 1, 3], [0.0, 3.0, 1.5], [1, 1, 1]),  # errors that fall are noise: they are taken as level
        ([0, 2], [0.0, 0.0], [0, 0, 0]),
        ([0], [0.0], [0, 0, 0]),
    ],
)
def test_worth_is_the_slope_of_the_lower_hull(removed: list[int], errors: list[float], wanted: list[float]) -> None:
    found = marginal(removed, errors, len(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)
    assert (np.diff(found) > 0).all()  # strictly, so that the order within a group stays


def test_the_order_within_a_group_stays() -> None:
    graph = trace(network(), IMAGE)
    given = score("l1", graph)
    found = Measured(batches())(graph, given, Constraints())
    for group in graph.groups:
        assert np.argsort(found[group.name]).tolist() == np.argsort(np.asarray(given[group.name])).tolist()


def test_a_trial_is_the_compensated_network_on_images_held_out() -> None:
    model, shown = network(), batches()
    graph = trace(model, IMAGE)
    group = graph.groups[1]
    order = np.arange(group.width)
    removed, errors = GroupTrials(graph, shown, 0).errors(group, order)
    assert removed == [0, 1, 2, 4, 5, 7, 9]
    images = torch.cat([x for x, _ in shown])
    held = torch.arange(1, len(images) + 1) % 8 == 0
    kept = np.ones(group.width, dtype=bool)
    kept[5:] = False  # the five that score least
    whole = model(images[held])
    narrow = secateur.prune(
        model, IMAGE, method=lambda g: {each.name: np.arange(each.width, 0.0, -1.0) for each in g.groups},
        ratios={group.name: 0.5}, data=[(images[~held], torch.zeros(int((~held).sum())))], repair="compensation",
    ).model  # fmt: skip
    change = (narrow(images[held]) - whole).square().sum() / whole.square().sum()
    assert errors[removed.index(5)] == pytest.approx(change.item(), rel=0.05)  # statistics see fewer positions


def test_what_changes_nothing_goes_first() -> None:
    """Half the first layer's channels are copies: their group loses half for nothing, the other one is dear."""
    model = network()
    with torch.no_grad():
        for tensor in model[0].parameters():
            tensor[4:] = tensor[:4]
    result = secateur.prune(model, IMAGE, method="random", budget="flops=0.6", allocator="measured", data=batches())
    lopsided = secateur.prune(model, IMAGE, method="random", budget="flops=0.6", allocator="uniform")
    x = batches(seed=5)[0][0]
    whole = model(x)
    names = [group.name for group in result.graph.groups]
    assert result.plan.widths[names[0]] < lopsided.plan.widths[names[0]]
    assert result.plan.widths[names[1]] > lopsided.plan.widths[names[1]]
    repaired = [
        secateur.prune(
            model, IMAGE, method="random", budget="flops=0.6", allocator=each, data=batches(), repair="compensation"
        ).model(x)
        for each in ("measured", "uniform")
    ]
    assert (repaired[0] - whole).norm() < (repaired[1] - whole).norm()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The groups that are tried, in order."""
    found: list[str] = []
    once = GroupTrials.errors

    def counted(self: GroupTrials, *arguments: Any) -> Any:
        found.append(arguments[0].name)
        return once(self, *arguments)

    monkeypatch.setattr(GroupTrials, "errors", counted)
    return found


def test_no_trial_is_made_twice(made: list[str]) -> None:
    graph = trace(network(), IMAGE)
    measured = Measured(batches())
    first = measured(graph, score("l1", graph), Constraints())
    again = measured(graph, score("l1", graph), Constraints())
    measured(graph, score("l1", graph), Constraints(align=4, max_ratio=0.5))
    assert len(made) == len(graph.groups)
    assert all((first[name] == again[name]).all() for name in first)
    measured(graph, score("random", graph), Constraints())  # another order is another trial
    assert len(made) > len(graph.groups)


def test_no_trial_goes_below_what_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(network(), IMAGE)
    first, second = graph.groups[:2]
    story = Measured(batches())(graph, score("l1", graph), Constraints(ignore=(first.name,), max_ratio=0.5))
    curves = story.provenance["measured"]["groups"]
    assert curves[first.name]["removed"] == [0]
    assert max(curves[second.name]["removed"]) == 5
    assert story.provenance["measured"]["images"] == 8


@pytest.mark.parametrize("size", [1, 4, 16])
def test_batches_may_be_of_any_size(size: int) -> None:
    images = torch.cat([x for x, _ in batches(4)])
    graph = trace(network(), IMAGE)
    given = score("l1", graph)
    whole = Measured([(images, torch.zeros(32))])(graph, given, Constraints())
    parts = Measured([(x, torch.zeros(len(x))) for x in images.split(size)])(graph, given, Constraints())
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-3)


def test_layers_with_too_many_columns_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COLUMNS", 30)
    graph = trace(network(), IMAGE)
    assert GroupTrials(graph, batches(), 0)._moments.layers == ("7",)
    result = secateur.prune(network(), IMAGE, method="l1", budget="flops=0.5", allocator="measured", data=batches())
    assert any("without compensating 3" in note for note in result.plan.provenance["notes"])


class _Logarithm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(-x.square())


class _Class(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


def _not_finite() -> dict[str, Any]:
    return {"model": nn.Sequential(network(), _Logarithm())}


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"data": batches(1, 4)}, ConfigError, "one image in 8"),
        ({"data": None}, ConfigError, "pass data="),
        ({"data": iter(())}, ConfigError, "are empty"),
        ({"normalise": "mean"}, ConfigError, "normalise='mean' is of no use"),
        ({"ratios": {"0": 0.5}}, ConfigError, "ratios="),
        ({"budget": None}, secateur.BudgetError, "needs a budget"),
        ({"method": "cp"}, ConfigError, "finds its widths itself"),
        ({"method": "pfp"}, ConfigError, "finds its widths itself"),
        ({"allocator": "measure"}, ConfigError, "did you mean 'measured'"),
        (_not_finite(), ModelError, "not finite"),
        ({"model": nn.Sequential(network(), _Class())}, ModelError, "no floating-point numbers"),
        ({"method": lambda graph: {}}, ConfigError, "are missing"),
        ({"method": lambda graph: {g.name: np.ones(3) for g in graph.groups}}, ConfigError, "have shape"),
        ({"method": lambda graph: {g.name: np.full(g.width, np.nan) for g in graph.groups}}, ConfigError, "NaN"),
    ],
)
def test_what_cannot_be_is_one_sentence(given: dict[str, Any], error: type[Exception], said: str) -> None:
    usual = {"method": "l1", "allocator": "measured", "budget": "flops=0.5", "data": batches()}
    wanted = usual | given
    with pytest.raises(error, match=said) as caught:
        secateur.prune(wanted.pop("model", network()), IMAGE, **wanted)
    assert "\n" not in str(caught.value)


def test_targets_are_not_looked_at_and_data_are_reported_as_used() -> None:
    def bare() -> Iterator[torch.Tensor]:
        yield from (x for x, _ in batches())

    with_labels = secateur.prune(network(), IMAGE, budget="flops=0.5", allocator="measured", data=batches())
    without = secateur.prune(network(), IMAGE, budget="flops=0.5", allocator="measured", data=list(bare()))
    assert with_labels.plan.widths == without.plan.widths
    assert with_labels.plan.provenance["allocator"] == "measured"
    assert not any("not used" in remark for remark in with_labels.remarks)


def test_one_measuring_serves_several_budgets(made: list[str]) -> None:
    model = network()
    measured = Measured(batches())
    given: dict[str, Any] = {"method": "l1", "repair": "compensation", "data": batches()}
    found = [
        secateur.prune(model, IMAGE, budget=f"flops={left}", allocator=measured, **given).plan for left in (0.7, 0.4)
    ]
    assert len(made) == len(found[0].widths)
    alone = secateur.prune(model, IMAGE, budget="flops=0.4", allocator="measured", **given).plan
    assert alone.widths == found[1].widths
    assert found[1].provenance["allocator"] == "measured"
    without = secateur.prune(model, IMAGE, method="l1", budget="flops=0.4", allocator=measured)  # has data of its own
    assert without.plan.widths == alone.widths
    with pytest.raises(ConfigError, match="knows one network"):
        secateur.prune(network(seed=3), IMAGE, method="l1", budget="flops=0.4", allocator=measured)


def _greedy(x: torch.Tensor, weight: torch.Tensor) -> list[int]:
    """Channels of x [images, channels] in the order in which least squares rebuild x @ weight.T best, by trying all."""
    x = x.double() - x.double().mean(0)
    wanted, chosen = x @ weight.double().T, list[int]()
    while len(chosen) < x.shape[1]:
        left = {}
        for channel in set(range(x.shape[1])) - set(chosen):
            seen = x[:, [*chosen, channel]]
            left[channel] = float((wanted - seen @ torch.linalg.lstsq(seen, wanted).solution).square().sum())
        chosen.append(min(left, key=lambda channel: left[channel]))
    return chosen


def test_cap_orders_channels_by_what_the_others_rebuild_and_measuring_gives_widths() -> None:
    model, shown = network(), batches(1, 160)
    bare = [x for x, _ in shown]  # no labels: there is no search by accuracy
    result = secateur.prune(model, IMAGE, method="cap", budget="flops=0.6", allocator="measured", data=bare)
    group = result.graph.groups[1]
    stay = torch.arange(1, 161) % 8 != 0
    reader: Any = model[7]
    order = _greedy(nn.Sequential(*list(model)[:7])(bare[0][stay]).detach(), reader.weight.detach())
    kept = result.plan.widths[group.name]
    assert 1 < kept < group.width
    assert sorted(np.flatnonzero(result.plan.masks[group.name])) == sorted(order[:kept])
    curves = result.plan.provenance["measured"]["groups"]
    worth = {g.name: marginal(**curves[g.name], width=g.width)[::-1] for g in result.graph.groups}
    again = allocate(worth, result.graph, "flops=0.6", allocator="per_cost", normalise="none")
    assert result.plan.widths == again.widths
    assert result.plan.provenance["allocator"] == "measured"
    assert result.plan.provenance["method"] == "cap"
    assert "search" not in result.plan.provenance
    assert result.reached("flops") <= 0.6


def test_one_measuring_serves_several_budgets_of_a_method_that_collects(made: list[str]) -> None:
    model, measured = network(), Measured(batches())
    plans = [
        secateur.prune(model, IMAGE, method="cap", budget=f"flops={left}", allocator=measured, data=batches()).plan
        for left in (0.7, 0.4)
    ]
    assert len(made) == len(plans[0].widths)
    assert sum(plans[1].widths.values()) < sum(plans[0].widths.values())
    for name, mask in plans[1].masks.items():
        assert not (mask & ~plans[0].masks[name]).any()  # one order: the narrow network's channels are the wide one's


def test_where_a_method_is_made_for_a_loop_the_images_come_with_the_allocator() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(2, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"looks at images: give a secateur.methods.kit.measured.Measured\(batches\)"):
        secateur.methods.create("l1", model, x, budget="flops=0.5", allocator="measured")
    made: Any = secateur.methods.create("l1", model, x, budget="flops=0.5", allocator=Measured([x] * 8))
    made.finish()
    assert made.result is not None
    assert made.result.plan.provenance["allocator"] == "measured"
