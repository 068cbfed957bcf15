"""DCP: greedy selection with its worked numbers, classifiers inside, passes that begin at a layer."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import models
from secateur.allocate import Constraints
from secateur.errors import ConfigError
from secateur.methods.dcp import channels
from secateur.methods.dcp.channels import DCP, columns_of
from secateur.methods.dcp.greedy import GreedyRules, GreedySelection, Part, Reconstruction
from secateur.methods.dcp.heads import learn, pivots, pooled
from secateur.methods.dcp.replay import Replay, cut_points
from secateur.methods.dcp.stopping import decreases, rounds, survival
from secateur.statistics.samples import PatchSums
from secateur.testing.networks import NETWORKS, Network


def _network(name: str) -> Network:
    return next(n for n in NETWORKS if n.name == name)


def _seen(network: Network) -> nn.Module:
    model = network.make()
    with torch.no_grad():
        for images, _ in network.batches(20):
            model(images)
    return model.eval()


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Bench:
    """A 1x1 layer that is to answer `y` to `x`, with no loss further on unless one is given."""

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor | None = None, **rules: Any) -> None:
        self.x, self.former = x, weight.clone()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
        self.layer.weight.requires_grad_(False).copy_(weight)
        self.y = x @ weight.T if y is None else y
        goal = Reconstruction(PatchSums.of([(x[:, None], self.y)]), constant=False)
        units = columns_of(self.layer, np.arange(weight.shape[1]), np.arange(weight.shape[1]), np.zeros(1, np.bool_))
        self.part = Part("layer", self.layer, units, self.former)
        further = rules.pop("further", lambda number: torch.zeros((), dtype=torch.float64))
        given = {"norm": "sum", "epochs": 0, "rate": 0.01, "ridge": 0.0, "batches": 1} | rules
        given["weight"] = given.pop("strength", 0.0)
        self.selection = GreedySelection(
            [self.part], weight.shape[1], goal, further, lambda amount: None, GreedyRules(**given)
        )
        self.goal = goal

    def loss(self) -> float:
        return float((self.y - self.x @ self.layer.weight.T).square().sum()) / (2 * self.y.numel())


# ------------------------------------------------------------------------------------------------- greedy selection


def test_orthogonal_inputs_come_back_by_energy_times_norm() -> None:
    q, _ = torch.linalg.qr(_draw(40, 6))
    x = q * torch.tensor([3.0, 1.0, 2.0, 5.0, 0.5, 4.0], dtype=torch.float64)
    bench = Bench(x, _draw(4, 6, seed=1))
    empty = bench.goal.gradient(torch.zeros_like(bench.former))
    torch.testing.assert_close(empty, -(bench.y.T @ x) / bench.y.numel())  # G[:, k] = -X_kᵀ Y / Q
    bench.selection.run(6, 1)
    worth = x.square().sum(0) * bench.former.norm(dim=0)
    assert np.argsort(bench.selection.added).tolist() == torch.argsort(worth, descending=True).tolist()
    assert (np.diff(bench.selection.losses) < 0).all()
    assert bench.selection.losses[-1] == pytest.approx(0, abs=1e-12)


def test_after_an_exact_fit_chosen_channels_ask_for_nothing() -> None:
    bench = Bench(_draw(60, 7) @ _draw(7, 7, seed=5), _draw(3, 7, seed=1))
    kept = bench.selection.run(3, 1)
    gradient = bench.goal.gradient(bench.layer.weight)
    assert float(gradient[:, kept].abs().max()) < 1e-9 < float(gradient[:, ~kept].abs().max())
    assert not bench.layer.weight[:, ~kept].any()
    assert bench.selection.losses[-1] == pytest.approx(bench.loss())


def test_when_nothing_is_left_to_gain_the_largest_weights_join() -> None:
    """Fewer patches than inputs: after three of them the fit is exact, and gradients are rounding errors."""
    weight = _draw(2, 8, seed=1)
    bench = Bench(_draw(3, 8), weight)
    bench.selection.run(8, 1)
    assert bench.selection.losses[3] < 1e-10 * bench.selection.losses[0]
    rest = bench.selection.order[3:]
    sizes = weight.abs().sum(0)[rest]  # of a channel, the sum of its kernels' norms
    assert (sizes.diff() < 0).all()


def test_a_twin_comes_last() -> None:
    x = _draw(80, 5)
    x[:, 1] = x[:, 0]
    weight = _draw(4, 5, seed=1)
    weight[:, :2] = 10.0  # both large: a norm of weights would keep both
    bench = Bench(x, weight)
    bench.selection.run(5, 1)
    first, second = sorted(bench.selection.added[:2].tolist())
    assert (first, second) == (1, 5)


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("by_passes", [False, True])
def test_a_second_reader_has_a_say_whatever_its_scale(by_passes: bool, size: float) -> None:
    """The first layer asks for channel 0 with 1.1 to 1.0, the second for channel 1 with 0.2 to 1.0."""
    x = torch.linalg.qr(_draw(40, 2))[0]
    bench = Bench(x, torch.tensor([[1.1, 1.0]], dtype=torch.float64))
    alone = bench.selection.run(1, 1).tolist()
    assert alone == [True, False]
    former = size * torch.tensor([[0.2, 1.0]], dtype=torch.float64)
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.requires_grad_(False).copy_(former)
    y = x @ former.T
    goal = None if by_passes else Reconstruction(PatchSums.of([(x[:, None], y)]), constant=False)
    selection = GreedySelection(
        [bench.part, Part("other", layer, bench.part.units, former, goal)], 2, bench.goal,
        lambda number: (x @ layer.weight.T - y).square().mean() / 2, lambda amount: None,
        GreedyRules(float(by_passes), "sum", 0, 0.01, 0.0, 1),
    )  # fmt: skip
    assert selection.run(1, 1).tolist() == [False, True]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_what_is_not_chosen_stays_zero_and_all_give_the_layer_back(weight: float) -> None:
    images, target = _draw(30, 6), _draw(30, 4, seed=2)
    bench = Bench(
        images, _draw(4, 6, seed=1), strength=weight, epochs=2, batches=2, rate=0.05,
        further=lambda n: (bench.layer(images[n::2]) - target[n::2]).square().mean(),
    )  # fmt: skip
    seen = []
    steps = bench.selection._steps

    def watched() -> None:
        steps()
        gone = ~bench.selection.kept
        seen.append(bool(bench.layer.weight[:, gone].any()))

    bench.selection._steps = watched  # type: ignore[method-assign]
    bench.selection.run(3, 2)
    assert bench.selection.added.max() == 2  # two, then one
    assert bool(seen) == bool(weight)
    assert not any(seen)
    assert not bench.layer.weight[:, ~bench.selection.kept].any()
    if not weight:
        everything = Bench(images, _draw(4, 6, seed=1))
        everything.selection.run(6, 6)
        torch.testing.assert_close(everything.layer.weight, everything.former)  # LM = 0 with all of them


def test_sgd_that_would_raise_the_loss_is_taken_back() -> None:
    images, target = _draw(30, 6), _draw(30, 4, seed=2)
    bench = Bench(
        images, _draw(4, 6, seed=1), strength=1.0, epochs=20, rate=1e6,
        further=lambda n: (bench.layer(images) - target).square().mean(),
    )  # fmt: skip
    bench.selection.run(4, 1)
    assert np.isfinite(bench.selection.losses).all()
    assert bench.selection.losses[-1] <= bench.selection.losses[0]
    other = Bench(images, _draw(4, 6, seed=1), strength=1.0, epochs=20, rate=0.05, further=lambda n: (
        other.layer(images) - target).square().mean())  # fmt: skip
    plain = Bench(images, _draw(4, 6, seed=1), strength=1.0, further=lambda n: (
        plain.layer(images) - target).square().mean())  # fmt: skip
    other.selection.run(4, 4)
    plain.selection.run(4, 4)
    assert other.selection.losses[-1] < plain.selection.losses[-1]  # where it works, it helps the joint loss


def test_two_norms_of_a_gradient() -> None:
    layer = nn.Conv2d(2, 2, 1, bias=False)
    part = Part("layer", layer, columns_of(layer, np.arange(2), np.arange(2), np.zeros(1, np.bool_)), layer.weight)

    def scores(values: list[list[float]], how: str) -> list[float]:
        return part.scores(torch.tensor(values).T.reshape(2, 2, 1, 1), 2, how).tolist()

    assert scores([[5, 0], [50**0.5, 5]], "sum") == pytest.approx([5, 12.07], abs=0.01)
    assert scores([[5, 0], [50**0.5, 5]], "frobenius") == pytest.approx([5, 8.66], abs=0.01)
    assert scores([[5, 0], [3, 3]], "sum") == pytest.approx([5, 6])
    assert scores([[5, 0], [3, 3]], "frobenius") == pytest.approx([5, 4.243], abs=0.001)


def test_units_of_grouped_layers_and_what_went_before() -> None:
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    units = columns_of(grouped, np.array([7, 8, 9, -1]), np.array([7, 8, 9]), np.zeros(4, np.bool_))
    assert units.tolist() == [[0, 1]] * 3 + [[2, -1]] * 3
    part = Part("layer", grouped, units, grouped.weight.detach())
    assert part.open(torch.tensor([True, False, False]))[:, :, 0, 0].tolist() == [[1, 0]] * 3 + [[0, 1]] * 3
    gone = columns_of(grouped, np.array([7, 8, 3, -1]), np.array([7, 8]), np.array([False, False, True, False]))
    assert gone.tolist() == [[0, 1]] * 3 + [[-2, -1]] * 3
    closed = Part("layer", grouped, gone, grouped.weight.detach()).open(torch.tensor([True, True]))
    assert closed[:, :, 0, 0].tolist() == [[1, 1]] * 3 + [[0, 1]] * 3


# ------------------------------------------------------------------------------------------------------ when it stops


def test_stopping_rules() -> None:
    losses = [10.0, 6.0, 3.0, 2.9, 2.9, 3.4]
    np.testing.assert_allclose(decreases(losses), [0.4, 0.3, 0.01, 0.0, 0.05])
    assert [rounds(losses, e) for e in (0.0, 0.005, 0.011, 0.31, 0.35, 1.0)] == [4, 4, 3, 2, 2, 1]
    assert rounds([4.0, 3.0, 2.0], 0.0) == 2  # selects on while anything improves
    assert rounds([4.0, 8.0, 2.0], 1.0) == 1  # whenever L_1 <= 2 L_0
    assert rounds([4.0, 9.0, 2.0], 1.0) == 2  # the absolute value keeps going
    assert decreases([0.0, 0.0]).tolist() == [0.0]


def test_a_tolerance_for_the_network_is_the_rule_of_every_layer() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        losses = generator.random(7) + 0.5
        added = generator.permutation(np.repeat(np.arange(1, 7), 2))
        order = np.argsort(added + generator.random(12) / 2)
        scores = survival(losses.tolist(), added, order.tolist())
        for one, other in itertools.pairwise(order):
            assert scores[one] > scores[other] or added[one] < added[other]  # within a round, as they joined
        for epsilon in (0.0, 0.05, 0.2, 0.5, 1.0):
            assert ((scores > epsilon) == (added <= rounds(losses.tolist(), epsilon))).all()


@pytest.mark.parametrize(("width", "eta", "kept"), [(16, 0.3, 12), (16, 0.7, 5), (64, 0.3, 45), (10, 0.7, 3)])
def test_counts_of_a_share(width: int, eta: float, kept: int) -> None:
    assert Constraints(max_ratio=eta).floor(width) == kept


@pytest.mark.parametrize("budget", ["flops=0.3", "flops=0.5", "flops=0.7", "params=0.4"])
def test_the_same_share_everywhere_up_to_rounding(budget: str) -> None:
    """One share explains all widths, and what it leaves of the budget is said."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    images = torch.randn(8, 3, 8, 8)
    method = DCP(net, images[:1], budget=budget, weight=0.0)
    method.collect([(images, None)], F.cross_entropy)
    plan, full = method.plan(), {g.name: g.width for g in method.graph.groups}
    least = max((width - 1) / full[name] for name, width in plan.widths.items())
    assert least < min((width + 1) / full[name] for name, width in plan.widths.items())
    bound, limit = budget.split("=")
    key = "macs" if bound == "flops" else bound
    used = getattr(method.graph.cost(plan), key) / getattr(method.graph.cost(), key) / float(limit)
    assert used <= 1
    assert (used < 0.99) == ("unspent" in plan.provenance)
    assert plan.provenance.get("unspent", f"{used:.1%}").startswith(f"{used:.1%}")


