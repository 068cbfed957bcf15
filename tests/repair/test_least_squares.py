"""Least squares after any criterion: what it makes up for, what it leaves, and what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError
from secateur.graph.modules import clone_module
from secateur.methods import score
from secateur.plan import Plan
from secateur.repair import REPAIRS, Case, mend, repair
from secateur.repair.least_squares import LeastSquares, norm_scale
from secateur.testing.networks import NETWORKS, Network


def seen(network: Network) -> nn.Module:
    """The network with norms that have seen images."""
    model = network.make()
    with torch.no_grad():
        for images, _ in network.batches(20):
            model(images)
    return model.eval()


def cut(model: nn.Module, network: Network, *settings: dict[str, object]) -> tuple[nn.Module, list[str]]:
    graph = secateur.trace(model, network.inputs())
    plan = secateur.allocate(score("l1", graph), graph, "flops=0.6", allocator="uniform")
    twin = clone_module(model, lambda tensor: tensor.detach().clone())
    repairs = [LeastSquares(**each) for each in settings]
    notes = mend(twin, lambda: model, graph, plan, repairs, network.batches(20))
    return secateur.apply(twin, network.inputs(), plan).model.eval(), notes


def error(model: nn.Module, small: nn.Module, network: Network) -> float:
    images = torch.cat([images for images, _ in network.batches(10, seed=9)])
    with torch.no_grad():
        return float((model(images) - small(images)).square().mean())


@pytest.mark.parametrize("network", [n for n in NETWORKS if n.name != "shuffle"], ids=lambda n: n.name)
def test_it_hurts_less_on_images_it_has_not_seen(network: Network) -> None:
    model = seen(network)
    before = copy.deepcopy(model.state_dict())
    small, notes = cut(model, network, {})
    bare, _ = cut(model, network)
    assert error(model, small, network) < 0.4 * error(model, bare, network)
    assert notes == []
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("first", ["compensation", "least_squares"])
@pytest.mark.parametrize(("bias", "norm"), [(False, True), (True, True), (True, False)])
def test_what_a_repair_before_it_has_added_is_not_added_twice(first: str, bias: bool, norm: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.Sigmoid(), nn.Conv2d(12, 12, 3, bias=bias), *([nn.BatchNorm2d(12)] if norm else []),
        nn.Sigmoid(), nn.Conv2d(12, 4, 1),
    ).eval()  # fmt: skip
    images = torch.randn(64, 3, 8, 8)
    alone, after = (
        secateur.prune(model, images[:1], method="l1", budget="flops=0.4", repair=each, data=[images]).model
        for each in (["least_squares"], [first, "least_squares"])
    )
    once, twice = (each[2].bias if bias else each[3].running_mean for each in (alone, after))
    assert (once - twice).norm() < 0.1 * once.norm()


def test_layers_that_read_in_groups_are_left() -> None:
    network = next(n for n in NETWORKS if n.name == "shuffle")
    model = seen(network)
    graph = secateur.trace(model, network.inputs())
    plan = secateur.allocate(score("l1", graph), graph, "flops=0.6")
    case = Case(clone_module(model, torch.clone), lambda: model, graph, plan)
    with torch.no_grad():
        LeastSquares().apply(case, list(network.batches(2)))
    assert torch.equal(case.model.first[0].weight, Case(model, lambda: model, graph, plan).model.first[0].weight)


class Branch(nn.Module):
    """A branch of its own beside a shortcut, so that one can be moved without the other."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.side, self.inner = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 6, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.side(x)
        y = y + self.norm(self.last(self.inner(x).relu()))
        result: torch.Tensor = self.fc(y.relu().mean((2, 3)))
        return result


@pytest.mark.parametrize("norm", [True, False])
def test_a_shifted_shortcut_is_made_up_for(norm: bool) -> None:
    """What a constant per channel does to the shortcut, the last layer of the branch takes away again."""
    network = Network("branch", lambda: Branch(norm=norm))
    model = seen(network)
    images = list(network.batches(8))
    with torch.no_grad():
        model.last.weight[:, -1] = 0  # what goes did nothing: all that is to be made up for is the shift
        if norm:
            model.norm.weight.copy_(torch.linspace(-1, 2, 6))
        graph = secateur.trace(model, network.inputs())
        inner = next(g.name for g in graph.groups if any(m.name == "last.weight" for m in g.consumers()))
        masks = {g.name: np.arange(g.width) < g.width - (g.name == inner) for g in graph.groups}
        wanted = model(images[0][0])
        for corrected in (True, False):
            case = Case(clone_module(model, torch.clone), lambda: model, graph, Plan(masks))
            case.model.side.bias += torch.linspace(-0.3, 0.3, 6)
            LeastSquares(shortcuts=corrected).apply(case, images)
            assert (float((case.model(images[0][0]) - wanted).abs().max()) < 1e-5) == corrected


