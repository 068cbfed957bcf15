"""Modules that run twice, weights with two names, and weights used in two ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from structures._case import Net, case, conv, head


@case("a convolution that runs twice", "stem:8 d:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.d(m.c(m.c(m.stem(x)).relu()))), stem=conv(3, 8), c=conv(8, 8), d=conv(8, 6), head=head(6)
    )  # fmt: skip


@case("a block that runs twice", "stem:8 c1:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        for _ in range(2):
            x = x + m.c2(m.n(m.c1(x)).relu())
        return m.head(x)

    return Net(run, stem=conv(3, 8), c1=conv(8, 6), n=nn.BatchNorm2d(6), c2=conv(6, 8), head=head(8))


@case("one module under two names", "stem:8 c:6")
def _() -> nn.Module:
    c = conv(8, 6)
    return Net(
        lambda m, x: m.head(m.c(h := m.stem(x)) * m.same(h.relu())), stem=conv(3, 8), c=c, same=c, head=head(6)
    )  # fmt: skip


@case("a weight shared by two convolutions", "stem:8 c1:6")
def _() -> nn.Module:
    net = Net(
        lambda m, x: m.a(m.c1(h := m.stem(x)).relu()) + m.b(m.c2(h.relu()).relu()),
        stem=conv(3, 8), c1=conv(8, 6), c2=conv(8, 6), a=head(6), b=head(6),
    )  # fmt: skip
    net.c2.weight = net.c1.weight
    return net


@case("a head on every level of a pyramid", "p1:8 p2:12 l2:6 tower:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> list[torch.Tensor]:
        a = m.p1(x).relu()
        b = m.p2(a).relu()
        top = m.l2(b)
        levels = [m.l1(a) + F.interpolate(top, scale_factor=2.0), top]
        return [m.score(m.tower(level).relu()) for level in levels]

    return Net(
        run, p1=conv(3, 8), p2=conv(8, 12, stride=2), l1=conv(8, 6, 1), l2=conv(12, 6, 1), tower=conv(6, 4),
        score=conv(4, 2),
    )  # fmt: skip


@case("tied autoencoder", "fc1:12 fc2:6", shape=(2, 20))
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        code = m.fc2(m.fc1(x).relu()).relu()
        return F.linear(F.linear(code, m.fc2.weight.t()).relu(), m.fc1.weight.t())

    return Net(run, fc1=nn.Linear(20, 12), fc2=nn.Linear(12, 6))


@case("two different widths of one shared batch norm", "a:8")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.n(m.a(x)).relu() * m.n(m.b(x))), a=conv(3, 8), b=conv(3, 8), n=nn.BatchNorm2d(8),
        head=head(8)
    )  # fmt: skip


@case("a siamese network", "c1:8 c2:6", inputs=lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)))
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return m.head((m.c2(m.c1(x).relu()) - m.c2(m.c1(y).relu())).abs())

    return Net(run, c1=conv(3, 8), c2=conv(8, 6), head=head(6))
