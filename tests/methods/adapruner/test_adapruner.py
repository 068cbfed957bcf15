"""AdaPruner: widths along one path with worked numbers, rules of inheritance, and how they are judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from secateur.errors import BudgetError, ConfigError
from secateur.graph import trace
from secateur.graph.norms import sources
from secateur.methods.adapruner.inheritance import absolute_sums, gm, norms, ranked
from secateur.methods.adapruner.method import AdaPruner, AdaPrunerSettings, winner
from secateur.methods.adapruner.ratios import Ratios, branches, mean_scales, path_of, scales
from secateur.models import create
from secateur.surgery import apply
from secateur.testing.networks import NETWORKS


def _path(full: list[int], values: list[float], floors: list[int] | None = None, **options: object) -> Ratios:
    least = floors or [1] * len(full)
    return Ratios(np.array(values), np.array(full), np.array(least), **options)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- the widths


def test_importance_is_a_mean_over_channels() -> None:
    """Scales (1, -1, 2) and (0, 0) in one block: 4 / 5."""
    values, bare = mean_scales({"a": [np.array([1.0, 1.0, 2.0])], "b": [np.zeros(2)], "c": []}, [0, 0, 2])
    np.testing.assert_allclose(values, [0.8, 0.8, 0.8])
    assert bare == ["c"]


def test_blocks_without_norms_get_the_mean_of_their_neighbours() -> None:
    rows = {"a": [np.full(2, 1.0)], "b": [], "c": [], "d": [np.full(3, 3.0)], "e": []}
    values, bare = mean_scales(rows, [0, 1, 2, 3, 4])
    assert values.tolist() == [1.0, 2.0, 2.0, 3.0, 3.0]
    assert bare == ["b", "c", "e"]
    assert mean_scales({"a": [], "b": []}, [0, 1])[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("limit", "wanted"), [(12, (8, 4)), (15, (10, 5)), (18, (10, 8)), (20, (10, 10)), (3, (2, 1))])
def test_two_groups_whose_costs_add_up(limit: int, wanted: tuple[int, int]) -> None:
    path = _path([10, 10], [1.0, 0.5])
    tau = path.smallest(lambda widths: widths.sum() <= limit)
    assert tuple(path.widths(tau)) == wanted
    if limit == 12:
        assert tau == pytest.approx(10 / 8.5, rel=1e-12)
        assert tau > 10 / 8.5  # just above
    assert limit != 20 or tau == 0.5  # nothing is pruned at the least importance


@pytest.mark.parametrize(
    ("budget", "wanted", "fraction"),
    [(0.8, (16, 24, 64), 0.7895), (0.5, (16, 15, 46), 0.4972), (0.3, (12, 11, 32), 0.2994), (0.1, (6, 5, 15), 0.0993)],
)
def test_a_chain_of_three(budget: float, wanted: tuple[int, ...], fraction: float) -> None:
    """3 -> 16 -> 32 -> 64 -> 10, 3x3 on maps of 32, 16 and 8, I = (.9, .4, .6), floors (2, 4, 7)."""

    def cost(widths: np.ndarray) -> float:
        a, b, c = widths.tolist()
        return 9.0 * (3 * a * 1024 + a * b * 256 + b * c * 64) + 10 * c

    path = _path([16, 32, 64], [0.9, 0.4, 0.6], [2, 4, 7])
    whole = cost(path.full)
    assert whole == 2_802_304
    found = path.widths(path.smallest(lambda widths: cost(widths) <= budget * whole))
    assert tuple(found) == wanted
    assert cost(found) / whole == pytest.approx(fraction, abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["linear", "power", "threshold"]), st.floats(0.1, 10.0))
def test_along_the_path(seed: int, shape: str, factor: float) -> None:
    """No width grows with tau; the more important a block, the larger its share; the unit of scales does not matter."""
    rng = np.random.default_rng(seed)
    rows = {str(k): [rng.uniform(0.05, 1, 8)] for k in range(4)}
    full, floors = np.full(4, 8), np.ones(4, dtype=np.int64)
    path, _ = path_of(rows, [0, 1, 2, 3], full, floors, shape, 0.5)  # type: ignore[arg-type]
    low, high = sorted(rng.uniform(0.05, 2, 2))
    assert (path.widths(low) >= path.widths(high)).all()
    if shape != "threshold":
        order = np.argsort(path.importance)
        assert (np.diff(path.shares(high)[order]) >= 0).all()
    limit = int(rng.integers(4, 33))
    tau = path.smallest(lambda widths: widths.sum() <= limit)
    assert path.widths(tau).sum() <= limit
    assert path.widths(tau * (1 - 1e-9)).sum() > limit or (path.widths(tau) == full).all()  # no smaller tau does
    scaled, _ = path_of({k: [factor * v for v in r] for k, r in rows.items()}, [0, 1, 2, 3], full, floors, shape, 0.5)  # type: ignore[arg-type]
    other = scaled.smallest(lambda widths: widths.sum() <= limit)
    assert other == pytest.approx(factor * tau, rel=1e-9)


def test_equal_importance_gives_uniform_ratios() -> None:
    path = _path([10, 20, 40], [0.3, 0.3, 0.3])
    assert path.widths(path.smallest(lambda widths: widths.sum() <= 35)).tolist() == [5, 10, 20]


def test_powers_and_thresholds() -> None:
    assert _path([100], [0.25], shape="power", power=0.5).widths(1.0).tolist() == [50]
    rows = (np.array([0.1, 0.2, 0.3, 0.4]),)
    assert _path([100], [0.25], shape="threshold", scales=rows).widths(0.2).tolist() == [50]


# ----------------------------------------------------------------------------------------------- blocks of a network


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def _net() -> _Net:
    torch.manual_seed(0)
    model = _Net()
    with torch.no_grad():
        model.body[1].weight.copy_(torch.tensor([1.0, -1.0, 2.0, 0.5]))
        model.body[4].weight.copy_(torch.tensor([0.1, 0.2, -0.3, 0.4, 0.5, 0.6]))
    return model


def test_scales_are_of_norms_behind_the_layers_that_make_a_group() -> None:
    graph = trace(_net(), torch.zeros(1, 3, 8, 8))
    found = scales(graph, sources(graph))
    assert [row[0].tolist() for row in found.values()] == [
        pytest.approx([1.0, 1.0, 2.0, 0.5]),
        pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    ]


def test_depthwise_norms_count_and_the_norm_of_a_sum_does_not() -> None:
    rows = {n.name: scales(g, sources(g)) for n in NETWORKS for g in [trace(n.make(), n.inputs())]}
    assert len(rows["depthwise"]["body.0"]) == 2  # the norm of the expansion, and that behind the depthwise convolution
    assert len(rows["residual"]["stem.0"]) == 3  # of the stem and of both branches
    assert len(rows["pre-activation"]["stem"]) == 1  # nothing is normalised behind a layer: the first norm it meets
    assert all(not found for found in rows["no norm"].values())


def test_norms_that_begin_at_zero_say_nothing() -> None:
    model = next(n for n in NETWORKS if n.name == "residual").make()
    nn.init.zeros_(model.first[4].weight)
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    assert len(scales(graph, sources(graph))["stem.0"]) == 2


def test_branches_of_residual_blocks() -> None:
    """Both inner widths of a bottleneck are one block; streams, and layers in no block, are their own."""

    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.c(self.b(self.a(x).relu()).relu())

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Bottleneck(), Bottleneck(), nn.Conv2d(8, 6, 1), nn.ReLU(),
                          nn.Conv2d(6, 2, 1))  # fmt: skip
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    blocks = dict(zip([group.name for group in graph.groups], branches(graph), strict=True))
    assert blocks["1.a"] == blocks["1.b"] != blocks["2.a"] == blocks["2.b"]
    assert len({blocks["0"], blocks["3"], blocks["1.a"], blocks["2.a"]}) == 4


# --------------------------------------------------------------------------------------------- rules of inheritance


def test_a_filter_that_others_resemble_goes_first() -> None:
    """Filters 0, 1 and 10: sums of distances 11, 10 and 19; l1 takes filter 0 first."""
    filters = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    np.testing.assert_allclose(gm(filters), [11.0, 10.0, 19.0])
    assert (gm(filters).argmin(), absolute_sums(filters).argmin()) == (1, 0)
    np.testing.assert_allclose(norms(torch.tensor([[3.0, 4.0], [0.0, -2.0]])), [5.0, 2.0])
    many = torch.randn(9, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(gm(many), torch.cdist(many, many, compute_mode="donot_use_mm_for_euclid_dist").sum(1))


def test_what_several_layers_make_counts_each_by_its_mean() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = (nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False),
                                        nn.Conv2d(2, 3, 1))  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.a(x) + self.b(x))

    model = Sum()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
        model.b.weight.copy_(torch.tensor([300.0, 100.0]).view(2, 1, 1, 1))
    graph = trace(model, torch.zeros(1, 1, 4, 4))
    (found,) = ranked(graph, "l1", 0, sources(graph)).values()
    np.testing.assert_allclose(found, [0.5 + 1.5, 1.5 + 0.5])


def test_rules_keep_as_many_and_different_ones() -> None:
    graph = trace(_net(), torch.zeros(1, 3, 8, 8))
    known = sources(graph)
    found = {rule: ranked(graph, rule, 3, known)["body.3"] for rule in ("l1", "l2", "gm", "bn", "first", "random")}
    np.testing.assert_allclose(found["bn"] * 0.35, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], rtol=1e-6)
    assert np.argsort(-found["first"]).tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(found["random"]) == [0, 1, 2, 3, 4, 5]
    assert found["random"].tolist() == ranked(graph, "random", 3, known)["body.3"].tolist()


# --------------------------------------------------------------------------------------------------------- the judge


def test_the_best_wins_and_of_those_alike_the_lower_loss() -> None:
    quality, loss = {"l1": 0.8000, "l2": 0.8005, "gm": 0.7994}, {"l1": 1.0, "l2": 1.1, "gm": 0.1}
    asked = []

    def judge(rule: str, by_loss: bool) -> float:
        asked.append((rule, by_loss))
        return loss[rule] if by_loss else quality[rule]

    chosen, told = winner(("l1", "l2", "gm"), judge)  # type: ignore[arg-type]
    assert chosen == "l1"  # gm is further off than a thousandth
    assert told == {"l1": (0.8, 1.0), "l2": (0.8005, 1.1), "gm": (0.7994, None)}
    assert asked[3:] == [("l1", True), ("l2", True)]
    quality["l2"] = 0.9
    assert winner(("l1", "l2", "gm"), judge)[0] == "l2"  # type: ignore[arg-type]
    assert winner(("l1", "l2"), judge, by_accuracy=False)[0] == "l2"  # type: ignore[arg-type]
    quality["l1"] = quality["l2"]
    loss["l1"] = loss["l2"]
    assert winner(("l2", "l1"), judge)[0] == "l2"  # type: ignore[arg-type]  # the earlier


def _loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


def _pruner(name: str = "residual", batches: int = 6, **options: object) -> AdaPruner:
    network = next(n for n in NETWORKS if n.name == name)
    made = AdaPruner(network.make(), network.inputs(), **{"budget": "flops=0.5", **options})  # type: ignore[arg-type]
    if batches:
        made.collect(network.batches(batches), _loss)
    return made


def test_judging_leaves_weights_alone_and_sees_no_targets_in_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """All candidates see the same batches in the same order; their weights are the trained ones, to the bit."""
    made, cases, seen = _pruner(batches=0), [], []
    inner = AdaPruner._candidate

    def candidate(self: AdaPruner, plan: object, shown: list[object], loss: object) -> object:
        seen.append([id(batch) for batch in shown])
        cases.append(inner(self, plan, shown, loss))  # type: ignore[arg-type]
        return cases[-1]

    monkeypatch.setattr(AdaPruner, "_candidate", candidate)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.collect(NETWORKS[0].batches(6), _loss)
    assert seen == [seen[0]] * 4
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    for case in cases:
        kept = {n: (p == before[n]) | (p == 0) for n, p in case.model.named_parameters()}
        assert all(bool(part.all()) for part in kept.values())
        assert not torch.equal(case.model.stem[1].running_mean, before["stem.1.running_mean"])
    assert len({tuple(case.plan.widths.values()) for case in cases}) == 1
    assert len({str(case.plan.masks) for case in cases}) > 1


def test_probes_train_what_stays() -> None:
    made = _pruner(batches=0, probe_steps=3, criteria=["l1"])
    plan = made._plan_by(*made.path(), "l1")
    case = made._candidate(plan, [*NETWORKS[0].batches(2)], _loss)
    weight = case.model.first[0].weight
    kept = torch.from_numpy(plan.masks["first.0"])
    assert not weight[~kept].any()
    assert not torch.equal(weight[kept], made.model.first[0].weight[kept])


def test_probes_keep_shut_what_goes_where_an_activation_of_nothing_is_something() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    x = torch.randn(8, 3, 8, 8)
    made = AdaPruner(net, x, budget="flops=0.5", probe_steps=3, criteria=["l1"])
    plan = made._plan_by(*made.path(), "l1")
    case = made._candidate(plan, [(x, torch.arange(8) % 4)] * 3, _loss)
    kept = torch.from_numpy(plan.masks["0"])
    assert not kept.all()
    assert case.model[3].weight[:, kept].any()
    assert not case.model[3].weight[:, ~kept].any()


def test_the_plan_is_the_winner_s() -> None:
    made = _pruner(criteria=["first", "bn"])
    plan = made.plan()
    assert plan.provenance["criterion"] == f"adapruner: {made.chosen}"
    assert set(plan.provenance["judged"]) == {"first", "bn"}
    assert made.chosen == max(made.judged, key=lambda rule: (made.judged[rule][0], -(made.judged[rule][1] or 0.0)))
    assert any("best on images held out" in note for note in plan.provenance["notes"])
    assert plan.widths["stem.0"] == 24  # the stream stays


def test_nothing_pruned_is_the_network_and_dead_channels_are_found_by_their_scales() -> None:
    model = _net().eval()
    dead = [1, 4]
    with torch.no_grad():
        model.body[4].weight[dead] = 0.0
        model.body[4].bias[dead] = 0.0
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    scores = ranked(graph, "bn", 0, sources(graph))
    masks = {"body.0": np.ones(4, dtype=bool), "body.3": np.zeros(6, dtype=bool)}
    masks["body.3"][np.argsort(-scores["body.3"], kind="stable")[:4]] = True
    from secateur.plan import Plan

    assert np.flatnonzero(~masks["body.3"]).tolist() == dead
    torch.testing.assert_close(apply(model, x, Plan(masks)).model.eval()(x), model(x))
    whole = AdaPruner(model, x, budget="flops=1.0")
    for rule in ("l1", "gm", "bn"):
        assert all(mask.all() for mask in whole._plan_by(*whole.path(), rule).masks.values())  # type: ignore[arg-type]


def test_widths_of_a_network_follow_the_scales() -> None:
    """A ResNet-20 whose last stage has scales four times as large, within a hundredth of the budget."""
    model = create("resnet20")
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 1.0 if "layer3" in name or name.startswith("stages.2") else 0.25)
    made = AdaPruner(model, torch.zeros(1, 3, 32, 32), budget="flops=0.5")
    plan = made._plan_by(*made.path(), "l1")
    limit = 0.5 * made.graph.cost().macs
    assert 0.99 * limit <= made.graph.cost(plan).macs <= limit
    assert any("differ so much" in note for note in made.notes) is False


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="seen no data"):
        _pruner(batches=0).plan()
    with pytest.raises(ConfigError, match="one image in 8"):
        _pruner(batches=0).collect([(torch.randn(3, 3, 8, 8), torch.zeros(3, dtype=torch.long))], _loss)
    with pytest.raises(BudgetError, match="With c_min"):
        _pruner(batches=0, c_min=0.9)
    with pytest.raises(ValueError, match="each criterion once"):
        AdaPrunerSettings(criteria=["l1", "l1"])
