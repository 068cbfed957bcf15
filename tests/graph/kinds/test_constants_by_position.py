"""Numbers made in the forward pass that depend on where a channel stands: cut by value, tied or kept, never renumbered.

Whatever is done about the special part, the convolutions around it must still be pruned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from _judge import Carrier, cut_rightly, image, unique
from torch import nn
from torch.nn import functional as F

C = 16
Make = Callable[[int], torch.Tensor]


class Mix(nn.Module):
    """A square weight plus a constant of the same shape mixes the channels."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.weight, self.make = nn.Parameter(torch.zeros(C, C)), make

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight + self.make(self.weight.shape[0])
        return F.conv2d(x, weight[:, :, None, None])


class Scale(nn.Module):
    """A factor for every channel, made for the width that comes in."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.make(x.shape[1]).to(x.dtype).view(1, -1, 1, 1)


class ScaleByAttribute(Scale):
    """The same, made for a width that is written down."""

    def __init__(self, make: Make) -> None:
        super().__init__(make)
        self.channels = C

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.make(self.channels).to(x.dtype).view(-1, 1, 1)


def scattered(c: int) -> torch.Tensor:
    return torch.zeros(c, c).scatter_(1, torch.arange(c)[:, None], 1.0)


def dirac(c: int) -> torch.Tensor:
    return nn.init.dirac_(torch.empty(c, c, 1))[:, :, 0]


def indexed_triangle(c: int) -> torch.Tensor:
    square = torch.zeros(c, c)
    rows, columns = torch.tril_indices(c, c)
    square[rows, columns] = 0.5
    return square


def waves(c: int) -> torch.Tensor:
    rates = torch.exp(torch.arange(0, c, 2) * -(4.0 / c))
    return torch.stack((rates.sin(), rates.cos()), 1).flatten()


SQUARES: dict[str, Make] = {
    "diag of ones": lambda c: torch.diag(torch.ones(c)),
    "one-hot of arange": lambda c: F.one_hot(torch.arange(c), c).float(),
    "fill_diagonal": lambda c: torch.zeros(c, c).fill_diagonal_(1),
    "dirac": dirac,
    "scatter": scattered,
    "comparison of aranges": lambda c: (torch.arange(c)[:, None] == torch.arange(c)[None]).float(),
    "tril of ones": lambda c: torch.tril(torch.ones(c, c)),
    "tril_indices": indexed_triangle,
    "distance of aranges": lambda c: (torch.arange(c)[:, None] - torch.arange(c)[None]).abs().float() / c,
    "reversed eye": lambda c: torch.eye(c).flip(0),
}
ROWS: dict[str, Make] = {
    "arange backwards": lambda c: torch.arange(c, 0, -1),
    "logspace": lambda c: torch.logspace(-1, 0.5, c),
    "hann window": lambda c: torch.hann_window(c, periodic=False) + 0.5,
    "cumsum of ones": lambda c: torch.ones(c).cumsum(0),
    "list of numbers": lambda c: torch.tensor([0.5 + k for k in range(c)]),
    "numpy": lambda c: torch.from_numpy(np.linspace(1.0, 2.0, c, dtype=np.float32)),
    "one-hot of a number": lambda c: 1.0 + F.one_hot(torch.tensor(3), c),
    "waves": waves,
    "seeded random numbers": lambda c: torch.rand(c, generator=torch.Generator().manual_seed(1)) + 0.5,
    "modulo": lambda c: torch.arange(c) % 3 + 1,
    "stacked scalars": lambda c: torch.stack([torch.tensor(1.0 + k) for k in range(c)]),
}


@pytest.mark.parametrize("name", SQUARES)
def test_a_square_of_constants_on_a_weight(name: str) -> None:
    cut_rightly(unique(Carrier(Mix(SQUARES[name]))).eval(), image(), 0.6)


@pytest.mark.parametrize("name", ROWS)
def test_a_factor_for_every_channel(name: str) -> None:
    cut_rightly(unique(Carrier(Scale(ROWS[name]))).eval(), image(), 0.6)


@pytest.mark.parametrize("name", ["cumsum of ones", "seeded random numbers", "waves"])
def test_a_factor_for_every_channel_of_an_attribute(name: str) -> None:
    cut_rightly(unique(Carrier(ScaleByAttribute(ROWS[name]))).eval(), image(), 0.6)


@pytest.mark.parametrize("name", ["logspace", "seeded random numbers"])
def test_without_the_proof_it_is_as_right(name: str) -> None:
    cut_rightly(unique(Carrier(Scale(ROWS[name]))).eval(), image(), 0.6, verify=False)


class Identity(nn.Module):
    """A residual connection folded into the kernel: weight plus identity."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.gain = nn.Parameter(torch.ones(1))
        self.conv = nn.Conv2d(C, C, 3, padding=1, bias=False)

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        c = weight.shape[0]
        if self.how == "eye, padded":
            return F.pad(torch.eye(c)[..., None, None], (1, 1, 1, 1))
        if self.how == "eye, scaled":
            return F.pad(self.gain * torch.eye(c, dtype=weight.dtype).view(c, c, 1, 1), (1,) * 4)
        ones = torch.zeros_like(weight)
        if self.how == "two lists of numbers":
            ones[list(range(c)), list(range(c)), 1, 1] = 1.0
        else:
            at = torch.arange(c)
            ones[at, at, weight.shape[2] // 2, weight.shape[3] // 2] = 1.0
        return ones

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.conv.weight + self.kernel(self.conv.weight), padding=1)


