"""Criteria: each equals its definition written out in loops, and none disturbs the model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from _fake_graph import FakeConv, FakeFrozen, FakeGraph, FakeGroup, FakeMember, build, costs, densenet201, small
from torch import nn
from torch.nn import functional as F

from secateur.allocate import allocate
from secateur.errors import ConfigError, InputError, WeightsError
from secateur.methods import accumulate_gradients, score
from secateur.methods.baselines import CRITERIA, formulas

MEMBERS = ("producers", "all")
REDUCE = {"sum": np.sum, "mean": np.mean, "max": np.max, "prod": np.prod}


def owned(graph: FakeGraph, member: FakeMember) -> list[np.ndarray]:
    """What each channel owns of a member, in float64."""
    tensor = graph.tensors()[member.name].detach().double().numpy()
    return [np.take(tensor, row, axis=member.dim).ravel() for row in member.index]


def counted(graph: FakeGraph, group: FakeGroup, members: str) -> list[FakeMember]:
    chosen = [m for m in group.members if members == "all" or m.role == "producer"]
    return [m for m in chosen if graph.tensors()[m.name].ndim >= 2]


def reference(graph: FakeGraph, group: FakeGroup, members: str, reduce: str, value: Any) -> np.ndarray:
    rows = [value(owned(graph, member)) for member in counted(graph, group, members)]
    return np.asarray(REDUCE[reduce](np.array(rows), axis=0))


def distances(rows: list[np.ndarray]) -> list[float]:
    return [sum(float(np.linalg.norm(a - b)) for b in rows) for a in rows]


VALUES: dict[str, Any] = {
    "l1": lambda rows: [np.abs(row).sum() for row in rows],
    "l2": lambda rows: [np.linalg.norm(row) for row in rows],
    "fpgm": distances,
}


@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("members", MEMBERS)
@pytest.mark.parametrize("criterion", VALUES)
def test_weights_against_loops(criterion: str, members: str, reduce: str) -> None:
    graph = small()
    scores = score(criterion, graph, reduce=reduce, members=members)
    assert list(scores) == [group.name for group in graph.groups]
    for group in graph.groups:
        assert scores[group.name].dtype == np.float64
        expected = reference(graph, group, members, reduce, VALUES[criterion])
        np.testing.assert_allclose(scores[group.name], expected, rtol=1e-9)


def test_lamp_against_loops() -> None:
    graph = small()
    scores = score("lamp", graph)
    for group in graph.groups:
        squares = reference(graph, group, "producers", "sum", lambda rows: [(row**2).sum() for row in rows])
        expected = [value / squares[squares >= value].sum() for value in squares]
        np.testing.assert_allclose(scores[group.name], expected, rtol=1e-12)


def several_indices() -> FakeGraph:
    """A grouped conv: channel c owns outputs c and c + 4 of one weight, and three inputs of the next layer."""
    model = nn.Module()
    model.conv = nn.Conv2d(6, 8, 3, groups=2)
    model.fc = nn.Linear(12, 2)
    model.scale = nn.Parameter(torch.randn(1, 4, 1, 1))
    pair, triple = np.arange(8).reshape(2, 4).T, np.arange(12).reshape(4, 3)
    members = (
        FakeMember("conv.weight", 0, "producer", pair),
        FakeMember("conv.bias", 0, "producer", pair),
        FakeMember("scale", 1, "producer", np.arange(4)[:, None]),
        FakeMember("fc.weight", 1, "consumer", triple),
    )
    groups = (FakeGroup("conv", 4, members),)
    return FakeGraph(
        model, groups, (FakeFrozen("fc", 2, "output"),), costs((4,), [FakeConv("conv", (), 0, frozen_in=3)])
    )


@pytest.mark.parametrize("members", MEMBERS)
@pytest.mark.parametrize("criterion", VALUES)
def test_several_indices_per_channel(criterion: str, members: str) -> None:
    graph = several_indices()
    expected = reference(graph, graph.groups[0], members, "sum", VALUES[criterion])
    np.testing.assert_allclose(score(criterion, graph, members=members)["conv"], expected, rtol=1e-9)


def test_bn_scale_and_its_fallback() -> None:
    graph = build((5, 6), [FakeConv("a", (), 0, frozen_in=3), FakeConv("b", (0,), 1)])
    del graph.model.b_bn
    plain = tuple(m for m in graph.groups[1].members if "bn" not in m.name)
    graph = FakeGraph(graph.model, (graph.groups[0], FakeGroup("b", 6, plain)), graph.frozen, graph.costs)
    scores = score("bn_scale", graph)
    gamma = graph.model.a_bn.weight.detach().abs().double().numpy()  # type: ignore[union-attr,operator]
    np.testing.assert_allclose(scores["a"], gamma)
    np.testing.assert_allclose(scores["b"], score("l1", graph)["b"])
    assert scores.provenance["fallback"] == {"l1": ["b"]}
    plan = allocate(scores, graph, "params=0.8")
    assert plan.provenance["criterion"] == "bn_scale"
    assert plan.provenance["fallback"] == {"l1": ["b"]}


def test_bn_scale_knows_frozen_norms_but_not_prelu() -> None:
    class FrozenBatchNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.arange(4.0))

    model = nn.Module()
    model.norm, model.act = FrozenBatchNorm2d(), nn.PReLU(4)
    whole = np.arange(4)[:, None]
    members = tuple(FakeMember(f"{name}.weight", 0, "producer", whole) for name in ("norm", "act"))
    graph = FakeGraph(model, (FakeGroup("norm", 4, members),), (), costs((4,), [FakeConv("norm", (), 0)]))
    assert score("bn_scale", graph)["norm"].tolist() == [0, 1, 2, 3]
    # without any weight of two dimensions the parameters count, buffers only when there is nothing else
    assert score("l1", graph)["norm"].tolist() == pytest.approx([0.25] * 4)
    only = FakeGraph(model, (FakeGroup("norm", 4, members[:1]),), (), graph.costs)
    assert score("l1", only)["norm"].tolist() == [0, 1, 2, 3]


def test_random_depends_on_seed_and_name_only() -> None:
    first, second = score("random", small(), seed=1), score("random", small(seed=5), seed=1)
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != value).any() for name, value in score("random", small(), seed=2).items())
    with pytest.raises(ConfigError, match="seed=-1"):
        score("random", small(), seed=-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "lamp", "bn_scale"])
def test_dtypes(criterion: str, dtype: torch.dtype) -> None:
    graph, exact = small(), small()
    graph.model.to(dtype)
    exact.model.to(dtype).double()
    scores = score(criterion, graph)
    for name, value in score(criterion, exact).items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-12)


def test_half_precision_sums_do_not_overflow() -> None:
    graph = small()
    graph.model.half()
    with torch.no_grad():
        for parameter in graph.model.parameters():
            parameter.fill_(6e4)
    assert all(np.isfinite(value).all() for value in score("l2", graph).values())


def test_memory_format_does_not_matter() -> None:
    graph, other = small(), small()
    other.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for criterion in ("l1", "fpgm"):
        for name, value in score(criterion, graph, members="all").items():
            np.testing.assert_allclose(score(criterion, other, members="all")[name], value, rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "lamp"])
def test_bad_weights_are_named(criterion: str, bad: float) -> None:
    graph = small()
    with torch.no_grad():
        graph.tensors()["layer2.conv.weight"][3, 1, 0, 2] = bad
    with pytest.raises(WeightsError, match=r"'layer2\.conv\.weight' holds NaN or infinite"):
        score(criterion, graph)


def test_bad_scales_are_named() -> None:
    graph = small()
    with torch.no_grad():
        graph.tensors()["stem_bn.weight"][3] = float("nan")
    with pytest.raises(WeightsError, match=r"'stem_bn\.weight'"):
        score("bn_scale", graph)


def test_fpgm_finds_the_duplicates_and_blocks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = build((40,), [FakeConv("a", (), 0, frozen_in=7)])
    with torch.no_grad():
        graph.tensors()["a.weight"][30:] = graph.tensors()["a.weight"][30] + 1e3
    whole = score("fpgm", graph)["a"]
    np.testing.assert_allclose(whole, distances(owned(graph, graph.groups[0].members[0])), rtol=1e-7)
    monkeypatch.setattr(formulas, "_WORK", 40 * 9)  # blocks of 9 rows and 9 columns
    np.testing.assert_allclose(score("fpgm", graph)["a"], whole, rtol=1e-7)


class Net(nn.Module):
    """conv-norm-dropout-conv with a counter that changes in every forward pass, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_bn, self.drop, self.b = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.Conv2d(6, 4, 3)
        self.b.weight.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.b(self.drop(F.relu(self.a_bn(self.a(x))))).mean((2, 3))  # type: ignore[no-any-return]


