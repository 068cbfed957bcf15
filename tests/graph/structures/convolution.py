"""Convolutions of every kind, shortcuts, concatenations and partial uses of a width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from structures._case import Net, case, conv, head


@case("plain chain", "a:8 b:12 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.b(m.a(x).relu()).tanh())), a=conv(3, 8), b=conv(8, 12), c=conv(12, 6), head=head(6)
    )


@case("residual, identity", "stem:8 c1:12")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head((h := m.stem(x)) + m.c2(m.c1(h).relu())),
        stem=conv(3, 8), c1=conv(8, 12), c2=conv(12, 8), head=head(8),
    )  # fmt: skip


@case("residual, identity, in-place add", "stem:8 c1:12")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = m.stem(x)
        out = m.c2(F.relu_(m.c1(h)))
        out += h
        return m.head(F.relu(out, inplace=True))

    return Net(run, stem=conv(3, 8), c1=conv(8, 12), c2=conv(12, 8), head=head(8))


@case("residual, projection", "stem:8 c1:12 c2:16")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c2(m.c1(h := m.stem(x)).relu()) + m.proj(h)),
        stem=conv(3, 8), c1=conv(8, 12, stride=2), c2=conv(12, 16), proj=conv(8, 16, 1, stride=2), head=head(16),
    )  # fmt: skip


@case("residual, option A, padding in attributes", "stem:8 c1:12 c2:7")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = m.stem(x)
        short = F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, m.before, m.after))
        return m.head(m.c2(m.c1(h).relu()) + short)

    return Net(
        run, before=3, after=4, stem=conv(3, 8), c1=conv(8, 12, stride=2), c2=conv(12, 15), head=head(15)
    )  # fmt: skip


@case("residual, option A, padding by literals", "stem:8 c1:12", settled=True)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = m.stem(x)
        return m.head(m.c2(m.c1(h).relu()) + F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))

    return Net(run, stem=conv(3, 8), c1=conv(8, 12, stride=2), c2=conv(12, 16), head=head(16))


@case("residual chain over stages", "stem:8 a1:6 down:12 b1:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        x = x + m.a2(m.a1(x).relu())
        x = x + m.a3(x)
        x = m.down(x)
        return m.head(x + m.b2(m.b1(x).relu()))

    return Net(
        run, stem=conv(3, 8), a1=conv(8, 6), a2=conv(6, 8), a3=conv(8, 8), down=conv(8, 12, stride=2),
        b1=conv(12, 6), b2=conv(6, 12), head=head(12),
    )  # fmt: skip


@case("dense concat", "stem:8 c1:4 c2:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        x = torch.cat([x, m.c1(x).relu()], 1)
        x = torch.cat([x, m.c2(m.norm(x)).relu()], 1)
        return m.head(x)

    return Net(run, stem=conv(3, 8), c1=conv(8, 4), norm=nn.BatchNorm2d(12), c2=conv(12, 4), head=head(16))


@case("dual path concat", "stem:8 stem#2:4 c1:12 c2:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        y = m.c2(m.c1(x).relu())
        added = x[:, : m.cut] + y[:, : m.cut]
        return m.head(torch.cat([added, x[:, m.cut :], y[:, m.cut :]], 1))

    return Net(run, cut=8, stem=conv(3, 12), c1=conv(12, 12), c2=conv(12, 12), head=head(16))


@case("partial slice (GhostNet)", "stem:4 stem#2:2")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.cat([h := m.stem(x), m.cheap(h)], 1)[:, : m.keep]),
        keep=10, stem=conv(3, 6), cheap=conv(6, 6, groups=6), head=head(10),
    )  # fmt: skip


@case("partial convolution (FasterNet)", "stem:3 stem#2:9 mid:10")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        a, b = torch.split(x, [m.part, m.rest], 1)
        return m.head(m.mid(torch.cat([m.partial(a), b], 1) + x).relu())

    return Net(run, part=3, rest=9, stem=conv(3, 12), partial=conv(3, 3), mid=conv(12, 10, 1), head=head(10))


@case("partial convolution written in place", "stem:3 stem#2:9 mid:10")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        x[:, : m.part] = m.partial(x[:, : m.part])
        return m.head(m.mid(x).relu())

    return Net(run, part=3, stem=conv(3, 12), partial=conv(3, 3), mid=conv(12, 10, 1), head=head(10))


@case("split by a list of sizes", "stem:4 stem#2:8 a:5 b:7")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        p, q = torch.split(m.stem(x), m.sizes, 1)
        return m.head(torch.cat([m.a(p), m.b(q)], 1))

    return Net(run, sizes=[4, 8], stem=conv(3, 12), a=conv(4, 5), b=conv(8, 7), head=head(12))


@case("split by one size", "stem:4 a:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        p, q, r = torch.split(m.stem(x), m.size, 1)
        return m.head(m.a(p) + m.b(q) + m.c(r))

    return Net(run, size=4, stem=conv(3, 12), a=conv(4, 6), b=conv(4, 6), c=conv(4, 6), head=head(6))


@case("chunk: halves stay equal", "stem:6 c:8")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        a, b = m.stem(x).chunk(2, 1)
        return m.head(m.c(a) + m.d(b))

    return Net(run, stem=conv(3, 12), c=conv(6, 8), d=conv(6, 8), head=head(8))


@case("C2f of YOLO", "cv1:6 m1:4 cv2:8")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        parts = list(m.cv1(x).chunk(2, 1))
        parts.append(parts[-1] + m.m2(m.m1(parts[-1]).relu()))
        parts.append(parts[-1] + m.n2(m.m1(parts[-1]).relu()))
        return m.head(m.cv2(torch.cat(parts, 1)))

    return Net(
        run, cv1=conv(3, 12, 1), m1=conv(6, 4), m2=conv(4, 6), n2=conv(4, 6), cv2=conv(24, 8, 1), head=head(8)
    )  # fmt: skip


@case("C2f without shortcuts", "cv1:6 m1:6 m2:6 cv2:8")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        parts = list(m.cv1(x).chunk(2, 1))
        parts.append(m.m1(parts[-1]))
        parts.append(m.m2(parts[-1]))
        return m.head(m.cv2(torch.cat(parts, 1)))

    return Net(run, cv1=conv(3, 12, 1), m1=conv(6, 6), m2=conv(6, 6), cv2=conv(24, 8, 1), head=head(8))


@case("unbind of two halves", "stem:6 c:8")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        a, b = m.stem(x).unflatten(1, (2, -1)).unbind(1)
        return m.head(m.c(a * b))

    return Net(run, stem=conv(3, 12), c=conv(6, 8), head=head(8))


@case("Res2Net splits", "stem:4 c2:4 last:8")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        a, b, c = torch.split(m.stem(x), m.width, 1)
        y = m.c1(a)
        z = m.c2(y + b)
        return m.head(m.last(torch.cat([y, z, c], 1)))

    return Net(run, width=4, stem=conv(3, 12, 1), c1=conv(4, 4), c2=conv(4, 4), last=conv(12, 8, 1), head=head(8))


@case("grouped", "stem:4 g:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.g(m.stem(x))), stem=conv(3, 8), g=conv(8, 12, groups=2), head=head(12)
    )  # fmt: skip


@case("grouped, two group counts on one tensor (4 and 6)", "stem:2 a:6 b:4")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.cat([m.a(h := m.stem(x)), m.b(h)], 1)),
        stem=conv(3, 24), a=conv(24, 24, groups=4), b=conv(24, 24, groups=6), head=head(48),
    )  # fmt: skip


@case("ResNeXt block", "stem:8 c1:4 g:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        return m.head(x + m.c3(m.g(m.c1(x).relu()).relu()))

    return Net(
        run, stem=conv(3, 8), c1=conv(8, 16, 1), g=conv(16, 16, groups=4), c3=conv(16, 8, 1), head=head(8)
    )  # fmt: skip


@case("one input a group, several outputs", "stem:8")
def _() -> nn.Module:
    return Net(lambda m, x: m.head(m.d(m.stem(x))), stem=conv(3, 8), d=conv(8, 16, groups=8), head=head(16))


@case("several inputs a group, one output", "stem:4")
def _() -> nn.Module:
    return Net(lambda m, x: m.head(m.d(m.stem(x))), stem=conv(3, 8), d=conv(8, 4, groups=4), head=head(4))


@case("depthwise", "stem:8 p:12")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.p(F.relu6(m.n(m.d(m.stem(x)))))),
        stem=conv(3, 8), d=conv(8, 8, groups=8), n=nn.BatchNorm2d(8), p=conv(8, 12, 1), head=head(12),
    )  # fmt: skip


@case("inverted residual", "stem:8 e:24")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head((h := m.stem(x)) + m.p(m.d(m.e(h).relu()).relu())),
        stem=conv(3, 8), e=conv(8, 24, 1), d=conv(24, 24, groups=24), p=conv(24, 8, 1), head=head(8),
    )  # fmt: skip


@case("a conv that merely has one channel", "stem:8 wide:6", shape=(2, 1, 8, 8))
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.wide(m.one(m.stem(x)).relu())),
        stem=conv(1, 8), one=conv(8, 1), wide=conv(1, 6), head=head(6),
    )  # fmt: skip


@case("transposed", "stem:8 up:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.up(m.stem(x))), stem=conv(3, 8), up=nn.ConvTranspose2d(8, 6, 2, 2), head=head(6)
    )  # fmt: skip


@case("transposed, grouped", "stem:4 up:6")
def _() -> nn.Module:
    up = nn.ConvTranspose2d(8, 12, 2, 2, groups=2)
    return Net(lambda m, x: m.head(m.up(m.stem(x))), stem=conv(3, 8), up=up, head=head(12))


@case("transposed, depthwise", "stem:8")
def _() -> nn.Module:
    up = nn.ConvTranspose2d(8, 8, 2, 2, groups=8)
    return Net(lambda m, x: m.head(m.up(m.stem(x))), stem=conv(3, 8), up=up, head=head(8))


@case("transposed, depthwise with a multiplier", "stem:8")
def _() -> nn.Module:
    up = nn.ConvTranspose2d(8, 16, 2, 2, groups=8)
    return Net(lambda m, x: m.head(m.up(m.stem(x))), stem=conv(3, 8), up=up, head=head(16))


@case("U-Net", "d1:6 d2:10 up:6 out1:7")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        a = m.d1(x).relu()
        b = m.d2(F.max_pool2d(a, 2)).relu()
        return m.out2(m.out1(torch.cat([a, m.up(b)], 1)).relu())

    return Net(
        run, d1=conv(3, 6), d2=conv(6, 10), up=nn.ConvTranspose2d(10, 6, 2, 2), out1=conv(12, 7), out2=conv(7, 2, 1)
    )  # fmt: skip


@case("one dimension", "a:8 b:6", shape=(2, 3, 16))
def _() -> nn.Module:
    return Net(
        lambda m, x: m.fc(m.b(m.n(m.a(x)).relu()).mean(-1)),
        a=nn.Conv1d(3, 8, 3), n=nn.BatchNorm1d(8), b=nn.Conv1d(8, 6, 3), fc=nn.Linear(6, 5),
    )  # fmt: skip


@case("three dimensions", "a:8 b:6", shape=(2, 3, 4, 6, 6))
def _() -> nn.Module:
    return Net(
        lambda m, x: m.fc(F.max_pool3d(m.b(m.n(m.a(x)).relu()), 2).mean((2, 3, 4))),
        a=nn.Conv3d(3, 8, 3, padding=1), n=nn.BatchNorm3d(8), b=nn.Conv3d(8, 6, 3, padding=1), fc=nn.Linear(6, 5),
    )  # fmt: skip


@case("one image without a batch dimension", "a:8 b:6", shape=(3, 8, 8))
def _() -> nn.Module:
    return Net(
        lambda m, x: m.fc(m.b(m.a(x).relu()).mean((1, 2))), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 5)
    )  # fmt: skip


@case("convolution padded by reflection", "a:8 b:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.b(m.a(x))), a=conv(3, 8, padding_mode="reflect"), b=conv(8, 6, padding_mode="circular"),
        head=head(6),
    )  # fmt: skip


@case("several heads on one width", "stem:8")
def _() -> nn.Module:
    return Net(
        lambda m, x: [m.a(h := m.stem(x)), m.b(h), {"pooled": m.c(h)}],
        stem=conv(3, 8), a=conv(8, 2), b=conv(8, 4, 1), c=head(8),
    )  # fmt: skip


@case("a width that is also an output stays", "c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: (h := m.stem(x), m.head(m.c(h).relu())), stem=conv(3, 8), c=conv(8, 6), head=head(6)
    )  # fmt: skip
