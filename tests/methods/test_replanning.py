"""Sizes in code that only the plan's own widths meet: the plan is made anew around them, by every kind of method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.graph import Graph
from secateur.methods import METHODS, Method, MethodRow, contract
from secateur.testing._subject import train

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4
HALVES = (16, 8)  # the widths at which the code of the network runs


class Picky(nn.Module):
    """Two branches that are added, whose width the code states, but only where it is none of two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(16, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU())
        self.fc = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(self.stem(x))
        if x.shape[1] not in HALVES:
            x = x.view(len(x), 16, 8, 8)
        return self.fc(self.b(x).mean((2, 3)))


@pytest.fixture(autouse=True)
def _only_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(graph: Graph, seed: int) -> Iterator[dict[str, Any]]:
        generator = np.random.default_rng(seed)
        yield {g.name: generator.permutation(g.width) < -(-g.width // 2) for g in graph.groups}

    monkeypatch.setattr(contract, "trial_widths", halves)


def ready(row: MethodRow, **options: Any) -> Method:
    """A method just before finish()."""
    small = {"functionality": {"ascent_steps": 2, "restarts": 1, "size": 8}}.get(row.name, {})
    method = row.factory(Picky(), IMAGES[:2], budget="flops=0.62", steps=4, seed=0, **small, **options)
    if row.acts == "while training":
        train(method, [(IMAGES, LABELS)] * 4)
    if row.needs == "calibration":
        method.collect([(IMAGES[:8], LABELS[:8]), (IMAGES[8:], LABELS[8:])], F.cross_entropy)
    return method


@pytest.mark.parametrize(
    "row", [row for row in METHODS if row.granularity.startswith("channel")], ids=lambda row: row.name
)
def test_a_plan_is_made_anew_around_a_size_in_code(row: MethodRow) -> None:
    method = ready(row)
    wanted = method.plan().widths
    small = method.finish()
    result = method.result
    assert result is not None
    assert result.verification is not None
    assert result.verification.passed
    assert result.after.macs <= 0.62 * result.before.macs
    assert small(IMAGES).shape == (16, 4)
    settled = [name for name, width in wanted.items() if name.startswith("a.0") and width not in HALVES]
    if settled and not method.narrows:
        assert small.a[0].out_channels in HALVES
        assert any("16" in note or "view" in note for note in method.notes)
        assert method.finish() is not small
        assert method.result.plan == result.plan


def test_what_was_wanted_elsewhere_stays() -> None:
    """Groups that the size does not concern keep what the method chose, as far as the budget goes on being met."""
    method = ready(next(row for row in METHODS if row.name == "l1"))
    wanted = method.plan()
    assert wanted.widths["a.0"] not in HALVES
    method.finish()
    found = method.result.plan
    assert "a.0" not in found.masks  # frozen, so the others give up more
    for name, mask in found.masks.items():
        assert not (mask & ~wanted.masks[name]).any(), "a channel that was not wanted stays"


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("method", ["cp", "l1", "prunenet", "cap"])
def test_prune_goes_the_same_way(method: str, inplace: bool) -> None:
    model = Picky()
    options: dict[str, Any] = {"method": method, "budget": "flops=0.62", "data": [(IMAGES, LABELS)]}
    result = secateur.prune(model, IMAGES[:2], inplace=inplace, **options)
    assert result.verification.passed
    assert result.model.a[0].out_channels in HALVES
    assert (result.model is model) == inplace
    wanted = secateur.prune(Picky(), IMAGES[:2], **options).model
    assert torch.equal(result.model.eval()(IMAGES), wanted.eval()(IMAGES))
