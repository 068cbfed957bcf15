"""Inputs and outputs of other shapes than one tensor, and calls that models make now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from structures._case import Net, case, conv, head


@dataclass
class Found:
    """What a detector says."""

    boxes: torch.Tensor
    scores: dict[str, torch.Tensor]
    note: str = "found"
    mask: torch.Tensor | None = None


class Pair(NamedTuple):
    """Two tensors."""

    first: torch.Tensor
    second: torch.Tensor


@case("a dataclass as output", "stem:8")
def _() -> nn.Module:
    return Net(
        lambda m, x: Found(m.boxes(h := m.stem(x).relu()), {"class": m.scores(h)}),
        stem=conv(3, 8), boxes=conv(8, 4), scores=conv(8, 2),
    )  # fmt: skip


@case("a named tuple as output", "stem:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: Pair(m.a(h := m.stem(x).relu()), m.head(m.c(h))), stem=conv(3, 8), a=conv(8, 4), c=conv(8, 6),
        head=head(6)
    )  # fmt: skip


@case("a tuple of inputs", "a:8 b:4 c:6", inputs=lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8), 0.5))
def _() -> nn.Module:
    return Net(
        lambda m, x, y, factor: m.head(m.c(torch.cat([m.a(x), factor * m.b(y)], 1)).relu()),
        a=conv(3, 8), b=conv(1, 4), c=conv(12, 6), head=head(6),
    )  # fmt: skip


@case(
    "a dict of inputs", "a:8 c:6",
    inputs=lambda: {"image": torch.randn(2, 3, 8, 8), "extra": torch.randn(2, 8), "nothing": None},
)  # fmt: skip
def _() -> nn.Module:
    return Net(
        lambda m, image, extra, nothing: m.head(m.c(m.a(image) * m.fc(extra)[..., None, None]).relu()),
        a=conv(3, 8), fc=nn.Linear(8, 8), c=conv(8, 6), head=head(6),
    )  # fmt: skip


@case("nested inputs", "a:8 c:6", inputs=lambda: ({"views": [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)]},))
def _() -> nn.Module:
    return Net(
        lambda m, batch: m.head(m.c(sum(m.a(v) for v in batch["views"])).relu()), a=conv(3, 8), c=conv(8, 6),
        head=head(6)
    )  # fmt: skip


@case("the input joins the features", "a:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(torch.cat([x, m.a(x)], 1)).relu()), a=conv(3, 8), c=conv(11, 6), head=head(6)
    )  # fmt: skip


@case("the output joins the input", "a:8")
def _() -> nn.Module:
    return Net(lambda m, x: x + m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 3))


@case("coordinates as extra channels", "a:8 c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        rows = torch.linspace(-1, 1, 8, dtype=x.dtype).view(1, 1, 8, 1).expand(x.shape[0], 1, 8, 8)
        return m.head(m.c(torch.cat([x, rows], 1)).relu())

    return Net(run, a=conv(3, 8), c=conv(9, 6), head=head(6))


@case("features written into a canvas", "a:8 c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        canvas = x.new_zeros(x.shape[0], x.shape[1], 10, 10)
        canvas[:, :, 1:9, 1:9] = x
        return m.head(m.c(canvas).relu())

    return Net(run, a=conv(3, 8), c=conv(8, 6), head=head(6))


@case("a learned constant", "constant:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.constant * x.mean((1, 2, 3), keepdim=True)).relu()),
        constant=nn.Parameter(torch.zeros(1, 8, 8, 8)), c=conv(8, 6), head=head(6),
    )  # fmt: skip


@case("drop path and dropout stay silent", "a:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.drop(m.c(m.drop2(m.a(x))).relu())), a=conv(3, 8), drop2=nn.Dropout2d(), c=conv(8, 6),
        drop=nn.Dropout(), head=head(6),
    )  # fmt: skip


@case("gradient checkpoints", "a:8 b:12 c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = torch.utils.checkpoint.checkpoint(lambda t: m.b(m.a(t).relu()), x, use_reentrant=False)
        return m.head(m.c(x).relu())

    return Net(run, a=conv(3, 8), b=conv(8, 12), c=conv(12, 6), head=head(6))


@case("where, clamp and comparisons", "a:8 c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        x = torch.where(x > 0, x, 0.1 * x).clamp(-2, 2)
        return m.head(m.c(torch.maximum(x, torch.tanh(x)) ** 2).relu())

    return Net(run, a=conv(3, 8), c=conv(8, 6), head=head(6))


@case("a buffer on the features", "a:8 c:6")
def _() -> nn.Module:
    net = Net(lambda m, x: m.head(m.c((m.a(x) - m.mean) / m.std).relu()), a=conv(3, 8), c=conv(8, 6), head=head(6))
    net.register_buffer("mean", torch.randn(1, 8, 1, 1))
    net.register_buffer("std", torch.rand(8, 1, 1) + 0.5)
    return net


@case("a Fourier transform in space", "a:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(torch.fft.irfft2(torch.fft.rfft2(m.a(x)), s=(8, 8))).relu()),
        a=conv(3, 8), c=conv(8, 6), head=head(6),
    )  # fmt: skip


@case("maxout", "a:6 c:7")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        b, c, h, w = x.shape
        return m.head(m.c(x.view(b, c // 2, 2, h, w).amax(2)).relu())

    return Net(run, a=conv(3, 12), c=conv(6, 7), head=head(7))


@case("squeezes and unsqueezes", "a:8 c:6", shape=(1, 3, 8, 8))
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x).squeeze(0).unsqueeze(1).transpose(0, 1)[None].squeeze(0)
        return m.head(F.relu(m.c(x)))

    return Net(run, a=conv(3, 8), c=conv(8, 6), head=head(6))
