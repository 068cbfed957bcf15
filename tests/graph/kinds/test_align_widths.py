"""`align` speaks of the widths of layers: what is a multiple already may shrink, and sums of parts end at multiples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _judge import TOLERANCE, error, image, macs, relu_conv, unique
from torch import nn
from torch.nn import functional as F

import secateur

LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Pixels(nn.Module):
    """Pixel shuffle: a channel behind it is four channels before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = relu_conv(3, 32), nn.Conv2d(32, 64, 3, padding=1), relu_conv(16, 32)
        self.out = nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(F.pixel_shuffle(self.up(self.a(x)), 2)))


class Gated(nn.Module):
    """A gated linear unit: a layer of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = relu_conv(3, 32), nn.Conv2d(32, 64, 3, padding=1), relu_conv(32, 32)
        self.out = nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(F.glu(self.gate(self.a(x)), 1)))


class Parts(nn.Module):
    """One convolution whose outputs are three parts of different use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.parts = relu_conv(3, 32), nn.Conv2d(32, 64, 3, padding=1)
        self.b, self.c, self.d = relu_conv(12, 16), relu_conv(20, 16), relu_conv(32, 16)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.parts(self.a(x)).relu()
        return self.out(self.b(x[:, :12]) + self.c(x[:, 12:32]) + self.d(x[:, 32:]))


class Resnext(nn.Module):
    """Grouped convolutions and a group norm, four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32)
        self.b, self.c = nn.Conv2d(32, 64, 3, padding=1, groups=4), relu_conv(64, 32)
        self.out = nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.c(self.b(self.norm(self.a(x)).relu()).relu()))


class Dense(nn.Module):
    """Concatenations of what was made before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = relu_conv(3, 16), relu_conv(16, 24), relu_conv(40, 24), relu_conv(64, 32)
        self.out = nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = torch.cat((x, self.b(x)), 1)
        x = torch.cat((self.c(x), x), 1)
        return self.out(self.d(x))


class Heads(nn.Module):
    """Eight heads of four features, keys and values in one layer, queries in another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.kv, self.p = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(32, 32)
        self.out = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, -1, 4).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, -1, 4).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(x + self.p(y.transpose(1, 2).flatten(2)))


class Flattened(nn.Module):
    """Maps flattened into a layer: a channel is sixteen of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = relu_conv(3, 32), relu_conv(32, 32)
        self.fc, self.out = nn.Linear(32 * 16, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fc(F.max_pool2d(self.b(self.a(x)), 2).flatten(1)).relu())


NETS: list[tuple[Callable[[], nn.Module], tuple[int, ...], int]] = [
    (Pixels, (2, 3, 8, 8), 8), (Pixels, (2, 3, 8, 8), 16), (Gated, (2, 3, 8, 8), 8), (Gated, (2, 3, 8, 8), 16),
    (Parts, (2, 3, 8, 8), 8), (Parts, (2, 3, 8, 8), 16), (Resnext, (2, 3, 8, 8), 8), (Resnext, (2, 3, 8, 8), 4),
    (Dense, (2, 3, 8, 8), 8), (Heads, (2, 9, 6), 8), (Heads, (2, 9, 6), 4), (Flattened, (2, 3, 8, 8), 8),
]  # fmt: skip


def widths(model: nn.Module) -> dict[str, int]:
    return {n: m.weight.shape[1 if isinstance(m, nn.ConvTranspose2d) else 0] for n, m in model.named_modules()
            if isinstance(m, LAYERS)}  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "align"), NETS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_narrowed_layers_have_aligned_widths(
    build: Callable[[], nn.Module], shape: tuple[int, ...], align: int
) -> None:
    model, x = unique(build()).eval(), image(*shape)
    result = secateur.prune(model, x, budget="flops=0.6", align=align)
    before, after = widths(model), widths(result.model)
    narrowed = {name for name in before if after[name] < before[name]}
    assert narrowed
    assert {name: after[name] for name in narrowed if after[name] % align and before[name] % align == 0} == {}
    assert macs(result.model, x) <= 0.6 * macs(model, x)
    assert result.verification.passed
    if build not in (Resnext, Heads):  # group norm and heads: judged by Secateur's structural comparison
        assert error(model, result.model, x) <= TOLERANCE


@pytest.mark.parametrize(("build", "name", "align"), [
    (Pixels, "up", 8), (Gated, "gate", 16), (Resnext, "b", 8), (Resnext, "a", 8), (Heads, "q", 8), (Heads, "kv", 8),
    (Parts, "parts", 8),
])  # fmt: skip
def test_a_layer_of_several_indices_a_channel_can_shrink(build: Callable[[], nn.Module], name: str, align: int) -> None:
    model, x = unique(build()).eval(), image(*((2, 9, 6) if build is Heads else (2, 3, 8, 8)))
    result = secateur.prune(model, x, align=align, allocator="ratios", ratios={"*": 0.5})
    assert widths(result.model)[name] < widths(model)[name]
    assert widths(result.model)[name] % align == 0
    assert result.verification.passed
