"""The gate of GDP and its soft cost: the specification's worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from secateur.budget import Budget
from secateur.graph import trace
from secateur.methods.gdp.polarization import SoftCost, reach, smooth_count
from secateur.methods.kit.aim import Aim


def slope(a: float, eps: float) -> float:
    x = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    smooth_count(x, eps).backward()
    assert x.grad is not None
    return float(x.grad)


def test_the_gate_is_zero_at_zero_alone_and_even() -> None:
    a = torch.tensor([0.0, 0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
    g = smooth_count(a, 0.1)
    assert g[0] == 0
    assert (g.diff() > 0).all()
    assert torch.equal(g, smooth_count(-a, 0.1))
    assert g[3].item() == pytest.approx(0.90909, abs=5e-6)
    assert smooth_count(a, 0.01)[3].item() == pytest.approx(0.990099, abs=5e-7)


@pytest.mark.parametrize("eps", [0.1, 0.01, 1e-4])
def test_half_open_at_the_root_of_eps_and_steepest_at_a_quarter(eps: float) -> None:
    assert smooth_count(torch.tensor(math.sqrt(eps)).double(), eps).item() == pytest.approx(0.5)
    steepest = math.sqrt(eps / 3)
    assert smooth_count(torch.tensor(steepest).double(), eps).item() == pytest.approx(0.25)
    assert slope(steepest, eps) == pytest.approx(9 / (8 * math.sqrt(3 * eps)))
    assert slope(steepest, eps) > max(slope(0.99 * steepest, eps), slope(1.01 * steepest, eps))


def test_slopes_with_numbers() -> None:
    assert slope(math.sqrt(0.1 / 3), 0.1) == pytest.approx(2.05396, abs=5e-6)
    assert slope(math.sqrt(0.01 / 3), 0.01) == pytest.approx(6.49519, abs=5e-6)
    assert [slope(1.0, eps) for eps in (0.1, 0.01, 0.001, 0.0001)] == pytest.approx(
        [0.165, 0.0196, 0.0020, 0.0002], abs=3e-4
    )
    assert slope(0.0, 0.1) == 0  # zero is absorbing


def test_where_gates_are_nearly_shut() -> None:
    assert reach(1e-3, 0.1) == pytest.approx(0.0100, abs=5e-5)
    assert smooth_count(torch.tensor(reach(1e-3, 0.1)).double(), 0.1).item() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("kappa", "wanted"),
    [(0.01, [0.0098004, 0.0096048, 0.0094130]), (0.5, [2e-5, 1.6e-13]), (2.0, [-0.0299, 0.0876, -0.2147])],
)
def test_how_a_gate_near_zero_falls(kappa: float, wanted: list[float]) -> None:
    """a <- a - eta kappa g'(a): smooth for 2 eta kappa / eps < 1, at once at 1, back and forth and away above 2."""
    a, found = 0.01, []
    for _ in wanted:
        a -= 0.1 * kappa * slope(a, 0.1)
        found.append(a)
    assert found == pytest.approx(wanted, rel=5e-3, abs=1e-8 if kappa == 0.01 else 5e-5 if kappa == 2 else 1e-15)


def test_a_cost_of_products_and_its_gradient() -> None:
    """stem 3 -> 4, convolution 4 -> 3, classifier 3 -> 2, on 1x1 maps, with eps 0.01."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.Linear(3, 2)
    )
    graph = trace(model, torch.randn(1, 3, 1, 1))
    cost = SoftCost(graph, Aim(graph, Budget.parse("flops=0.4")))
    a = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([1, 1, 0, 0.1], [1, 0.5, 0.0])]
    widths = [smooth_count(each, 0.01).sum() for each in a]
    assert [w.item() for w in widths] == pytest.approx([2.480198, 1.951637], abs=5e-7)
    share, prices = cost.at(np.array([w.item() for w in widths]))
    assert cost.at(np.array([4.0, 3.0]))[0] == pytest.approx(1)
    assert 222 * share == pytest.approx(114.43265, abs=5e-6)
    linear = torch.stack([float(p) * w for p, w in zip(222 * prices, widths, strict=True)]).sum()
    assert linear.item() == pytest.approx(157.997, abs=5e-4)
    linear.backward()
    assert a[0].grad is not None
    assert a[0].grad.tolist() == pytest.approx([0.87373, 0.87373, 0, 222.8237], rel=1e-5)


def test_the_bound_that_is_worst_met_pulls() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    graph = trace(model, torch.randn(1, 3, 4, 4))
    aim = Aim(graph, Budget.parse("flops=0.9,params=0.5"))
    share, prices = SoftCost(graph, aim).at(np.array([3.0]))
    assert share == pytest.approx(aim.fraction({graph.groups[0].name: 3.0}))
    assert prices.tolist() == pytest.approx([(1 - share)])  # one channel of four less, and params are linear in it
