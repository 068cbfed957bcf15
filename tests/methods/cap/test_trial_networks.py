"""CaP's trials: what is not computed again is what it was, and answers are those of all images."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
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
        found = kept.run(piece, lambda: model(images[piece]))
        return [name for name in model.runs if name != "norm"], found

    everything = ["a", "b", "twice", "twice", "c", "fc"]
    for piece in range(2):
        assert look(piece)[0] == everything
    again, _ = look(0)
    assert again == ["twice"]  # the second run of a layer
    model.c.weight.mul_(2.0)
    kept.changed(["c"])
    assert look(0)[0] == ["twice", "c", "fc"]
    model.b.weight.mul_(2.0)
    model.norm.running_mean.add_(1.0)  # type: ignore[union-attr, operator]
    kept.changed(["b", "fc"])
    ran, found = look(1)
    assert ran == everything[1:]
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
        kept.run(0, lambda: model(x))
    assert runs == [0, 1] * 3
    assert forwards == [1, 3]
    kept.changed(["0"])
    kept.run(0, lambda: model(x))
    assert forwards == [2, 4]
    kept.run(0, lambda: model(x))
    assert forwards == [2, 5]  # what is replaced gives its room back


class Low(nn.Conv2d):
    """A convolution with others inside, that run while it does."""

    def __init__(self) -> None:
        super().__init__(6, 6, 3, padding=1)
        self.down, self.up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.up(self.down(x))


class Gated(nn.Conv2d):
    """Squeeze and excitation behind its own answer."""

    def __init__(self) -> None:
        super().__init__(6, 6, 3, padding=1)
        self.gate = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = super().forward(x)
        return h * self.gate(h.mean((2, 3))).sigmoid()[:, :, None, None]


class Chain(nn.Module):
    """a, b, c and a linear layer; what happens between a and b is the subclass's."""

    middle: Callable[[], nn.Module] = staticmethod(lambda: nn.Conv2d(6, 6, 3, padding=1))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = nn.Conv2d(3, 6, 1), self.middle(), nn.Conv2d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.fc(self.c(F.relu(self.between(self.a(x)))).mean((2, 3)))
        return answer

    def between(self, h: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.b(F.relu_(h))
        return found


class Nested(Chain):
    middle = Low


class Excited(Chain):
    middle = Gated


class Halved(Chain):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        h.data.mul_(0.5)
        return super().between(h)


class Shifted(Chain):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        h.numpy()[:] += 1
        return super().between(h)


class Inferred(Chain):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            h = self.b(F.relu(h))
        return h.clone()


class Tied(Chain):
    """The layer that runs first has the later name."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Conv2d(6, 6, 1)
        self.c.weight = self.z.weight

    def between(self, h: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.b(F.relu(self.z(h)))
        return found


class Borrowed(Chain):
    """A weight is used before its own layer runs."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return super().between(F.conv2d(h, self.c.weight))


class Stacked(Chain):
    """A weight is borrowed within a list."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return super().between(F.conv2d(h, torch.stack([self.c.weight, self.c.weight]).mean(0)))


class Detached(Chain):
    """A weight is borrowed through `.data`."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return super().between(F.conv2d(h, self.c.weight.data))


class Viewed(Chain):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        h[:, :3].add_(1.0)
        return super().between(h)[:, :6]


@pytest.mark.parametrize(
    "kind", [Chain, Nested, Excited, Halved, Shifted, Inferred, Tied, Borrowed, Stacked, Detached, Viewed]
)
@torch.no_grad()
def test_whatever_has_changed_the_answer_is_that_of_the_whole_network(kind: type[Chain]) -> None:
    torch.manual_seed(0)
    model, images = kind().eval(), [torch.randn(2, 3, 6, 6) for _ in range(2)]
    fresh, twin = copy.deepcopy(model), model
    kept = KeptOutputs(twin)
    layers = [name for name, module in fresh.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for name in random.Random(0).choices(["", *layers], k=30):
        for net in (fresh, twin) if name else ():
            net.get_submodule(name).weight.mul_(1.5 if name in ("a", "fc") else 0.7)  # type: ignore[operator, union-attr]
        kept.changed([name] if name else [])
        for piece in range(2):
            assert torch.equal(kept.run(piece, lambda piece=piece: twin(images[piece])), fresh(images[piece]))  # type: ignore[misc]


@torch.no_grad()
def test_nothing_is_kept_of_a_network_that_draws() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).eval(), torch.randn(2, 3, 5, 5)
    kept, ran = KeptOutputs(model), []
    model[1].register_forward_hook(
        lambda _, args, out: ran.append(torch.equal(out, F.conv2d(*args, model[1].weight, model[1].bias)))
    )  # type: ignore[arg-type]
    for _ in range(3):
        kept.run(0, lambda: model[1](F.dropout(model[0](x), 0.5, True)))
    assert ran == [True] * 3


def test_a_network_measured_by_its_loss_keeps_no_outputs() -> None:
    networks, held, units = trials(Small().eval(), 64, loss=lambda output, target: (output**2).mean())
    held.by_accuracy = False
    held.whole = 1.0
    networks.quality([0.2] * units)
    assert networks._kept is None


def trials(
    model: nn.Module, images: int, loss: Any = F.cross_entropy, *, own: bool = False
) -> tuple[TrialNetworks, HeldOut, int]:
    """own: the labels are the model's own answers."""
    torch.manual_seed(1)
    graph = secateur.trace(model, torch.zeros(1, 3, 8, 8))
    found = families(graph)
    x = torch.randn(images, 3, 8, 8)
    y = model(x).argmax(1) if own else torch.arange(images) % 5
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
@pytest.mark.parametrize(("seed", "own"), [(0, False), (1, False), (2, False), (0, True)])
def test_answers_are_those_of_all_images(seed: int, own: bool) -> None:
    """A hundred states one after another, whatever was seen of them before; few answers are right, or most."""
    torch.manual_seed(seed)
    model = Small().eval()
    asked, held, units = trials(model, 1200, own=own)
    whole, _, _ = trials(model, 1200, own=own)
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