def net() -> FakeGraph:
    torch.manual_seed(0)
    whole = np.arange(6)[:, None]
    members = [FakeMember(name, 0, "producer", whole) for name in ("a.weight", "a.bias", "a_bn.weight", "a_bn.bias")]
    members.append(FakeMember("b.weight", 1, "consumer", whole))
    return FakeGraph(Net(), (FakeGroup("a", 6, tuple(members)),), (), costs((6,), [FakeConv("a", (), 0, frozen_in=3)]))


def batches(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 3, 8, 8, generator=generator), torch.arange(5) % 4) for _ in range(count)]


def test_gradients_are_the_mean_and_leave_no_trace() -> None:
    model = net().model
    model.train()
    model.a_bn.eval()  # type: ignore[union-attr,operator]
    model.a.weight.grad = torch.full_like(model.a.weight, 7.0)  # type: ignore[union-attr,arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = accumulate_gradients(model, batches(), F.cross_entropy)
    assert model.training
    assert not model.a_bn.training  # type: ignore[union-attr]
    assert (model.a.weight.grad == 7).all()  # type: ignore[union-attr]
    assert model.b.weight.grad is None  # type: ignore[union-attr]
    assert not model.b.weight.requires_grad  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "b.weight" in gradients
    assert "unused.weight" not in gradients
    plain = net().model.eval()
    sum(F.cross_entropy(plain(x), y) for x, y in batches()).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(gradients["a.weight"], plain.a.weight.grad / 2)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("members", MEMBERS)
