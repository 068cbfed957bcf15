"""CP: the LASSO on second moments with its worked numbers, and the way through a network."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.allocate import Constraints
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.graph import trace
from secateur.methods import method as row
from secateur.methods.cp.lasso import channel_moments, lasso, path, select
from secateur.methods.cp.method import CP
from secateur.methods.kit import layerwise
from secateur.methods.kit.shares import proportional
from secateur.repair import repairs
from secateur.statistics.samples import PatchSums
from secateur.surgery import apply
from secateur.testing.networks import NETWORKS, Network


def _network(name: str) -> Network:
    return next(n for n in NETWORKS if n.name == name)


def _seen(network: Network) -> nn.Module:
    model = network.make()
    with torch.no_grad():
        for images, _ in network.batches(20):
            model(images)
    return model.eval()


def _problem(
    seed: int = 0, samples: int = 50, channels: int = 6, kernel: int = 4, outputs: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, channels, kernel, generator=generator, dtype=torch.float64)
    return x, torch.randn(outputs, channels, kernel, generator=generator, dtype=torch.float64)


def _moments(x: torch.Tensor, y: torch.Tensor) -> PatchSums:
    return PatchSums.of([(x.flatten(1)[:, None], y)])


def _gram(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    y = torch.einsum("nck,ock->no", x, w) if y is None else y
    return channel_moments(_moments(x, y), w, np.arange(x.shape[1]), x.shape[1])


# ------------------------------------------------------------------------------------------------------- the LASSO


def test_moments_are_those_of_explicit_columns() -> None:
    x, w = _problem()
    y = torch.randn(50, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = torch.einsum("nck,ock->noc", x, w).flatten(0, 1)  # rows: places and outputs
    square, right = _gram(x, w, y)
    np.testing.assert_allclose(square, (z.T @ z / 50).numpy())
    np.testing.assert_allclose(right, (z.T @ y.flatten() / 50).numpy())
    centred, _ = channel_moments(_moments(x, y), w, np.arange(6), 6, constant=True)
    middle = (z.view(50, 5, 6) - z.view(50, 5, 6).mean(0)).flatten(0, 1)
    np.testing.assert_allclose(centred, (middle.T @ middle / 50).numpy())


def test_channels_that_own_several_inputs_and_grouped_layers() -> None:
    x, w = _problem(channels=6, kernel=1, outputs=4)
    square, right = _gram(x, w)
    table = np.array([0, 0, 1, 1, -1, 2])  # a flattened map: two places a channel; one input is of none
    summed, sums = channel_moments(_moments(x, torch.einsum("nck,ock->no", x, w)), w, table, 3)
    owner = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]])
    np.testing.assert_allclose(summed, owner @ square @ owner.T)
    np.testing.assert_allclose(sums, owner @ right)
    layer = nn.Conv2d(6, 4, 1, groups=2, bias=False).double()  # the same as a layer with zeros between its groups
    full = torch.zeros(4, 6, 1, dtype=torch.float64)
    full[:2, :3], full[2:, 3:] = layer.weight[:2, :, :, 0].detach(), layer.weight[2:, :, :, 0].detach()
    y = torch.einsum("nck,ock->no", x, full)
    grouped = PatchSums.of([(x.flatten(1).unflatten(1, (2, 3)), y)])
    both = channel_moments(grouped, layer.weight.detach(), table, 3), channel_moments(_moments(x, y), full, table, 3)
    # what two groups answer never meets in one output
    np.testing.assert_allclose(both[0][0], both[1][0], atol=1e-12)
    np.testing.assert_allclose(both[0][1], both[1][1], atol=1e-12)


def test_two_uncorrelated_channels() -> None:
    square, right = np.diag([2.0, 0.5]), np.array([2.0, 0.5])
    np.testing.assert_allclose(lasso(square, right, 0.3), [0.85, 0.4])
    np.testing.assert_allclose(lasso(square, right, 0.6), [0.7, 0.0])
    assert select(square, right, 1).tolist() == [True, False]


def test_no_penalty_is_least_squares_and_gives_ones() -> None:
    x, w = _problem()
    square, right = _gram(x, w)
    np.testing.assert_allclose(lasso(square, right, 0.0), np.ones(6), atol=1e-9)
    other = np.random.default_rng(0).normal(size=6)
    np.testing.assert_allclose(lasso(square, other, 0.0), np.linalg.solve(square, other), atol=1e-8)


def test_the_largest_penalty_closes_all_and_just_below_one_opens() -> None:
    square, right = _gram(*_problem())
    most = np.abs(right).max()
    assert not lasso(square, right, most).any()
    assert np.count_nonzero(lasso(square, right, 0.999 * most)) == 1
    assert path(square, right)[0][0] == pytest.approx(most)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.9, 0.4, 0.1, 0.01])
def test_optimality_conditions(seed: int, share: float) -> None:
    square, _ = _gram(*_problem(seed, samples=12, channels=9))
    right = np.random.default_rng(seed).normal(size=9)  # of both signs
    penalty = share * np.abs(right).max()
    b = lasso(square, right, penalty)
    slope = right - square @ b
    assert (b < 0).any() or share > 0.3
    np.testing.assert_allclose(slope[b != 0], penalty * np.sign(b[b != 0]), atol=1e-8)
    assert np.abs(slope[b == 0]).max(initial=0.0) <= penalty + 1e-8


def test_dead_and_duplicate_channels_never_come_before_others() -> None:
    x, w = _problem(channels=5)
    x[:, 2] = 0
    x[:, 4] = x[:, 1]
    w[:, 4] = w[:, 1]
    square, right = _gram(x, w)
    b = lasso(square, right, 1e-6)
    assert b[2] == 0
    assert not select(square, right, 4)[2]  # the dead one goes first
    kept = select(square, right, 3)
    assert not kept[2]
    assert kept[1] != kept[4]  # and then one of the two
    assert select(square, right, 5).all()
    assert select(np.zeros((3, 3)), np.zeros(3), 2).tolist() == [True, True, False]  # nothing to tell them apart


def test_scaling_inputs_against_weights_changes_nothing() -> None:
    x, w = _problem()
    factor = torch.tensor([0.01, 3.0, 1.0, 100.0, 7.0, 0.2], dtype=torch.float64)[:, None]
    first, second = _gram(x, w), _gram(x * factor, w / factor)
    np.testing.assert_allclose(first[0], second[0])
    np.testing.assert_allclose(first[1], second[1])
    for count in range(1, 6):
        assert (select(*first, count) == select(*second, count)).all()


def test_the_count_is_met_and_agrees_with_a_search_over_penalties() -> None:
    square, right = _gram(*_problem(3, samples=200, channels=9))
    found = [lasso(square, right, p) != 0 for p in np.geomspace(right.max(), 1e-6, 60)]
    for count in range(1, 9):
        kept = select(square, right, count)
        assert kept.sum() == count
        exact = [b for b in found if b.sum() == count]
        assert not exact or any((b == kept).all() for b in exact)


def test_smaller_response_goes_whatever_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, 1, generator=generator, dtype=torch.float64) * torch.tensor([[[10.0], [0.1]]])
    w = torch.tensor([[[0.1]], [[5.0]]], dtype=torch.float64).view(1, 2, 1)  # the second has the larger weight
    assert select(*_gram(x, w), 1).tolist() == [True, False]


# ---------------------------------------------------------------------------------------------------------- widths


def test_shares_in_proportion() -> None:
    network = _network("residual")
    graph = trace(network.make(), network.inputs())
    widths = proportional(graph, graph.cost(), CP(network.make(), network.inputs(), budget="flops=0.4").budget,
                          Constraints(), {"first.0": 2.0})  # fmt: skip
    full = {g.name: g.width for g in graph.groups}
    name = next(n for n in full if n.startswith("first.0"))
    other = next(n for n in full if n.startswith("second.0"))
    assert widths[name] / full[name] == pytest.approx(min(1.0, 2 * widths[other] / full[other]), abs=0.1)
    with pytest.raises(ConfigError, match=r"shares has 'first\.0': 0"):
        CP(network.make(), network.inputs(), budget="flops=0.5", shares={"first.0": 0.0})
    with pytest.raises(ConfigError, match="nowhere"):
        CP(network.make(), network.inputs(), budget="flops=0.5", shares={"nowhere": 1.0})


def test_streams_stay_whole_unless_the_budget_needs_them() -> None:
    network = _network("residual")

    def widths(budget: str, **settings: object) -> dict[str, int]:
        method = CP(_seen(network), network.inputs(), budget=budget, **settings)
        method.collect(network.batches(2), F.cross_entropy)
        return method.plan().widths | {"notes": len(method.notes)}

    assert widths("flops=0.5")["stem.0"] == 24
    assert widths("flops=0.5", streams=True)["stem.0"] < 24
    deep = widths("flops=0.02")
    assert deep["stem.0"] < 24
    assert deep["notes"] == 2  # and how many images there were
    with pytest.raises(BudgetError):
        CP(network.make(), network.inputs(), budget="flops=1e-6")


# -------------------------------------------------------------------------------------------------- through a network


def _error(model: nn.Module, small: nn.Module, network: Network) -> float:
    images = torch.cat([images for images, _ in network.batches(10, seed=9)])
    with torch.no_grad():
        return float((model(images) - small.eval()(images)).square().mean())


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_better_than_the_same_widths_by_norm(network: Network) -> None:
    model = _seen(network)
    method = CP(copy.deepcopy(model), network.inputs(), budget="flops=0.6")
    method.collect(network.batches(20), F.cross_entropy)
    small = method.finish()
    other = row("l1").factory(copy.deepcopy(model), network.inputs(), budget="flops=0.6")
    plan = method.plan()
    ranks = {name: np.argsort(-np.asarray(values), kind="stable") for name, values in other.score().items()}
    for name, mask in plan.masks.items():
        kept = int(mask.sum())
        mask[:] = False
        mask[ranks[name][:kept]] = True
    plan.architecture = None
    plan.provenance.update(attention="heads", settled=[])
    bare = apply(copy.deepcopy(model), network.inputs(), plan).model
    assert _error(model, small, network) < _error(model, bare, network)


def test_nothing_removed_gives_the_network_back() -> None:
    network = _network("no norm")
    model = _seen(network)
    method = CP(model, network.inputs(), budget="flops=1.0")
    method.collect(network.batches(4), F.cross_entropy)
    small = method.finish()
    images, _ = next(network.batches(1, seed=4))
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(images), model(images), rtol=1e-4, atol=1e-5)


class Twins(nn.Module):
    """Channels 0 and 1 of the first layer are the same, and are read alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)
        with torch.no_grad():
            self.first.weight[1], self.first.bias[1] = self.first.weight[0], self.first.bias[0]
            self.last.weight[:, 1] = self.last.weight[:, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.first(x).relu()).mean((2, 3))
        return result