@pytest.mark.parametrize("how", ["eye, padded", "eye, scaled", "two lists of numbers", "by index, like the weight"])
def test_an_identity_stays_prunable(how: str) -> None:
    """Tying its two axes is enough: such a connection is as free as one that is added to the output."""
    result = cut_rightly(unique(Carrier(Identity(how))).eval(), image(), 0.6)
    assert how == "two lists of numbers" or result.model.special.conv.weight.shape[0] < C  # numbers in code may freeze


class EyeBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(C, C))
        self.register_buffer("eye", torch.eye(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, (self.weight + self.eye)[:, :, None, None])


class IdentityKernel(nn.Module):
    """The identity branch of a re-parametrised grouped block as a kernel, written in a loop."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.conv = nn.Conv2d(C, C, 3, padding=1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = torch.zeros_like(self.conv.weight)
        for k in range(kernel.shape[0]):
            kernel[k, k % kernel.shape[1], 1, 1] = 1
        return F.conv2d(x, self.conv.weight + kernel, self.conv.bias, padding=1, groups=self.conv.groups)


class PlainTensor(nn.Module):
    """Factors in an attribute that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = torch.arange(1.0, C + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors[:, None, None]


class Shuffle(nn.Module):
    """A fixed order of the channels, drawn with a seed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(2))]


class Decay(nn.Module):
    """Retention: every head forgets at a rate of its own, by its number."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, C // heads
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        n = h * w
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        rate = 1 - 2.0 ** (-1 - torch.arange(self.heads, dtype=x.dtype))
        steps = (torch.arange(n)[:, None] - torch.arange(n)[None]).abs() % 7
        mixed = (q @ k.transpose(-1, -2) * rate.view(-1, 1, 1) ** steps) @ v
        mixed = self.proj(mixed.transpose(1, 2).reshape(b, n, self.heads * self.size))
        return (tokens + mixed / n).transpose(1, 2).view(b, -1, h, w)


class Rotated(Decay):
    """Rotary positions: the frequency of a feature depends on its place in the head."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        n = h * w
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        angle = torch.arange(n)[:, None] * 10.0 ** -(torch.arange(0, self.size, 2) / self.size)
        wave = torch.cat((angle, angle), -1)

        def turned(t: torch.Tensor) -> torch.Tensor:
            a, c = t.chunk(2, -1)
            return t * wave.cos() + torch.cat((-c, a), -1) * wave.sin()

        mixed = (turned(q) @ turned(k).transpose(-1, -2)) @ v
        mixed = self.proj(mixed.transpose(1, 2).reshape(b, n, self.heads * self.size))
        return (tokens + mixed / n).transpose(1, 2).view(b, -1, h, w)


SPECIAL: dict[str, Callable[[], nn.Module]] = {
    "eye in a buffer": EyeBuffer,
    "identity kernel in a loop": lambda: IdentityKernel(1),
    "identity kernel in a loop, grouped": lambda: IdentityKernel(4),
    "plain tensor": PlainTensor,
    "seeded shuffle": Shuffle,
    "decay by head": Decay,
    "rotary positions": Rotated,
}


@pytest.mark.parametrize("name", SPECIAL)
def test_other_parts_that_know_a_channels_place(name: str) -> None:
    cut_rightly(unique(Carrier(SPECIAL[name]())).eval(), image(2, 3, 6, 6), 0.7)


def test_rotary_positions_when_features_of_heads_are_pruned() -> None:
    cut_rightly(unique(Carrier(Rotated())).eval(), image(2, 3, 6, 6), 0.7, attention="head_dim")


class Bins(nn.Module):
    """An expected value over bins: the bins are no channels, however their values are kept."""

    def __init__(self, how: str, bins: int = 8) -> None:
        super().__init__()
        self.how, self.bins = how, bins
        self.trunk = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1))
        self.logits = nn.Conv2d(24, 4 * bins, 1)
        self.register_buffer("values", torch.arange(bins, dtype=torch.float32))
        self.fixed = nn.Parameter(torch.arange(bins, dtype=torch.float32), requires_grad=False)
        self.project = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.project.weight.copy_(torch.arange(bins, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.logits(self.trunk(x).relu())
        b, _, h, w = x.shape
        share = x.view(b, 4, self.bins, h, w).softmax(2)
        if self.how == "buffer":
            return torch.einsum("bsnhw,n->bshw", share, self.values)
        if self.how == "fixed parameter":
            return share.movedim(2, -1).matmul(self.fixed)
        if self.how == "fixed convolution":
            return self.project(share.reshape(b * 4, self.bins, h, w)).view(b, 4, h, w)
        return (share * torch.linspace(0, 7, self.bins).view(-1, 1, 1)).sum(2)


@pytest.mark.parametrize("how", ["buffer", "fixed parameter", "fixed convolution", "made in forward"])
def test_bins_of_a_softmax_with_fixed_values_stay_whole(how: str) -> None:
    result = cut_rightly(unique(Bins(how)).eval(), image(), 0.6)
    assert result.model.logits.out_channels == 32
