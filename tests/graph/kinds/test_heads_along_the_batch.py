"""Attention whose heads lie along the batch dimension, as before there were operators for four dimensions.

Queries, keys and values come from layers of their own, so that nothing but the shape says that batch and heads are two.
"""

from __future__ import annotations

import pytest
import torch
from _judge import Carrier, cut_rightly, image, unique
from torch import nn

C, HEADS = 16, 4


class Attention(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.heads = how, HEADS
        self.q, self.k, self.v, self.proj = (nn.Linear(C, C) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        tokens = x.flatten(2)
        mixed = getattr(self, self.how)(tokens.permute(2, 0, 1), b, h * w)
        return x + self.proj(mixed).permute(1, 2, 0).reshape(b, -1, h, w)

    def time_first(self, tokens: torch.Tensor, b: int, n: int) -> torch.Tensor:
        q, k, v = (f(tokens).view(n, b * self.heads, -1).transpose(0, 1) for f in (self.q, self.k, self.v))
        mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return mixed.transpose(0, 1).contiguous().view(n, b, -1)

    def batch_first(self, tokens: torch.Tensor, b: int, n: int) -> torch.Tensor:
        tokens = tokens.transpose(0, 1)
        q, k, v = (f(tokens).view(b, n, self.heads, -1).transpose(1, 2).flatten(0, 1) for f in (self.q, self.k, self.v))
        mixed = torch.baddbmm(torch.zeros(1, 1, 1), q, k.mT).softmax(-1) @ v
        return mixed.unflatten(0, (b, -1)).permute(2, 0, 1, 3).flatten(2)

    def heads_outside(self, tokens: torch.Tensor, b: int, n: int) -> torch.Tensor:
        q, k, v = (f(tokens).view(n, b, self.heads, -1).permute(2, 1, 0, 3) for f in (self.q, self.k, self.v))
        q, k, v = (t.reshape(self.heads * b, n, -1) for t in (q, k, v))
        mixed = torch.einsum("hnm,hmd->hnd", torch.einsum("hnd,hmd->hnm", q, k).softmax(-1), v)
        return mixed.view(self.heads, b, n, -1).permute(2, 1, 0, 3).reshape(n, b, -1)

    def chunks(self, tokens: torch.Tensor, b: int, n: int) -> torch.Tensor:
        q, k, v = (torch.cat(f(tokens).chunk(self.heads, 2), 1) for f in (self.q, self.k, self.v))
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        mixed = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).transpose(0, 1)
        return torch.cat(mixed.chunk(self.heads, 1), 2)


@pytest.mark.parametrize("how", ["time_first", "batch_first", "heads_outside", "chunks"])
def test_heads_are_found_within_the_batch(how: str) -> None:
    inputs = image(2, 3, 6, 6)
    result = cut_rightly(unique(Carrier(Attention(how))).eval(), inputs, 0.5, others=[image(3, 3, 6, 6)])
    assert result.model.special.q.out_features < C
    assert result.model.special.v.out_features < C


class Cross(nn.Module):
    """PyTorch's own attention, asked for its weights as it is by default, where queries and keys differ."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(C, HEADS, batch_first=True, **options)
        self.context = nn.Conv2d(C, self.attention.kdim, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near, far = x.flatten(2).mT, self.context(x).flatten(2).mT
        return x + self.attention(near, far, far)[0].mT.unflatten(2, x.shape[2:])


@pytest.mark.parametrize(
    "options", [{}, {"kdim": 12, "vdim": 12}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
def test_cross_attention_with_weights(options: dict[str, object]) -> None:
    result = cut_rightly(unique(Carrier(Cross(**options))).eval(), image(2, 3, 6, 6), 0.6)
    assert result.model.special.attention.num_heads < HEADS
