"""Toy networks with the couplings that matter to a method, small enough to be trained and cut in a moment.

Every one takes colour images of 8x8 and tells five classes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 5


def conv(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


def block(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, its batch norm and an activation."""
    return nn.Sequential(*conv(inputs, outputs, kernel, stride=stride, groups=groups), nn.ReLU())


class Head(nn.Module):
    """The mean over the image, then one linear layer."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


class Residual(nn.Module):
    """Two blocks with identity shortcuts, and a wide cheap layer behind them that makes any budget reachable."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 24)
        self.first = nn.Sequential(*block(24, 32), *conv(32, 24))
        self.second = nn.Sequential(*block(24, 32), *conv(32, 24))
        self.neck = block(24, 96, 1)
        self.head = Head(96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.first(x))
        x = F.relu(x + self.second(x))
        result: torch.Tensor = self.head(self.neck(x))
        return result


class Projection(nn.Module):
    """A block that narrows the image, with a convolution in its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16)
        self.body = nn.Sequential(*block(16, 24, stride=2), *conv(24, 24))
        self.shortcut = nn.Sequential(*conv(16, 24, 1, stride=2))
        self.head = Head(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        result: torch.Tensor = self.head(F.relu(self.body(x) + self.shortcut(x)))
        return result


class Concatenation(nn.Module):
    """Dense connections: every layer reads all that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16)
        self.first = block(16, 16)
        self.second = block(32, 16)
        self.head = Head(48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(x)], 1)
        x = torch.cat([x, self.second(x)], 1)
        result: torch.Tensor = self.head(x)
        return result


class PreActivation(nn.Module):
    """Norms and activations before the convolutions, as in the second version of residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), *block(16, 24), nn.Conv2d(24, 16, 3, 1, 1, bias=False))
        self.norm = nn.BatchNorm2d(16)
        self.head = Head(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        result: torch.Tensor = self.head(F.relu(self.norm(x + self.body(x))))
        return result


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 4
        self.stem = block(3, 24)
        self.first = block(24, 24, 1, groups=4)
        self.second = block(24, 24, 1, groups=4)
        self.head = Head(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        result: torch.Tensor = self.head(self.second(x))
        return result


def grouped() -> nn.Module:
    """A grouped convolution between two ordinary ones."""
    return nn.Sequential(block(3, 16), block(16, 32, groups=4), block(32, 24, 1), Head(24))


class Depthwise(nn.Module):
    """An inverted residual: wide inside, filtered channel by channel, with a linear bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 12)
        self.body = nn.Sequential(*block(12, 36, 1), *block(36, 36, groups=36), *conv(36, 12, 1))
        self.head = Head(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        result: torch.Tensor = self.head(x + self.body(x))
        return result


def no_norm() -> nn.Module:
    """Convolutions with biases, a flattening and a hidden linear layer; no batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, CLASSES),
    )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """How to make one network, and images for it; everything depends on the seed given, and on nothing else.

    build: makes it with random weights; its output is one number for each class. shape: of one image.
    fine: some of its channels are so small that any budget can be met within 1%.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 8, 8)
    classes: int = CLASSES
    fine: bool = False

    def make(self, seed: int = 0) -> nn.Module:
        """The network; PyTorch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def inputs(self) -> torch.Tensor:
        """Two images to trace with."""
        return torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(1))

    def batches(self, count: int, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of eight images whose brightness tells their class."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            labels = torch.randint(0, self.classes, (8,), generator=generator)
            images = torch.randn(8, *self.shape, generator=generator)
            yield images + labels.view(-1, *[1] * len(self.shape)) / self.classes, labels


#: Toy networks with every kind of coupling, on which `check_method` tries a method.
NETWORKS: tuple[Network, ...] = (
    Network("residual", Residual, fine=True),
    Network("projection", Projection),
    Network("concatenation", Concatenation),
    Network("grouped", grouped),
    Network("depthwise", Depthwise),
    Network("shuffle", Shuffle),
    Network("pre-activation", PreActivation),
    Network("no norm", no_norm),
)
