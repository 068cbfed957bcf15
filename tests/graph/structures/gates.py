"""Attention over channels and gating."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from structures._case import Net, case, conv, head


@case("squeeze and excite, linear", "stem:8 fc1:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        b, c, _, _ = x.shape
        gate = m.fc2(m.fc1(x.mean((2, 3)).view(b, c)).relu()).sigmoid().view(b, c, 1, 1)
        return m.head(x * gate.expand_as(x))

    return Net(run, stem=conv(3, 8), fc1=nn.Linear(8, 4), fc2=nn.Linear(4, 8), head=head(8))


@case("squeeze and excite, convolutions", "stem:8 fc1:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        return m.head(x.mul_(F.hardsigmoid(m.fc2(F.silu(m.fc1(F.adaptive_avg_pool2d(x, 1)))))))

    return Net(run, stem=conv(3, 8), fc1=conv(8, 4, 1), fc2=conv(4, 8, 1), head=head(8))


@case("ECA: a convolution over the channel axis", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        y = m.eca(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return m.head(m.c(x * y.view(x.shape[0], -1, 1, 1).sigmoid()))

    return Net(run, stem=conv(3, 8), eca=nn.Conv1d(1, 1, 3, padding=1, bias=False), c=conv(8, 6), head=head(6))


@case("ECA by transpose", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        y = F.adaptive_avg_pool2d(x, 1)
        y = m.eca(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return m.head(m.c(x * y.sigmoid().expand_as(x)))

    return Net(run, stem=conv(3, 8), eca=nn.Conv1d(1, 1, 5, padding=2, bias=False), c=conv(8, 6), head=head(6))


@case("selective kernel", "stem:8 a:8 fc1:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        both = torch.stack([m.a(x), m.b(x)], 1)
        gate = m.fc2(m.fc1(both.sum(1).mean((2, 3), keepdim=True)).relu())
        b, c, h, w = gate.shape
        gate = gate.view(b, 2, c // 2, h, w).softmax(1)
        return m.head((both * gate).sum(1))

    return Net(
        run, stem=conv(3, 8), a=conv(8, 8), b=conv(8, 8, 5), fc1=conv(8, 4, 1), fc2=conv(4, 16, 1), head=head(8)
    )  # fmt: skip


@case("split attention of ResNeSt", "stem:4 c:8 fc1:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.c(m.stem(x))
        b, rc, h, w = x.shape
        x = x.reshape((b, m.radix, rc // m.radix, h, w))
        gate = m.fc2(m.fc1(x.sum(1).mean((2, 3), keepdim=True)).relu())
        gate = gate.view(b, 1, m.radix, -1).transpose(1, 2).softmax(1).reshape(b, -1)
        return m.head((x * gate.reshape((b, m.radix, rc // m.radix, 1, 1))).sum(1).contiguous())

    return Net(
        run, radix=2, stem=conv(3, 8), c=conv(8, 16, groups=2), fc1=conv(8, 4, 1), fc2=conv(4, 16, 1), head=head(8)
    )  # fmt: skip


@case("spatial attention of CBAM", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        seen = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return m.head(m.c(x * m.gate(seen).sigmoid()))

    return Net(run, stem=conv(3, 8), gate=conv(2, 1, 7), c=conv(8, 6), head=head(6))


@case("maximum over channels", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c((h := -m.stem(x).abs()) - h.amax(1, keepdim=True))), stem=conv(3, 8), c=conv(8, 6),
        head=head(6)
    )  # fmt: skip


@case("softmax over channels", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return Net(lambda m, x: m.head(m.c(m.stem(x).softmax(1))), stem=conv(3, 8), c=conv(8, 6), head=head(6))


@case("argmax over channels", "c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(h := m.stem(x))) + h.argmax(1).float().mean(), stem=conv(3, 8), c=conv(8, 6),
        head=head(6)
    )  # fmt: skip


@case("gated linear unit", "stem:8 c:6")
def _() -> nn.Module:
    return Net(lambda m, x: m.head(m.c(F.glu(m.stem(x), 1))), stem=conv(3, 16), c=conv(8, 6), head=head(6))


@case("SwiGLU by chunk", "stem:8 fc1:12")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x).flatten(2).transpose(1, 2)
        gate, value = m.fc1(x).chunk(2, dim=-1)
        return m.out((x + m.fc2(F.silu(gate) * value)).mean(1))

    return Net(run, stem=conv(3, 8), fc1=nn.Linear(8, 24), fc2=nn.Linear(12, 8), out=nn.Linear(8, 5))


@case("global context block", "stem:8 t1:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        where = m.key(x).flatten(2).softmax(-1).transpose(1, 2).unsqueeze(1)
        seen = torch.matmul(x.flatten(2).unsqueeze(1), where).transpose(1, 2)
        return m.head(x + m.t2(m.t1(seen.reshape(x.shape[0], -1, 1, 1)).relu()))

    return Net(run, stem=conv(3, 8), key=conv(8, 1, 1), t1=conv(8, 4, 1), t2=conv(4, 8, 1), head=head(8))


@case("conditional convolution (CondConv)", "stem:8 experts.0:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        mix = m.router(x.mean((2, 3))).sigmoid()
        return m.head(sum(mix[:, k].view(-1, 1, 1, 1) * expert(x) for k, expert in enumerate(m.experts)))

    return Net(
        run, stem=conv(3, 8), router=nn.Linear(8, 2), experts=nn.ModuleList([conv(8, 6), conv(8, 6)]), head=head(6)
    )  # fmt: skip