def test_taylor_against_loops(members: str) -> None:
    graph = net()
    gradients = accumulate_gradients(graph.model, batches(), F.cross_entropy)
    expected = np.zeros(6)
    for member in graph.groups[0].members:
        if members == "all" or member.role == "producer":
            product = (graph.tensors()[member.name].detach().double() * gradients[member.name].double()).numpy()
            expected += [abs(np.take(product, row, axis=member.dim).sum()) for row in member.index]
    given = score("taylor", graph, gradients=gradients, members=members)
    np.testing.assert_allclose(given["a"], expected, rtol=1e-12)
    from_data = score("taylor", graph, data=batches(), loss=F.cross_entropy, members=members)
    np.testing.assert_allclose(from_data["a"], expected, rtol=1e-6)


def test_inputs_of_several_shapes_and_tied_weights() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(y)  # type: ignore[no-any-return]

    model, x, y = Two().half(), torch.ones(2, 3).half(), torch.ones(2, 3).half()
    by_order = accumulate_gradients(model, [((x, y), None)], lambda out, _: out.sum())
    by_name = accumulate_gradients(model, [({"y": y, "x": x}, None)], lambda out, _: out.sum())
    assert by_order.keys() == by_name.keys() == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert by_order["b.weight"].dtype == torch.float32
    assert (by_order["b.weight"] == 4).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["needs data and a loss"]),
        ({"gradients": {}}, ["needs gradients"]),
        ({"gradients": {"zzz": torch.ones(1)}}, ["'zzz'"]),
        ({"gradients": {"a.bias": torch.ones(5)}}, ["'a.bias'", "(5,)", "(6,)"]),
        ({"gradients": {"unused.bias": torch.ones(2)}}, ["group 'a'"]),
        ({"data": [], "loss": F.cross_entropy}, ["empty"]),
        ({"data": batches(), "loss": lambda out, y: out}, ["scalar"]),
        ({"data": batches(), "loss": lambda out, y: 3.0}, ["scalar"]),
        ({"data": batches(), "loss": lambda out, y: out.sum() * float("nan")}, ["nan"]),
    ],
)
def test_bad_gradients(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        score("taylor", net(), **options)
    for word in words:
        assert word in str(caught.value)


def test_a_batch_that_is_no_pair_is_refused_as_everywhere() -> None:
    with pytest.raises(InputError, match=r"must be a pair \(inputs, target\)\.$"):
        score("taylor", net(), data=[torch.ones(2)], loss=F.cross_entropy)


def test_a_bad_gradient_value_is_named() -> None:
    with pytest.raises(WeightsError, match=r"gradient of 'a\.bias'"):
        score("taylor", net(), gradients={"a.bias": torch.full((6,), torch.nan)})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "l3"}, ["'l3'", "random, l1"]),
        ({"name": "l1", "reduce": "summ"}, ["'summ'", "did you mean 'sum'"]),
        ({"name": "fpgm", "members": "consumers"}, ["'consumers'", "producers"]),
        ({"name": "bn_scale", "reduce": "avg"}, ["'avg'"]),
    ],
)
def test_bad_options(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        score(graph=small(), **arguments)
    for word in words:
        assert word in str(caught.value)


def test_rows_are_complete() -> None:
    names = [row.name for row in CRITERIA]
    assert names == ["random", "l1", "l2", "bn_scale", "fpgm", "taylor", "lamp"]
    for row in CRITERIA:
        assert row.summary
        assert row.paper
        assert 2010 < row.year < 2030
        assert row.needs_data == ("gradients" in row.options)


def test_one_weight_in_many_groups_is_summed_once() -> None:
    """Summing a dense network's weights anew for every group would take seconds."""
    graph = densenet201()
    start = time.perf_counter()
    score("l1", graph, members="all")
    assert time.perf_counter() - start < 2
