"""Widths that the model's code refuses while the model is narrowed, and outputs that are no class scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur.graph import Graph, SizeConflict
from secateur.methods import contract
from secateur.methods.dcpcac import DCPCAC
from secateur.testing._subject import train

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4
RUNS = (16, 8)  # the widths of `a` with which its code runs


class Picky(nn.Module):
    """Splits a feature map into two halves of sixteen, as C2f does, unless it happens to have one of two widths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(16, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU())
        self.fc = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(self.stem(x))
        if x.shape[1] not in RUNS:
            x = torch.cat(x.split((8, 8), 1), 1)
        return self.fc(self.b(x).mean((2, 3)))


def pruner(steps: int = 8) -> DCPCAC:
    options: dict[str, Any] = {"metric": "gradient", "evidence": 1, "every": 1, "end": 0.9}
    return DCPCAC(Picky(), IMAGES[:2], budget="flops=0.55", steps=steps, seed=0, **options)


@pytest.fixture
def _only_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial cuts of the beginning meet widths that run only."""

    def halves(graph: Graph, seed: int) -> Iterator[dict[str, Any]]:
        yield {g.name: np.arange(g.width) < -(-g.width // 2) for g in graph.groups}

    monkeypatch.setattr(contract, "trial_widths", halves)


@pytest.mark.usefixtures("_only_halves")
def test_channels_that_the_code_holds_stay_while_training_and_the_others_go() -> None:
    method = pruner()
    train(method, [(IMAGES, LABELS)] * 8)
    assert method.model.a[0].out_channels == 16
    assert method.model.stem[0].out_channels < 12
    assert method.model.b[0].out_channels < 20
    (note,) = [note for note in method.notes if "While training" in note]
    assert "a.0" in note
    assert "split" in note
    method.finish()
    result = method.result
    assert result is not None
    assert result.verification is not None
    assert result.verification.passed
    assert result.after.macs <= 0.55 * result.before.macs


@pytest.mark.usefixtures("_only_halves")
def test_what_is_held_is_held_after_going_on() -> None:
    method = pruner()
    train(method, [(IMAGES, LABELS)] * 6)
    assert method.state()["held"] == ["a.0"]
    again = pruner()
    again.load_state_dict(method.state_dict())
    again.load_state(method.state())
    assert again.state() == method.state()
    train(again, [(IMAGES, LABELS)] * 2)
    assert again.model.a[0].out_channels == 16
    assert sum("While training" in note for note in again.notes) == 1


@pytest.mark.usefixtures("_only_halves")
def test_a_group_without_conflict_is_narrowed_with_the_rest() -> None:
    method = pruner()
    masks = {g.name: np.arange(g.width) < g.width - 3 for g in method.graph.groups}
    with pytest.raises(SizeConflict):
        method.narrow(masks)
    assert method.narrow_around(masks) == {"a.0"}
    assert [getattr(method.model, name)[0].out_channels for name in ("stem", "a", "b")] == [9, 16, 17]
    assert method.narrow_around(masks | {"a.0": np.arange(16) < 8}) == set()
    assert method.model.a[0].out_channels == 8
