"""Sizes written in code tie the parts that share them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _judge import cut_rightly, image, relu_conv, unique
from torch import nn
from torch.nn import functional as F

import secateur


class Split(nn.Module):
    """A cross-stage block: one layer of two halves, two inner layers of the same width, and a layer behind them."""

    def __init__(self, inputs: int = 16, outputs: int = 16, width: int = 12) -> None:
        super().__init__()
        self.c = width
        self.first, self.last = relu_conv(inputs, 2 * width, 1), relu_conv(3 * width, outputs, 1)
        self.one, self.two = relu_conv(width, width), relu_conv(width, width)

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.halves(self.first(x))
        return self.last(torch.cat((a, b, self.two(self.one(b))), 1))


class BySize(Split):
    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.split(self.c, 1)


class ByList(Split):
    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(x, [self.c, self.c], dim=1)


class ByNarrow(Split):
    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.narrow(1, 0, self.c), x.narrow(1, self.c, self.c)


class BySlices(Split):
    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x[:, : self.c], x[:, self.c :]


class ByView(Split):
    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.view(x.shape[0], 2, self.c, *x.shape[2:]).unbind(1)


class ByKeptList(Split):
    """The sizes in a list that was made once."""

    def __init__(self, inputs: int = 16, outputs: int = 16, width: int = 12) -> None:
        super().__init__(inputs, outputs, width)
        self.sizes = [width, width]

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.split(self.sizes, 1)


SPLITS: list[type[Split]] = [BySize, ByList, ByNarrow, BySlices, ByView, ByKeptList]


class TwoBlocks(nn.Module):
    def __init__(self, block: type[Split]) -> None:
        super().__init__()
        self.stem, self.a, self.b = relu_conv(3, 16), block(), block(16, 20)
        self.out = nn.Conv2d(20, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(self.a(self.stem(x))))


class ByChunk(Split):
    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.chunk(2, 1)


@pytest.mark.parametrize("block", SPLITS, ids=lambda b: b.__name__)
def test_halves_by_an_attribute_are_as_free_as_chunks(block: type[Split]) -> None:
    """Only the halves need be equal; no other layer follows them, whatever its width, nor do those of other blocks."""
    model = unique(TwoBlocks(block)).eval()
    free = {g.name: g.width for g in secateur.trace(unique(TwoBlocks(ByChunk)).eval(), image()).groups}
    result = cut_rightly(model, image(), 0.3, budget="flops=0.3", others=[image(1, 3, 6, 10)])
    assert {g.name for g in result.graph.groups} >= free.keys()
    assert result.model.a.first[0].out_channels < 24


class Psa(nn.Module):
    """Position-sensitive attention: halves, attention over one, a feed-forward pair of the widths c, 2c, c."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 16
        self.cv1, self.cv2 = relu_conv(16, 32, 1), relu_conv(32, 16, 1)
        self.qk, self.v, self.proj = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.ffn = nn.Sequential(relu_conv(16, 32, 1), nn.Conv2d(32, 16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        n, _, h, w = b.shape
        q, k = self.qk(b).flatten(2).chunk(2, 1)
        y = self.v(b).flatten(2) @ (q.transpose(1, 2) @ k).softmax(-1)
        b = b + self.proj(y.view(n, -1, h, w))
        b = b + self.ffn(b)
        return self.cv2(torch.cat((a, b), 1))


class Shift(nn.Module):
    """Temporal shift: an eighth forwards, an eighth backwards, the rest as it is."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.mix = how, relu_conv(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c = x.shape[1]
        part = c // 8 if self.how == "eighth" else int(c * 0.25)
        out = torch.zeros_like(x)
        out[:-1, :part] = x[1:, :part]
        out[1:, part : 2 * part] = x[:-1, part : 2 * part]
        out[:, 2 * part :] = x[:, 2 * part :]
        return x + self.mix(out)


class Partial(nn.Module):
    """Partial convolution: a quarter is convolved, the rest passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.some = 16 // 4
        self.rest = 16 - self.some
        self.conv, self.mix = nn.Conv2d(4, 4, 3, padding=1), relu_conv(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.split(x, [self.some, self.rest], 1)
        return self.mix(torch.cat((self.conv(a), b), 1))


class Transform(nn.Module):
    """An alignment of points: a k x k matrix from a layer of k * k outputs."""

    def __init__(self, k: int = 8) -> None:
        super().__init__()
        self.k = k
        self.into, self.back = relu_conv(16, k, 1), relu_conv(k, 16, 1)
        self.hidden, self.matrix = nn.Linear(k, 8), nn.Linear(8, k * k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.into(x)
        b, _, h, w = x.shape
        matrix = self.matrix(self.hidden(x.mean((2, 3))).relu()).reshape(b, self.k, self.k)
        return self.back(torch.bmm(matrix, x.flatten(2)).view(b, self.k, h, w))


class Padded(nn.Module):
    """A shortcut that fills up with zeros to a width that is kept as an attribute."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width = how, 24
        self.mix, self.back = relu_conv(16, 24), relu_conv(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lack = self.width - x.shape[1]
        n, _, h, w = x.shape
        if self.how == "new_zeros":
            shortcut = torch.cat((x, x.new_zeros((n, lack, h, w))), 1)
        elif self.how == "expand":
            shortcut = torch.cat((x.new_zeros(1).expand(n, lack, h, w), x), 1)
        else:
            shortcut = F.pad(x, (0, 0, 0, 0, lack // 2, lack - lack // 2))
        return self.back((shortcut + self.mix(x)).relu())


class Around(nn.Module):
    """Free layers before and behind, the stream at sixteen channels."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem, self.into, self.part = relu_conv(3, 16), relu_conv(16, 16), part
        self.back, self.out = relu_conv(16, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.back(self.part(self.into(self.stem(x)))))


# the largest share of the MACs that may be left when half of every group goes: nothing of weight may be frozen
PARTS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "psa": (Psa, 0.5),
    "shift by an eighth": (lambda: Shift("eighth"), 0.4),
    "shift by a share": (lambda: Shift("share"), 0.55),
    "partial convolution": (Partial, 0.4),
    "k x k by an attribute": (Transform, 0.4),
    "zeros by an attribute less a width": (lambda: Padded("new_zeros"), 0.4),
    "expanded zero": (lambda: Padded("expand"), 0.45),
    "padding on both sides": (lambda: Padded("pad"), 0.4),
}


@pytest.mark.parametrize("name", PARTS)
def test_sizes_derived_from_attributes_and_widths_stay_prunable(name: str) -> None:
    build, most = PARTS[name]
    model = unique(Around(build())).eval()
    cut_rightly(model, image(4, 3, 8, 8), most, others=[image(3, 3, 6, 10)])
    if name in ("psa", "shift by an eighth", "k x k by an attribute"):  # parts are cut unevenly at first
        cut_rightly(model, image(4, 3, 8, 8), most, budget=f"flops={most}", training=False)