def test_a_duplicate_channel_costs_nothing() -> None:
    network = Network("twins", Twins)
    model = network.make().eval()
    method = CP(model, network.inputs(), budget="flops=0.84", ridge=1e-9)
    method.collect(network.batches(10), F.cross_entropy)
    small = method.finish()
    kept = method.plan().masks["first"]
    assert kept.sum() == 5
    assert kept[0] != kept[1]
    images, _ = next(network.batches(1, seed=4))
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(images), model(images), rtol=1e-3, atol=1e-4)


class Fork(nn.Module):
    """Four channels that say different things, read by two layers: the first mostly 0 and 1, the second 2 and 3."""

    def __init__(self, second: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b = (nn.Conv2d(4, n, 1, bias=False) for n in (4, 5, 5))
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
            for layer, sizes in ((self.a, (1.0, 0.9, 0.3, 0.0)), (self.b, (0.0, 0.2, 1.0, 0.9))):
                layer.weight.div_(layer.weight.norm(dim=0)).mul_(torch.tensor(sizes).view(1, 4, 1, 1))
            self.b.weight.mul_(second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return torch.cat([self.a(x), self.b(x)], 1).mean((2, 3))


@pytest.mark.parametrize("second", [1.0, 100.0, 0.01])
def test_channels_that_several_layers_read_are_chosen_for_all_of_them(second: float) -> None:
    """Shares of the energy: (0.53, 0.45, 0.59, 0.44) together, whatever the scale; the first layer alone: 0 and 1."""
    x = torch.randn(64, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    method = CP(Fork(second).eval(), x[:1], budget="flops=0.5", streams=True, positions=36)
    method.collect([(x, None)], F.cross_entropy)
    assert method.plan().masks["stem"].tolist() == [True, False, True, False]


class Beside(nn.Module):
    """One layer reads four channels, and beside them what they are made of, which stays: that tells the most."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.last = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(8, 5, 1, bias=False)
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
            own = self.last.weight[:, :4].div_(self.last.weight[:, :4].norm(dim=0))
            self.last.weight[:, 4:] = own * torch.tensor([0.0, 0.0, 0.0, 10.0]).view(1, 4, 1, 1)
            own.mul_(torch.tensor([1.0, 0.9, 0.3, 0.2]).view(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.stem(x), x], 1)).mean((2, 3))


def test_what_other_inputs_answer_is_no_merit_of_a_channel() -> None:
    """The last channel says what an input beside it says ten times as loud; the first two say most by themselves."""
    x = torch.randn(64, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    method = CP(Beside().eval(), x[:1], budget="flops=0.68", positions=36)
    method.collect([(x, None)], F.cross_entropy)
    assert method.plan().masks["stem"].tolist() == [True, True, False, False]


def _read(model: nn.Module, layers: list[str], x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What layers read (patches [N, columns]) and answer [N, outputs], their biases taken away."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(name: str) -> object:
        def hook(layer: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
            if isinstance(layer, nn.Linear):
                found[name] = args[0].double(), (out - layer.bias).double()
                return
            keys = ("dilation", "padding", "stride")
            seen = F.unfold(args[0], layer.kernel_size, **{key: getattr(layer, key) for key in keys})
            bias = 0 if layer.bias is None else layer.bias.view(-1, 1, 1)
            found[name] = seen.mT.flatten(0, 1).double(), (out - bias).flatten(2).mT.flatten(0, 1).double()

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ["no norm", "residual", "depthwise"])
def test_what_is_left_unexplained_has_nothing_to_do_with_what_is_read(name: str) -> None:
    """The normal equations of every layer: answers of the whole network, inputs of the network as pruned so far."""
    network = _network(name)
    model = _seen(network)
    batches = list(network.batches(6))
    settings = {"budget": "flops=0.6", "positions": 1000, "per_column": 0, "ridge": 1e-12, "shortcuts": False}
    method = CP(copy.deepcopy(model), network.inputs(), **settings)
    method.collect(batches, F.cross_entropy)
    plan, pruned = method.plan(), method.plain().eval()
    with torch.no_grad():
        method.repair(pruned, plan)
    gone = np.concatenate([~plan.masks[g.name] for g in method.graph.groups] + [np.zeros(1, dtype=bool)])
    layers = [n for n, table in method._tables.items() if getattr(model.get_submodule(n), "groups", 1) == 1]
    x = torch.cat([x for x, _ in batches])
    whole, now = _read(model, layers, x), _read(pruned, layers, x)
    moved = 0
    for layer in layers:
        seen, left = now[layer][0], whole[layer][1] - now[layer][1]
        kept = torch.from_numpy(~gone[method._tables[layer]]).repeat_interleave(
            seen.shape[1] // len(method._tables[layer])
        )
        seen = seen[:, kept]
        if method._has_constant(layer):
            seen, left = seen - seen.mean(0), left - left.mean(0)
        assert (
            float((seen.T @ left).abs().max()) < 1e-3 * float(seen.norm() * whole[layer][1].norm()) / len(seen) ** 0.5
        )
        moved += float((whole[layer][0] - now[layer][0]).abs().max()) > 0.01
    assert moved  # layers that read something else than before


def test_all_images_whatever_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch by batch in front of the layers: bit by bit the same as all at once, and said."""
    network = _network("residual")
    model = _seen(network)

    def collected() -> CP:
        method = CP(copy.deepcopy(model), network.inputs(), budget="flops=0.5", streams=True)
        method.collect(network.batches(4), F.cross_entropy)
        return method

    plain = collected()
    assert not any("GiB" in note for note in plain.notes)
    monkeypatch.setattr(layerwise, "MEMORY", 1)
    other = collected()
    assert other.plan() == plain.plan()
    assert all(torch.equal(a, b) for a, b in zip(plain._fitted.values(), other._fitted.values(), strict=True))
    said = next(note for note in other.notes if "GiB" in note)
    assert f"the first {len(plain._tables)} of {len(plain._tables)} layers" in said


def test_batches_targets_and_seed() -> None:
    network = _network("residual")
    model = _seen(network)
    images = torch.cat([images for images, _ in network.batches(6)])

    def collected(size: int, seed: int = 0) -> CP:
        method = CP(copy.deepcopy(model), network.inputs(), budget="flops=0.5", seed=seed, positions=3)

        def pairs() -> Iterator[tuple[torch.Tensor, None]]:
            yield from ((part, None) for part in images.split(size))

        method.collect(pairs(), F.cross_entropy)  # targets are not looked at
        return method

    first, second, other = collected(48), collected(7), collected(48, seed=1)
    assert first.plan() == second.plan()
    for a, b in zip(first.finish().parameters(), second.finish().parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(first._fitted.values(), other._fitted.values(), strict=True))


def test_what_it_says() -> None:
    network = _network("residual")
    method = CP(_seen(network), network.inputs(), budget="flops=0.5", allocator="per_cost", normalise="max")
    assert any("per_cost" in note for note in method.notes)
    assert any("normalise='max'" in note for note in method.notes)
    with pytest.raises(ConfigError, match="has seen no data"):
        method.plan()
    with pytest.raises(ConfigError, match="shown no batch"):
        method.collect(iter(()), F.cross_entropy)
    method.collect(network.batches(2), F.cross_entropy)
    method.finish(repairs(["least_squares", "batchnorm"]), list(network.batches(2)))
    assert [each["name"] for each in method.result.plan.provenance["repairs"]] == ["least_squares", "batchnorm"]


def test_layers_it_cannot_look_into() -> None:
    up = Network("up", lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(),
                                             nn.Linear(324, 5)))  # fmt: skip
    method = CP(up.make(), up.inputs(), budget="params=0.9")
    assert any("stay whole: 0" in note for note in method.notes)
    alone = Network("alone", lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2)))
    with pytest.raises(ModelError, match="none of the channels of Sequential"):
        CP(alone.make(), alone.inputs(), budget="params=0.9")
