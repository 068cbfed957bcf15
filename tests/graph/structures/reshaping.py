"""Views, permutations and everything that moves channels about."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from structures._case import Net, case, conv, head


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Channel shuffle as ShuffleNet writes it."""
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


@case("channel shuffle by view and transpose", "stem:6 d:8")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.d(shuffle(m.stem(x), 2)).relu()), stem=conv(3, 12), d=conv(12, 8), head=head(8)
    )  # fmt: skip


@case("nn.ChannelShuffle", "stem:4 d:8")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.d(m.s(m.stem(x))).relu()), stem=conv(3, 12), s=nn.ChannelShuffle(3), d=conv(12, 8),
        head=head(8),
    )  # fmt: skip


@case("ShuffleNet v2 unit", "stem:6 b1:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        a, b = m.stem(x).chunk(2, 1)
        b = m.b3(m.b2(m.b1(b).relu())).relu()
        return m.head(shuffle(torch.cat((a, b), 1), 2))

    return Net(
        run, stem=conv(3, 12), b1=conv(6, 6, 1), b2=conv(6, 6, groups=6), b3=conv(6, 6, 1), head=head(12)
    )  # fmt: skip


@case("two ShuffleNet v2 units", "stem:3 b1:6 c1:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        a, b = m.stem(x).chunk(2, 1)
        a, b = shuffle(torch.cat((a, m.b3(m.b1(b).relu())), 1), 2).chunk(2, 1)
        return m.head(shuffle(torch.cat((a, m.c3(m.c1(b).relu())), 1), 2))

    return Net(
        run, stem=conv(3, 12), b1=conv(6, 6, 1), b3=conv(6, 6, 1), c1=conv(6, 6, 1), c3=conv(6, 6, 1), head=head(12)
    )  # fmt: skip


@case("ShuffleNet v1: grouped, shuffled, grouped", "stem:4 g1:2 g2:4")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.g2(shuffle(m.g1(m.stem(x)), 2))),
        stem=conv(3, 8), g1=conv(8, 8, 1, groups=2), g2=conv(8, 8, 1, groups=2), head=head(8),
    )  # fmt: skip


@case("pixel shuffle", "stem:4 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(F.pixel_shuffle(m.stem(x), 2)).relu()), stem=conv(3, 16), c=conv(4, 6), head=head(6)
    )  # fmt: skip


@case("pixel unshuffle", "stem:4 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(F.pixel_unshuffle(m.stem(x), 2)).relu()), stem=conv(3, 4), c=conv(16, 6), head=head(6)
    )  # fmt: skip


@case("pixel shuffle written out", "stem:4 c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        b, c, h, w = x.shape
        x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        return m.head(m.c(x).relu())

    return Net(run, stem=conv(3, 16), c=conv(4, 6), head=head(6))


@case("space to depth by strided slices", "stem:4 c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return m.head(m.c(x).relu())

    return Net(run, stem=conv(3, 4), c=conv(16, 6), head=head(6))


@case("space to depth by view and permute", "stem:4 c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        n, c, h, w = x.size()
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
        return m.head(m.c(x.view(n, c * 4, h // 2, w // 2)).relu())

    return Net(run, stem=conv(3, 4), c=conv(16, 6), head=head(6))


@case("patch merging of Swin", "stem:8 reduction:6", exact=False)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x).permute(0, 2, 3, 1)
        x = torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], -1)
        return m.fc(m.reduction(m.norm(x)).relu().mean((1, 2)))

    return Net(
        run, stem=conv(3, 8), norm=nn.LayerNorm(32), reduction=nn.Linear(32, 6, bias=False), fc=nn.Linear(6, 5)
    )  # fmt: skip


@case("flatten to linear", "stem:8 fc:10")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.n(m.fc(m.stem(x).flatten(1))).relu()),
        stem=conv(3, 8, stride=2), fc=nn.Linear(128, 10), n=nn.BatchNorm1d(10), out=nn.Linear(10, 5),
    )  # fmt: skip


@case("flatten by view with a literal", "fc:10", settled=True)
def _() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.fc(m.stem(x).view(-1, 128)).relu()),
        stem=conv(3, 8, stride=2), fc=nn.Linear(128, 10), out=nn.Linear(10, 5),
    )  # fmt: skip


@case("flatten by view with an attribute", "stem:8 fc:10")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.fc(m.stem(x).view(-1, m.features)).relu()),
        features=128, stem=conv(3, 8, stride=2), fc=nn.Linear(128, 10), out=nn.Linear(10, 5),
    )  # fmt: skip


@case("view into groups by literals", "c:6", settled=True)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        b = x.shape[0]
        x = x.view(b, 4, 4, 64).mean(2).view(b, 4, 8, 8)
        return m.head(m.c(x).relu())

    return Net(run, stem=conv(3, 16), c=conv(4, 6), head=head(6))


@case("slice by literals", "stem:4 c:6 d:7", settled=True)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        return m.head(m.d(m.c(x[:, :8])).relu()) + m.side(x[:, 8:])

    return Net(run, stem=conv(3, 12), c=conv(8, 6), d=conv(6, 7), head=head(7), side=head(4))