def test_nothing_cut_before_means_nothing_changes() -> None:
    network = next(n for n in NETWORKS if n.name == "no norm")
    model = seen(network)
    graph = secateur.trace(model, network.inputs())
    masks = {g.name: np.ones(g.width, dtype=np.bool_) for g in graph.groups}
    last = graph.groups[-1]
    masks[last.name][0] = False
    with torch.no_grad():
        consumer = last.consumers()[0]
        model.get_parameter(consumer.name)[:, 0] = 0
        twin = clone_module(model, torch.clone)
        mend(twin, lambda: model, graph, Plan(masks), [LeastSquares()], network.batches(4))
        for name, value in model.named_parameters():
            if not any(m.name == name and m.role == "producer" for m in last.members):
                torch.testing.assert_close(twin.get_parameter(name), value)


def test_scales_of_norms() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([4.0, 1.0, 9.0]) - norm.eps)
        norm.weight.copy_(torch.tensor([2.0, 0.0, -1.0]))
    scale = norm_scale(norm)
    assert isinstance(scale, torch.Tensor)
    assert scale.tolist() == pytest.approx([1.0, 0.0, -3.0])
    assert norm_scale(None) == 1.0


def test_seeded_and_listed() -> None:
    network = NETWORKS[1]
    model = seen(network)
    first, again, other = (cut(model, network, {"seed": s})[0].state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.values(), again.values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.values(), other.values(), strict=True))
    assert any(row.name == "least_squares" for row in REPAIRS)
    assert isinstance(repair("cp", positions=3), LeastSquares)
    with pytest.raises(ConfigError, match="positions"):
        repair("least_squares", positions=0)


class Gain(nn.Conv2d):
    """Three times what its weights make."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


class Same(nn.Conv2d):
    """Pads by itself, behind, so that there are as many outputs as inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def threefold(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
    return 3 * output


def _hooked() -> nn.Conv2d:
    layer = nn.Conv2d(16, 16, 3, padding=1)
    layer.register_forward_hook(threefold)
    return layer


OWN_WAYS: dict[str, Callable[[], nn.Conv2d]] = {
    "gain": lambda: Gain(16, 16, 3, padding=1), "same": lambda: Same(16, 16, 2), "hook": _hooked,
}  # fmt: skip


@pytest.mark.parametrize("way", OWN_WAYS)
@pytest.mark.parametrize("repair", ["least_squares", "compensation"])
def test_layers_that_compute_in_a_way_of_their_own_are_mended_too(way: str, repair: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), OWN_WAYS[way](), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()  # fmt: skip
    data, x = [torch.randn(32, 3, 8, 8) for _ in range(4)], torch.randn(64, 3, 8, 8)
    bare = secateur.prune(net, x[:1], budget="flops=0.5").model
    mended = secateur.prune(net, x[:1], budget="flops=0.5", repair=[repair], data=data).model
    with torch.no_grad():
        assert float((mended(x) - net(x)).square().mean()) < 0.3 * float((bare(x) - net(x)).square().mean())


class Frames(nn.Module):
    """Four frames of a clip lie side by side in the batch: two images are none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        clips = x.view(len(x) // 4, 4, *x.shape[1:])
        x = self.second(clips.roll(1, 1).reshape(x.shape)).relu().mean((2, 3))
        found: torch.Tensor = self.head(x.view(len(x) // 4, 4, -1).mean(1))
        return found


@pytest.mark.parametrize("way", [{"repair": ["least_squares"]}, {"repair": ["compensation"]}, {"method": "cp"}])
def test_batches_are_shown_as_they_come(way: dict[str, Any]) -> None:
    net, data = Frames().eval(), [torch.randn(8, 3, 8, 8) for _ in range(3)]
    shown = [(x, None) for x in data] if "method" in way else data
    assert secateur.prune(net, data[0][:4], budget="flops=0.5", data=shown, **way).verification.exact
