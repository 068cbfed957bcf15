"""Small images, networks and methods for the engine's tests; everything takes milliseconds."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from secateur.methods.dcpcac.narrowing import NarrowingMethod
from secateur.plan import Plan
from secateur.recipe import EngineConfig, Training
from secateur.training import Engine

CPU = EngineConfig(device="cpu", precision="fp32", checkpoint_minutes=1000.0)


@dataclass
class ToySplit:
    """Noisy blobs, one class a colour pattern; keeps the interface of `secateur.data.Split`."""

    count: int
    classes: int = 4
    offset: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.offset)
        self.labels = torch.from_numpy(rng.integers(0, self.classes, self.count))
        patterns = torch.from_numpy(np.random.default_rng(99).normal(size=(self.classes, 2, 6, 6))).float()
        patterns += 1.5 * torch.from_numpy(np.random.default_rng(98).normal(size=(self.classes, 2, 1, 1))).float()
        noise = torch.from_numpy(rng.normal(size=(self.count, 2, 6, 6))).float()
        self.images = patterns[self.labels] + 1.5 * noise

    def __len__(self) -> int:
        return self.count

    def batch_count(self, batch_size: int, drop_last: bool = False) -> int:
        return self.count // batch_size if drop_last else -(-self.count // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = np.arange(self.count)
        if shuffle:
            order = np.random.default_rng((seed, epoch)).permutation(self.count)
        for number in range(start, self.batch_count(batch_size, drop_last)):
            chosen = order[number * batch_size : (number + 1) * batch_size]
            images, labels = self.images[chosen], self.labels[chosen]
            if augment:
                flips = np.random.default_rng((seed, epoch, number)).random(len(chosen)) < 0.5
                images = torch.where(torch.from_numpy(flips)[:, None, None, None], images.flip(3), images)
            part = slice(rank * len(chosen) // world, (rank + 1) * len(chosen) // world)
            yield images[part], labels[part]


@dataclass
class ToyData:
    train: ToySplit = field(default_factory=lambda: ToySplit(70))
    validation: ToySplit | None = field(default_factory=lambda: ToySplit(30, offset=1))
    test: ToySplit = field(default_factory=lambda: ToySplit(40, offset=2))
    classes: int = 4


class ToyNet(nn.Module):
    """Convolution, batch norm, dropout, linear; random numbers are needed in every step."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class ToyMethod(nn.Module):
    """Keeps the engine's side of the method contract; its behaviour depends on state that is no tensor and on numpy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.strength, self.calls = 1e-3, {"backward": 0, "step": 0, "epoch": 0}
        self.history: list[float] = []
        self.followers: list[Any] = []
        self.register_buffer("trace", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def before_forward(self, target: torch.Tensor) -> None:
        self.told = target

    def after_forward(self, output: torch.Tensor, target: torch.Tensor) -> None:
        assert output.requires_grad
        assert torch.allclose(self.told, target)
        assert F.cross_entropy(output, target).isfinite()

    def loss(self) -> torch.Tensor:
        return self.strength * self.model.norm.weight.abs().sum()

    def after_backward(self) -> None:
        self.calls["backward"] += 1

    def after_step(self) -> None:
        self.calls["step"] += 1
        self.strength *= 1.0 + 0.1 * float(np.random.normal())
        self.trace += self.model.norm.weight.detach().sum()

    def after_epoch(self) -> None:
        self.calls["epoch"] += 1
        self.history.append(self.strength)

    def metrics(self) -> dict[str, float]:
        np.random.normal()  # asking must change nothing
        return {"strength": self.strength, "flops": 0.5}

    def state(self) -> dict[str, Any]:
        return {"strength": self.strength, "calls": self.calls, "history": self.history}

    def load_state(self, state: dict[str, Any]) -> None:
        self.strength, self.calls, self.history = state["strength"], dict(state["calls"]), list(state["history"])


class Narrower(NarrowingMethod):
    """Keeps the channels told after the steps told, whatever they are worth."""

    name = "narrower"

    def __init__(self, model: nn.Module) -> None:
        self.at = {4: [0, 2, 3, 5], 11: [2, 5]}
        super().__init__(model, torch.zeros(1, 2, 6, 6), budget="flops=0.9", steps=15)

    def after_step(self) -> None:
        super().after_step()
        if self.step in self.at:
            self.narrow({"conv": np.isin(np.arange(6), self.at[self.step])})

    def plan(self) -> Plan:
        return Plan(dict(self.masks))


def toy_net(dropout: float = 0.2) -> ToyNet:
    torch.manual_seed(7)
    return ToyNet(dropout)


def make_engine(folder: Any = None, config: EngineConfig = CPU, data: Any = None, **options: Any) -> Engine:
    options.setdefault("batch_size", 16)
    return Engine(data or ToyData(), config, seed=3, folder=folder, **options)


def ctrl_c() -> None:
    """What Python does at a SIGINT; `tests/runs/test_run_kills.py` sends real ones, to processes of their own."""
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler)
    handler(signal.SIGINT, None)


def short(**options: Any) -> Training:
    return Training(**{"epochs": 3, "lr": 0.05, **options})