@case("one channel picked by a literal", "c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        return m.head(m.c(x * x[:, :1]).relu()) + x[:, 3].mean()

    return Net(run, stem=conv(3, 8), c=conv(8, 6), head=head(6))


@case("flip over channels", "stem:8 c:6")
def _() -> nn.Module:
    return Net(lambda m, x: m.head(m.c(m.stem(x).flip(1)).relu()), stem=conv(3, 8), c=conv(8, 6), head=head(6))


@case("flip and add: mirror pairs", "stem:4 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c((h := m.stem(x)) + h.flip(1)).relu()), stem=conv(3, 8), c=conv(8, 6), head=head(6)
    )  # fmt: skip


@case("roll in space", "stem:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).roll((1, 2), (2, 3))).relu()), stem=conv(3, 8), c=conv(8, 6), head=head(6)
    )  # fmt: skip


@case("roll over channels", "c:6")
def _() -> nn.Module:
    return Net(lambda m, x: m.head(m.c(m.stem(x).roll(3, 1)).relu()), stem=conv(3, 8), c=conv(8, 6), head=head(6))


@case("unfold", "stem:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.fc(m.c(F.unfold(m.stem(x), 3, padding=1)).relu().mean(-1)),
        stem=conv(3, 8), c=nn.Conv1d(72, 6, 1), fc=nn.Linear(6, 5),
    )  # fmt: skip


@case("fold", "stem:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(F.fold(F.unfold(m.stem(x), 2, stride=2), (8, 8), 2, stride=2)).relu()),
        stem=conv(3, 8), c=conv(8, 6), head=head(6),
    )  # fmt: skip


@case("upsampling, pooling and warping", "stem:8 c:6 d:4")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(m.stem(x), scale_factor=2, mode="bilinear")
        x = F.interpolate(F.avg_pool2d(m.c(x).relu(), 2), size=(6, 6))
        theta = torch.eye(2, 3, dtype=x.dtype).expand(x.shape[0], 2, 3)
        return m.head(m.d(F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)))

    return Net(run, stem=conv(3, 8), c=conv(8, 6), d=conv(6, 4), head=head(4))


@case("index_select by a tensor", "c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).index_select(1, torch.tensor([3, 1, 0, 2]))).relu()),
        stem=conv(3, 8), c=conv(4, 6), head=head(6),
    )  # fmt: skip


@case("indexing by a list", "c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x)[:, [3, 1, 0, 2]]).relu()), stem=conv(3, 8), c=conv(4, 6), head=head(6)
    )  # fmt: skip


@case("gather by a tensor", "c:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        index = torch.tensor([3, 1, 0, 2]).view(1, 4, 1, 1).expand(x.shape[0], 4, 8, 8)
        return m.head(m.c(x.gather(1, index)).relu())

    return Net(run, stem=conv(3, 8), c=conv(4, 6), head=head(6))


@case("repeat", "stem:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).repeat(1, 2, 1, 1)).relu()), stem=conv(3, 8), c=conv(16, 6), head=head(6)
    )  # fmt: skip


@case("repeat_interleave", "stem:8 c:6")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).repeat_interleave(2, 1)).relu()), stem=conv(3, 8), c=conv(16, 6), head=head(6)
    )  # fmt: skip


@case("one channel expanded to many", "c:8")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.one(x).expand_as(h := m.c(x)) * h), one=conv(3, 1), c=conv(3, 8), head=head(8)
    )  # fmt: skip


@case("stack and sum", "a:8")
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.stack([m.a(x), m.b(x)], 1).sum(1)), a=conv(3, 8), b=conv(3, 8), head=head(8)
    )  # fmt: skip


@case("einsum over pixels", "stem:8 q:4 v:6")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        q, k, v = m.q(x).flatten(2), m.k(x).flatten(2), m.v(x).flatten(2)
        near = torch.einsum("bcn,bcm->bnm", q, k).softmax(-1)
        return m.fc(torch.einsum("bnm,bcm->bcn", near, v).mean(-1))

    return Net(run, stem=conv(3, 8), q=conv(8, 4, 1), k=conv(8, 4, 1), v=conv(8, 6, 1), fc=nn.Linear(6, 5))


@case("product of two features (bilinear pooling)", "stem:8 b:9")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        return m.fc(torch.bmm(m.a(x).flatten(2), m.b(x).flatten(2).transpose(1, 2)).flatten(1))

    return Net(run, stem=conv(3, 8), a=conv(8, 4), b=conv(8, 9), fc=nn.Linear(36, 5))


@case("channels last layout by permute", "stem:8 fc1:16")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x).permute(0, 2, 3, 1)
        x = x + m.fc2(F.gelu(m.fc1(x)))
        return m.head(x.permute(0, 3, 1, 2).contiguous())

    return Net(run, stem=conv(3, 8), fc1=nn.Linear(8, 16), fc2=nn.Linear(16, 8), head=head(8))


@case("deep nesting", "0.0.0.0:8 0.0.0.2:6 0.2:7")
def _() -> nn.Module:
    inner = nn.Sequential(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6)), nn.ReLU())
    return nn.Sequential(nn.Sequential(nn.Sequential(*inner), nn.ReLU(), conv(6, 7)), nn.ReLU(), head(7))
