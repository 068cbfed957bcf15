"""Variance matching: corrections worked out by hand, and networks whose channels get their size back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.plan import Plan
from secateur.repair import Case
from secateur.repair.variance import Sums, Variance

A = torch.tensor([[1.0, -1.0, 2.0, -2.0]])


def correction(before: torch.Tensor, now: torch.Tensor, *, shrink: bool = True) -> tuple[float, float]:
    sums = Sums()
    for a, p in zip(before.split(2, 1), now.split(2, 1), strict=True):  # two batches
        sums.add(a, p)
    scale, added = sums.correction(shrink=shrink)
    return scale.item(), added.item()


def test_by_hand() -> None:
    assert correction(A, A / 2 + 3) == pytest.approx((2.0, -6.0))  # the old signal at half its size
    b = torch.tensor([[1.0, 1.0, -1.0, -1.0]])  # half of the variance of what was sqrt(2) as large, and resembles it so
    assert correction(b + b.flip(1)[:, [0, 2, 1, 3]], b) == pytest.approx((1 + 0.5 * (2**0.5 - 1), 0.0))
    assert correction(b + b.flip(1)[:, [0, 2, 1, 3]], b, shrink=False) == pytest.approx((2**0.5, 0.0))
    assert correction(A, -A / 2) == pytest.approx((1.0, 0.0))  # opposed: not trusted
    assert correction(A + 5, torch.full_like(A, 2.0)) == pytest.approx((1.0, 3.0))  # nothing left but a constant
    assert correction(torch.full_like(A, 5.0), A) == pytest.approx((1.0, 5.0))  # a constant before: no correlation


def repaired(
    net: nn.Module, data: list[Any], removed: list[int], groups: int = 1, **settings: Any
) -> tuple[Any, list[str]]:
    graph = secateur.trace(net, data[0][0])
    masks = {group.name: np.ones(group.width, dtype=np.bool_) for group in graph.groups}
    for mask in list(masks.values())[:groups]:
        mask[removed] = False
    case = Case(copy.deepcopy(net), lambda: copy.deepcopy(net), graph, Plan(masks))
    with torch.no_grad():
        Variance(**settings).apply(case, data)
        case.clear()
    return case.model, case.notes


def batches(*shape: int) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(*shape, generator=generator, dtype=torch.float64), torch.zeros(shape[0])) for _ in range(3)]


def twins(norm: bool) -> nn.Sequential:
    """Convolutions of which the first makes every channel twice: one of each pair is enough."""
    torch.manual_seed(0)
    first = nn.Conv2d(2, 6, 3, padding=1)
    with torch.no_grad():
        first.weight[3:], first.bias[3:] = first.weight[:3], first.bias[:3]  # type: ignore[index]
    layers: list[nn.Module] = [first, nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, bias=not norm)]
    if norm:
        behind = nn.BatchNorm2d(4)
        behind.running_mean.normal_()  # type: ignore[union-attr]
        behind.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        layers.append(behind)
    with torch.no_grad():  # both twins are read alike, so that half of them gives half the signal
        layers[2].weight[:, 3:] = layers[2].weight[:, :3]  # type: ignore[index]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(4, 3, 1)).double().eval()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shrink", ["correlation", "none"])
def test_lost_twins_are_made_up_for_exactly(norm: bool, shrink: str) -> None:
    net, data = twins(norm), batches(4, 2, 6, 6)
    model, notes = repaired(net, data, [3, 4, 5], shrink=shrink)
    x = data[0][0]
    cut = copy.deepcopy(net)
    with torch.no_grad():
        cut[2].weight[:, 3:] = 0  # type: ignore[index]
        torch.testing.assert_close(model(x), net(x))
        assert not torch.allclose(cut(x), net(x), atol=1e-3)
    assert not notes


def test_layers_behind_see_what_is_corrected() -> None:
    """Three layers in a row: with full corrections each channel has the mean and variance that it had."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Conv2d(8, 2, 1)).double().eval()
    (x, _), *_ = data = batches(64, 3, 12, 12)[:1]
    model, _ = repaired(net, data, [0, 2, 5], 3, shrink="none")
    for stop in (3, 5, 7):
        kept = [1, 3, 4, 6, 7] if stop < 7 else [0, 1]
        before, now = (each[:stop](x).transpose(0, 1)[kept].flatten(1) for each in (net, model))
        torch.testing.assert_close(now.mean(1), before.mean(1))
        torch.testing.assert_close(now.var(1), before.var(1))


class Twice(nn.Module):
    """A layer that is called twice, and one without a place for a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(4, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        found: torch.Tensor = self.last(self.again(self.again(x).relu()).relu())
        return found


def test_what_is_called_twice_is_left_and_said() -> None:
    torch.manual_seed(0)
    net, data = Twice().double().eval(), batches(50, 4)
    model, notes = repaired(net, data, [1])
    assert notes == ["Variances are left as they are in layers that are not called just once: again."]
    assert torch.equal(model.again.weight[0, [0, 2, 3, 4, 5]], net.again.weight[0, [0, 2, 3, 4, 5]])
    ratio = model.last.weight[:, 0] / net.last.weight[:, 0]
    assert not torch.allclose(ratio, torch.ones(2, dtype=torch.float64))  # scaled, and nothing is added
    assert model.last.bias is None
