"""The loss further on as a quadratic form: against autograd, against sums place by place, and an upper bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.methods.dcp.heads import Head
from secateur.methods.dcp.quadratic import Slopes, dense_blocks, loss_slopes
from secateur.statistics.samples import Sampler


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.last = nn.Linear(6, 5)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu_(self.two(torch.relu_(self.one(x)))).mean((2, 3)))


BATCHES = [(_draw(6, 3, 6, 6, seed=n), torch.arange(6) % 5) for n in (1, 2)]


def _found(net: nn.Module, head: Head | None = None, positions: int = 100) -> tuple[dict[str, Slopes], Sampler]:
    layers: dict[str, Head | None] = {"two": None, "last": None, "one": head}
    sampler = Sampler([6, 6], positions, 0)
    found = loss_slopes(net, BATCHES, layers, F.cross_entropy, sampler, 1e9)
    assert found is not None
    return found, sampler


@pytest.mark.parametrize("layer", ["one", "two", "last"])
def test_the_gradient_at_the_whole_network_is_autograds(layer: str) -> None:
    """Where all places are looked at, d has not moved, and L_M asks for nothing."""
    net: Any = Net()
    found, sampler = _found(net)
    loss = torch.stack([F.cross_entropy(net(x), y) for x, y in BATCHES]).mean()
    module = getattr(net, layer)
    (expected,) = torch.autograd.grad(loss, [module.weight])
    assert found[layer].loss == pytest.approx(float(loss.detach()))
    for alone in (False, True):
        blocks = dense_blocks(net, [x for x, _ in BATCHES], layer, sampler)
        goal = found[layer].joint(blocks, 0.7, constant=False, alone=alone)
        gradient = goal.gradient(module.weight.detach().flatten(1)).view_as(expected)
        torch.testing.assert_close(gradient, 0.7 * expected, rtol=0.02, atol=2e-4)  # g is kept in bfloat16
        if not alone:
            assert goal.value(module.weight.detach().flatten(1)) == pytest.approx(0.7 * float(loss.detach()), rel=1e-6)


def test_a_classifier_inside_counts_for_what_is_before_it() -> None:
    net: Any = Net()
    head = Head("one", torch.zeros(4).double(), torch.ones(4).double(), _draw(5, 4, seed=7), torch.zeros(5).double())
    found, sampler = _found(net, head)
    loss = torch.stack([F.cross_entropy(head(net.one(x)), y) for x, y in BATCHES]).mean()
    (expected,) = torch.autograd.grad(loss, [net.one.weight])
    assert found["one"].loss == pytest.approx(float(loss.detach()))
    assert found["two"].loss != found["one"].loss
    goal = found["one"].joint(dense_blocks(net, [x for x, _ in BATCHES], "one", sampler), 1.0, constant=False)
    gradient = goal.gradient(net.one.weight.detach().flatten(1)).view_as(expected)
    torch.testing.assert_close(gradient, expected, rtol=0.02, atol=2e-4)


def test_place_by_place() -> None:
    """Value, gradient, the best constant: from moments and from the sums they stand for."""
    lam, c, p, n = 2.0, 3, 4.0, 40
    x, y = _draw(n, 1, 5), _draw(n, c, seed=1)
    g = (0.1 * _draw(n, c, seed=2)).bfloat16()
    g[7] = 0
    w = _draw(c, 5, seed=3).requires_grad_()
    slope = Slopes(places=p, loss=1.5, blocks=[g[:11], g[11:]])
    blocks = [(x[:25], y[:25]), (x[25:], y[25:])]

    def value(w: torch.Tensor, shift: torch.Tensor | float = 0.0) -> torch.Tensor:
        d = x[:, 0] @ w.T + shift - y
        wanted = g.double()
        ahead = p * (wanted * d).sum(1) + 0.5 * p**2 * wanted.square().sum(1) * d.square().sum(1)
        return (d.square().sum(1) / (2 * c) + lam * ahead).mean() + lam * 1.5

    fixed = slope.joint(blocks, lam, constant=False)
    assert fixed.value(w.detach()) == pytest.approx(float(value(w.detach())))
    torch.testing.assert_close(fixed.gradient(w.detach()), torch.autograd.grad(value(w), [w])[0])
    free = slope.joint(blocks, lam, constant=True)
    best = free.shift(w.detach()).requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(value(w.detach(), best), [best])[0], torch.zeros(c).double())
    assert free.value(w.detach()) == pytest.approx(float(value(w.detach(), best.detach())))
    alone = slope.joint(blocks, lam, constant=False, alone=True)
    ahead = value(w) - (x[:, 0] @ w.T - y).square().sum(1).mean() / (2 * c)
    torch.testing.assert_close(alone.gradient(w.detach()), torch.autograd.grad(ahead, [w])[0])


def test_the_curvature_is_an_upper_bound() -> None:
    g, d = _draw(50, 9, 4), _draw(50, 9, 4, seed=1)  # samples, places, outputs
    exact = (g * d).sum((1, 2)).square()
    bound = 9 * (g.square().sum(2) * d.square().sum(2)).sum(1)
    assert (exact <= bound).all()


def test_fewer_places_stand_for_all() -> None:
    net = Net()
    whole, few = _found(net)[0]["one"], _found(net, positions=5)[0]["one"]
    assert whole.places == few.places == 36
    assert [len(block) for block in few.blocks] == [6 * 5] * 2
    assert [len(block) for block in whole.blocks] == [6 * 36] * 2
    assert loss_slopes(net, BATCHES, {"one": None}, F.cross_entropy, Sampler([6, 6], 5, 0), 100) is None
