"""Attention, recurrence, embeddings, tokens and positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from structures._case import Net, case, conv


def tokens(x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) as (batch, positions, channels)."""
    return x.flatten(2).transpose(1, 2)


class FusedQkv(nn.Module):
    """timm's attention; `inner` decides whether the code takes the inner width from its input or leaves it free."""

    def __init__(
        self, width: int, heads: int, *, inner: bool = True, fused: bool = False, fixed_scale: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5 if fixed_scale else None
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.fused = inner, fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            scale = self.scale or q.shape[-1] ** -0.5
            x = (q * scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c if self.inner else -1))


class Window(nn.Module):
    """torchvision's Swin attention in one window: fused qkv and a table of relative positions."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        away = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + side - 1
        self.register_buffer("index", (away[..., 0] * (2 * side - 1) + away[..., 1]).flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (c // self.num_heads) ** -0.5, qkv[1], qkv[2]
        near = q.matmul(k.transpose(-2, -1)) + self.table[self.index].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        return self.proj(near.softmax(-1).matmul(v).transpose(1, 2).reshape(b, n, c))


def around(attention: nn.Module, run: Any = None) -> nn.Module:
    """stem, attention with a shortcut, a wider linear layer, classes."""

    def default(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = tokens(m.stem(x))
        return m.fc(F.gelu(m.mid(x + m.attn(x))).mean(1))

    return Net(run or default, stem=conv(3, 24, stride=2), attn=attention, mid=nn.Linear(24, 10), fc=nn.Linear(10, 5))


def multihead(*, batch_first: bool, need_weights: bool, **options: Any) -> nn.Module:
    """The same with nn.MultiheadAttention."""

    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = tokens(m.stem(x))
        y = x if batch_first else x.transpose(0, 1)
        y = m.attn(y, y, y, need_weights=need_weights)[0]
        return m.fc(F.gelu(m.mid(x + (y if batch_first else y.transpose(0, 1)))).mean(1))

    return around(nn.MultiheadAttention(24, 4, batch_first=batch_first, **options), run)


for _first in (False, True):
    for _weights in (False, True):
        for _choice, _groups, _options in (
            ("heads", "stem:24 attn:4 mid:10", {}),
            ("head_dim", "stem:24 attn:6 mid:10", {"exact": False}),  # the scale 1/sqrt(head size) changes
            ("heads", "stem:4 mid:10", {"share": 0.4, "settled": True}),  # the stream must be heads x head size
            ("head_dim", "stem:6 mid:10", {"share": 0.4, "settled": True, "exact": False}),
        ):
            case(
                f"nn.MultiheadAttention, batch_first={_first}, need_weights={_weights}, {_choice}, {_groups}", _groups,
                attention=_choice, **_options,
            )(lambda first=_first, weights=_weights: multihead(batch_first=first, need_weights=weights))  # fmt: skip


@case("fused qkv, heads", "stem:24 attn.qkv:4 mid:10")
def _() -> nn.Module:
    return around(FusedQkv(24, 4, inner=False))


@case("fused qkv, head dimensions", "stem:24 attn.qkv:6 mid:10", attention="head_dim")
def _() -> nn.Module:
    return around(FusedQkv(24, 4, inner=False))


@case("fused qkv, scaled_dot_product_attention, heads", "stem:24 attn.qkv:4 mid:10")
def _() -> nn.Module:
    return around(FusedQkv(24, 4, inner=False, fused=True))


@case("fused qkv, scaled_dot_product_attention, head dimensions", "stem:24 attn.qkv:6 mid:10", attention="head_dim")
def _() -> nn.Module:
    return around(FusedQkv(24, 4, inner=False, fused=True))


@case("attention scaled by its head size", "stem:24 attn.qkv:6 mid:10", attention="head_dim", exact=False)
def _() -> nn.Module:
    return around(FusedQkv(24, 4, inner=False, fused=True, fixed_scale=False))


@case("fused qkv, the inner width taken from the input, heads", "stem:24 attn.qkv:4 mid:10")
def _() -> nn.Module:
    return around(FusedQkv(24, 4))


@case("fused qkv, the inner width taken from the input, whole", "stem:4 mid:10", settled=True, share=0.4)
def _() -> nn.Module:
    return around(FusedQkv(24, 4))


@case("window attention with a table of positions", "stem:24 attn.qkv:4 mid:10")
def _() -> nn.Module:
    return around(Window(24, 4, 4))


@case("class token and position embedding", "stem:16 fc1:12", exact=False)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = tokens(m.stem(x))
        x = torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1) + m.position
        x = x + m.fc2(m.fc1(m.norm(x)).relu())
        return m.fc(x[:, 0])

    return Net(
        run, stem=conv(3, 16, stride=2), cls=nn.Parameter(torch.zeros(1, 1, 16)), fc1=nn.Linear(16, 12),
        position=nn.Parameter(torch.zeros(1, 17, 16)), norm=nn.LayerNorm(16), fc2=nn.Linear(12, 16),
        fc=nn.Linear(16, 5),
    )  # fmt: skip


@case("encoder layer of PyTorch", "stem:24 layer.self_attn:4 layer.linear1:32", exact=False)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        return m.fc(m.layer(tokens(m.stem(x))).mean(1))

    layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True, norm_first=True)
    return Net(run, stem=conv(3, 24, stride=2), layer=layer, fc=nn.Linear(24, 5))


@case("mixer", "stem:8 t1:12 fc1:6", exact=False)
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = tokens(m.stem(x))
        x = x + m.t2(m.t1(m.norm(x).transpose(1, 2)).relu()).transpose(1, 2)
        return m.fc((x + m.fc2(m.fc1(x).relu())).mean(1))

    return Net(
        run, stem=conv(3, 8, stride=2), norm=nn.LayerNorm(8), t1=nn.Linear(16, 12), t2=nn.Linear(12, 16),
        fc1=nn.Linear(8, 6), fc2=nn.Linear(6, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip


def recurrent(kind: type[nn.RNNBase], **options: Any) -> nn.Module:
    """Convolutional features read by a recurrent layer."""
    rnn = kind(8, 6, batch_first=True, **options)
    out = 12 if options.get("bidirectional") else 6
    return Net(
        lambda m, x: m.fc(m.rnn(m.stem(x).transpose(1, 2))[0][:, -1]), stem=nn.Conv1d(3, 8, 3), rnn=rnn,
        fc=nn.Linear(out, 5),
    )  # fmt: skip


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    for _layers, _both in ((1, False), (2, False), (1, True), (2, True)):
        case(
            f"{_kind.__name__}, {_layers} layers, bidirectional={_both}", "stem:8 rnn:6", shape=(2, 3, 8), macs=False
        )(lambda k=_kind, n=_layers, both=_both: recurrent(k, num_layers=n, bidirectional=both))  # fmt: skip


def packed(kind: type[nn.RNNBase], *, first: bool) -> nn.Module:
    """Sequences of unequal lengths, packed for a recurrent layer."""

    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        steps = m.stem(x).relu().permute(0, 2, 1) if first else m.stem(x).relu().permute(2, 0, 1)
        row = pack_padded_sequence(steps, torch.tensor([6, 4]), batch_first=first)
        outs, _ = pad_packed_sequence(m.rnn(row)[0], batch_first=first)
        return m.fc(outs.mean(1 if first else 0))

    return Net(run, stem=nn.Conv1d(3, 8, 3), rnn=kind(8, 6, batch_first=first), fc=nn.Linear(6, 5))


for _kind, _first in ((nn.LSTM, True), (nn.GRU, True), (nn.RNN, False)):
    case(f"{_kind.__name__} on packed sequences", "stem:8 rnn:6", shape=(2, 3, 8), macs=False)(
        lambda k=_kind, first=_first: packed(k, first=first)
    )


@case("embedding", "emb:8 fc1:6", inputs=lambda: torch.tensor([[1, 2, 3], [4, 5, 9]]))
def _() -> nn.Module:
    return Net(
        lambda m, x: m.fc2(m.fc1(m.emb(x).mean(1)).relu()), emb=nn.Embedding(10, 8), fc1=nn.Linear(8, 6),
        fc2=nn.Linear(6, 5),
    )  # fmt: skip


@case("embedding tied to the output layer", "fc1:6 fc2:8", inputs=lambda: torch.tensor([[1, 2, 3], [4, 5, 9]]))
def _() -> nn.Module:
    net = Net(
        lambda m, x: m.out((h := m.emb(x)) + m.fc2(m.fc1(h).relu())), emb=nn.Embedding(10, 8), fc1=nn.Linear(8, 6),
        fc2=nn.Linear(6, 8), out=nn.Linear(8, 10),
    )  # fmt: skip
    net.out.weight = net.emb.weight
    return net
