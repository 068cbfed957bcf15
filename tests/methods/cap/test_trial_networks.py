"""CaP's trials: what is not computed again is what it was, and answers are those of all images."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.methods.cap.ranking import Ranked
from secateur.methods.cap.trial_networks import KeptOutputs, TrialNetworks
from secateur.methods.kit.reading import families
from secateur.statistics.gather import gather
from secateur.statistics.held_out import HeldOut
from secateur.statistics.moments import Moments


class Residual(nn.Module):
    """A sum, a layer that runs twice, and activations that write over what a layer gave."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.twice, self.fc = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        self.runs: list[str] = []
        for name, module in self.named_children():
            forward = module.forward
            module.forward = lambda *args, name=name, forward=forward: (self.runs.append(name), forward(*args))[1]  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu_(self.a(x))
        h = h + F.relu(self.norm(self.b(h)))
        h = self.twice(F.relu(self.twice(h)))
        found: torch.Tensor = self.fc(F.relu(self.c(h)).mean((2, 3)))
        return found


@torch.no_grad()
def test_only_what_comes_behind_a_change_runs_again() -> None:
    torch.manual_seed(0)
    model, images = Residual().eval(), [torch.randn(2, 3, 6, 6) for _ in range(2)]
    kept = KeptOutputs(model)

    def look(piece: int) -> tuple[list[str], torch.Tensor]:
        model.runs.clear()
        found: list[torch.Tensor] = []
        kept.run(piece, lambda: (found.append(model(images[piece])) or 0, 0))
        return [name for name in model.runs if name != "norm"], found[0]

    everything = ["a", "b", "twice", "twice", "c", "fc"]
    for piece in range(2):
        assert look(piece)[0] == everything
    again, _ = look(0)
    assert again == ["a", "twice"]  # what was written over, and the second run of a layer
    model.c.weight.mul_(2.0)
    kept.changed(["c"])
    assert look(0)[0] == ["a", "twice", "c", "fc"]
    model.b.weight.mul_(2.0)
    model.norm.running_mean.add_(1.0)  # type: ignore[union-attr, operator]
    kept.changed(["b", "fc"])
    ran, found = look(1)
    assert ran == everything
    fresh = Residual().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(found, fresh(images[1]))
    assert torch.equal(look(0)[1], fresh(images[0]))


@torch.no_grad()
def test_outputs_without_room_are_computed_each_time() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), torch.randn(2, 3, 5, 5)
    runs: list[int] = []
    for number, layer in enumerate(model):
        layer.register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    forwards = [0, 0]
    for number, layer in enumerate(model):
        forward = layer.forward

        def counted(y: torch.Tensor, number: int = number, forward: Any = forward) -> Any:
            forwards[number] += 1
            return forward(y)

        layer.forward = counted
    one = x.new_empty(2, 4, 5, 5).nbytes
    kept = KeptOutputs(model, most=2 * one - 1)
    for _ in range(3):
        kept.run(0, lambda: (int(model(x).numel()), 0))
    assert runs == [0, 1] * 3
    assert forwards == [1, 3]
    kept.changed(["0"])
    kept.run(0, lambda: (int(model(x).numel()), 0))
    assert forwards == [2, 4]
    kept.run(0, lambda: (int(model(x).numel()), 0))
    assert forwards == [2, 5]  # what is replaced gives its room back


def trials(model: nn.Module, images: int, loss: Any = F.cross_entropy) -> tuple[TrialNetworks, HeldOut, int]:
    torch.manual_seed(1)
    graph = secateur.trace(model, torch.zeros(1, 3, 8, 8))
    found = families(graph)
    x, y = torch.randn(images, 3, 8, 8), torch.arange(images) % 5
    held = HeldOut(images, loss)
    moments = Moments([reading.layer for family in found for reading in family.readings])
    gather(model, list(held.rest([(x, y)], torch.device("cpu"))), [moments])
    ranked = [Ranked(f, model, moments, [1] * len(f.groups)) for f in found]
    held.begin(model)
    return TrialNetworks(model, ranked, held), held, len(ranked)


class Small(nn.Module):
    """Two blocks with a sum, norms and an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.b, self.nb = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.c, self.d, self.fc = nn.Conv2d(12, 16, 3), nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu_(self.na(self.a(x)))
        h = h + F.relu(self.nb(self.b(h)))
        found: torch.Tensor = self.fc(self.d(F.relu_(self.c(h))).mean((2, 3)))
        return found


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_of_all_images(seed: int) -> None:
    """A hundred states one after another, whatever was seen of them before."""
    torch.manual_seed(seed)
    model = Small().eval()
    asked, held, units = trials(model, 1200)
    whole, _, _ = trials(model, 1200)
    rng = np.random.default_rng(seed)
    assert len(held.pieces()) == 5
    for _ in range(100):
        shares = tuple(rng.choice([0.0, 0.3, 0.6, 0.9], size=rng.integers(1, units + 1)))
        counts = whole.removed(shares)
        whole._write(counts)
        truth = held.measure(whole._twin)
        for bar in (truth, truth + 1e-9, rng.random(), truth - 0.05):
            assert asked.reaches(shares, bar) == (truth >= bar), (shares, bar)
        if rng.random() < 0.1:
            assert asked.quality(shares) == truth


@torch.no_grad()
def test_a_clear_answer_needs_few_images() -> None:
    torch.manual_seed(0)
    asked, held, _ = trials(Small().eval(), 1200)
    pieces: list[int] = []
    inner = held.right
    held.right = lambda model, piece: (pieces.append(piece), inner(model, piece))[1]  # type: ignore[method-assign]
    assert not asked.reaches((0.6,), 1.1)
    assert asked.reaches((0.6,), 0.0)
    assert not pieces
    assert not asked.reaches((0.6,), 0.95)  # of random weights
    assert pieces == [0]
    assert not asked.reaches((0.6,), 0.9)  # goes on from what it has seen
    assert pieces in ([0], [0, 1])
    asked.quality((0.6,))
    assert pieces == [0, 1, 2, 3, 4]


@torch.no_grad()
def test_a_loss_is_of_all_images() -> None:
    torch.manual_seed(0)

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output.mean(1) - target.float()).square().mean()

    asked, held, units = trials(Small().eval(), 160, loss)
    held.by_accuracy = False
    held.whole = held.mean_loss(asked._twin)
    for shares in itertools.islice(itertools.product((0.0, 0.9), repeat=units), 4):
        quality = asked.quality(shares)
        assert asked.reaches(shares, quality)
        assert not asked.reaches(shares, quality + 1e-6)