# ------------------------------------------------------------------------------------------------ classifiers, passes


def test_places_of_classifiers() -> None:
    assert pivots(3, 27) == [7, 14, 21]
    assert pivots(2, 8) == [3, 6]
    assert pivots(3, 16) == [5, 10, 15]


class Blocks(nn.Module):
    """Two residual blocks, an activation without a module, one that writes in place and is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.one, self.two = self._block(), self._block()
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 5)

    def _block(self) -> nn.Module:
        return nn.ModuleDict({"a": nn.Conv2d(6, 8, 3, padding=1), "b": nn.Conv2d(8, 6, 3, padding=1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in (self.one, self.two):
            x = self.act(x + block["b"](F.relu(block["a"](x))))
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


def _reached(net: nn.Module, end: str | None, x: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    hook = net.get_submodule(end or "").register_forward_hook(lambda module, inputs, output: found.append(output))
    net(x)
    hook.remove()
    return found[0]


def test_passes_that_begin_at_a_layer() -> None:
    torch.manual_seed(0)
    net, batches = Blocks().eval(), [torch.randn(3, 3, 6, 6), torch.randn(2, 3, 6, 6)]
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for layer, end, done in (("one.b", None, "one.a"), ("two.a", "two.b", "stem.0"), ("fc", None, "two.b")):
            replay = Replay(net, batches, layer, end)
            assert replay.skips
            net.get_submodule(layer).weight.mul_(2)  # what lies behind is run as it is now
            wanted = [_reached(net, end, x) for x in batches]
            net.get_submodule(done).weight.fill_(float("nan"))  # and what lies before not at all
            for number in (1, 0, 1):
                torch.testing.assert_close(replay.run(number), wanted[number])
            net.load_state_dict(before)
    assert "forward" not in vars(net.stem)


def test_a_module_shared_between_places_is_run_again() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Tanh()
            self.one = nn.Sequential(nn.Conv2d(3, 3, 1), self.act)
            self.two = nn.ModuleList([nn.Conv2d(3, 3, 1), self.act])
            self.last = nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.one(x)
            x = self.act(self.two[0](x))
            result: torch.Tensor = self.last(x)
            return result

    torch.manual_seed(0)
    net, x = Shared().eval(), torch.randn(2, 3, 4, 4)
    replay = Replay(net, [x], "last", None)
    with torch.no_grad():
        torch.testing.assert_close(replay.run(0), net(x))


def test_where_classifiers_can_stand() -> None:
    net = Blocks().eval()
    assert cut_points(net, torch.randn(2, 3, 6, 6)) == ["act", "act"]  # behind the sums
    assert cut_points(_network("no norm").make(), torch.randn(2, 3, 8, 8)) == ["1", "3"]
    assert cut_points(_network("concatenation").make(), torch.randn(2, 3, 8, 8)) == ["stem"]


@pytest.mark.parametrize(
    ("name", "heads", "behind"),
    [
        ("resnet20", 2, ["layer2.0", "layer3.1"]),  # blocks 4 and 8 of 9
        ("resnet56", 3, ["layer1.6", "layer2.4", "layer3.2"]),  # 7, 14 and 21 of 27, as in the paper
        ("mobilenet_v2", 2, ["features.10", "features.15"]),  # the 4th and 8th of 10 blocks with a shortcut
        ("vgg16_bn", 2, ["features.16", "features.33"]),  # no sums: layers 5 and 10 of 13
    ],
)
def test_classifiers_stand_behind_blocks(name: str, heads: int, behind: list[str]) -> None:
    points = cut_points(models.create(name).eval(), torch.randn(1, 3, 32, 32))
    assert [points[k - 1] for k in pivots(heads, len(points))] == behind


def test_classifiers_learn_what_features_tell() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 1))
    with torch.no_grad():
        net[0].weight[0] = 0  # a channel that never moves must not be blown up
    labels = torch.arange(60) % 3
    images = torch.randn(60, 3, 4, 4) * 0.1 + 2 * F.one_hot(labels, 3)[:, :, None, None]
    batches = list(zip(images.split(20), labels.split(20), strict=True))
    before = copy.deepcopy(net.state_dict())
    head = learn(net, batches, ["1"], 3, F.cross_entropy, epochs=60)[0]
    with torch.no_grad():
        assert (head(net[:2](images)).argmax(1) == labels).all()
    assert float(head.deviation.min()) > 0.02 * float(head.deviation.max())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 8.0]]]])
    assert pooled(x, torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0])).tolist() == [[0.5, 1.0]]


# --------------------------------------------------------------------------------------------------- through a network


def _collected(network: Network, count: int = 6, **settings: Any) -> DCP:
    method = DCP(_seen(network), network.inputs(), budget=settings.pop("budget", "flops=0.5"), **settings)
    method.collect(network.batches(count), F.cross_entropy)
    return method


def test_reconstruction_alone_needs_no_labels() -> None:
    network = _network("residual")
    method = DCP(_seen(network), network.inputs(), budget="flops=0.5", weight=0.0)
    method.collect(((x, None) for x, _ in network.batches(6)), F.cross_entropy)
    other = _collected(network, weight=0.0)
    assert method.plan() == other.plan()
    assert not method._heads


@pytest.mark.parametrize("exact", [False, True])
def test_classifiers_change_what_stays(exact: bool) -> None:
    network = _network("grouped")
    with_heads = _collected(network, heads=2, weight=50.0, exact=exact)
    without = _collected(network, weight=0.0)
    assert [head.module for head in with_heads._heads] == ["1"]
    assert with_heads.plan() != without.plan()
    assert with_heads.plan().widths == without.plan().widths
    assert _collected(network, heads=0, exact=exact)._heads == []


def test_a_tolerance_finds_widths_of_its_own() -> None:
    network = _network("residual")
    share, tolerance = _collected(network, weight=0.0), _collected(network, weight=0.0, stop="tolerance")
    assert share.plan().widths != tolerance.plan().widths
    for method in (share, tolerance):
        method.finish()
        assert method.result is not None
        assert 0.98 <= method.result.reached("flops") / 0.5 <= 1


@pytest.mark.parametrize("given", [{"exact": True, "epochs": 0}, {"exact": False}])
def test_one_channel_a_round_and_several_readers(given: dict[str, Any]) -> None:
    network = _network("concatenation")
    method = _collected(network, rounds=None, count=2, **given)
    assert bool(method._others) is not given["exact"]  # what those that come later lose
    assert method.plan().widths["stem.0"] < 16  # three layers read it
    method.finish()


def test_refusals() -> None:
    network = _network("residual")
    with pytest.raises(ConfigError, match=r"unit is gone: .* single kernels by the method dkp"):
        DCP(network.make(), network.inputs(), budget="params=0.5", unit="kernel")
    with pytest.raises(ConfigError, match="are for stop: share"):
        DCP(network.make(), network.inputs(), budget="flops=0.5", stop="tolerance", shares={"first.0": 2.0})
    with pytest.raises(ConfigError, match="lr is of the passes of exact: true"):
        DCP(network.make(), network.inputs(), budget="flops=0.5", exact=False, lr=0.1)
    method = DCP(_seen(network), network.inputs(), budget="flops=0.5")
    with pytest.raises(ConfigError, match="has seen no data"):
        method.finish()
    for exact in (False, True):
        method = DCP(_seen(network), network.inputs(), budget="flops=0.5", exact=exact)
        with pytest.raises(ConfigError, match="The loss is nan"):
            method.collect(network.batches(1), lambda output, target: output.sum() * float("nan"))


def test_passes_are_few_and_do_not_grow_with_rounds() -> None:
    network = _network("residual")
    forwards = []
    for given in ({"rounds": 2, "exact": False}, {"rounds": None, "exact": False}, {"rounds": 2}):
        calls = [0]

        class Counted(nn.Conv2d):
            def forward(self, x: torch.Tensor, calls: list[int] = calls) -> torch.Tensor:
                calls[0] += 1
                return super().forward(x)

        model = _seen(network)
        next(m for m in model.modules() if isinstance(m, nn.Conv2d)).__class__ = Counted
        method = DCP(model, network.inputs(), budget="flops=0.5", **given)
        calls[0] = 0
        method.collect(network.batches(2), F.cross_entropy)
        forwards.append(calls[0] / 2)
    assert forwards[0] == forwards[1] < forwards[2]
    assert forwards[0] <= 8


def test_too_many_gradients_are_asked_for_by_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _network("residual")
    exact = _collected(network, exact=True)
    monkeypatch.setattr(channels, "MEMORY", 1)
    method = _collected(network, exact=False)
    assert method.plan() == exact.plan()
    (note,) = [note for note in method.notes if "Gradients of all layers" in note]
    assert "as with exact: true" in note


@pytest.mark.parametrize("exact", [False, True])
def test_better_than_the_same_widths_by_chance(exact: bool) -> None:
    network = _network("projection")
    model = _seen(network)
    images = torch.cat([images for images, _ in network.batches(10, seed=9)])

    def error(weights: nn.Module) -> float:
        with torch.no_grad():
            return float((model(images) - weights.eval()(images)).square().mean())

    good = _collected(network, exact=exact)
    worse = copy.deepcopy(good)
    generator = np.random.default_rng(0)
    worse._masks = {name: generator.permutation(mask) for name, mask in worse._masks.items()}
    assert error(good.finish()) < error(worse.finish())
