"""Two sizes in one forward pass, the first of which hides the second from trial cuts: each is settled for itself."""

from __future__ import annotations

import pytest
import torch
from _judge import cut_rightly, image, relu_conv, unique
from torch import nn
from torch.nn import functional as F

C = 24


class Mixed(nn.Module):
    """Four heads by a literal, then a shape that must be that of the input: everything in one forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.mid = relu_conv(3, C), relu_conv(C, C)
        self.q, self.kv, self.proj = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.post, self.out = relu_conv(C, C), nn.Conv2d(C, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.stem(x))
        b, c, h, w = x.shape
        n = h * w
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.heads(tokens)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        mixed = self.proj(mixed).transpose(1, 2)
        mixed = mixed.reshape(x.shape) if self.how == "unflatten" else mixed.reshape(b, c, h, w)
        return self.out(self.post(mixed))

    def heads(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b, n, _ = tokens.shape
        if self.how == "view":
            q = self.q(tokens).view(b, n, 4, -1).transpose(1, 2)
            k, v = self.kv(tokens).view(b, n, 2, 2, -1).permute(2, 0, 3, 1, 4)
        elif self.how == "unflatten":
            q = self.q(tokens).unflatten(2, (4, -1)).transpose(1, 2)
            k, v = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in self.kv(tokens).chunk(2, 2))
        else:
            q = self.q(tokens).reshape(b, n, 4, -1).movedim(2, 1)
            k, v = self.kv(tokens).reshape(b, n, 2, 2, -1).movedim(1, 3).unbind(1)
        return q, *(t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(b, 4, n, -1) for t in (k, v))


@pytest.mark.parametrize("how", ["view", "unflatten", "movedim"])
def test_each_of_two_sizes_is_settled(how: str) -> None:
    cut_rightly(unique(Mixed(how)).eval(), image(2, 3, 4, 4), 0.55, budget="flops=0.5")
