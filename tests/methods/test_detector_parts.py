"""Methods on the parts of current detectors: halves split by stated widths, and attention that views and splits.

The blocks are spelt as in Ultralytics' YOLO11: C2f splits its first convolution's output into (c, c); attention views
one convolution's output as heads and splits each into (key, key, value) by sizes that are attributes of the module.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.methods import METHODS, MethodRow
from secateur.methods.contract import Method
from secateur.testing._subject import train

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4
#: One of each way to come to widths: one error for all layers, an own search, and a model that gets narrower.
SOME = ("pfp", "cp", "dcpcac")


def conv(inputs: int, outputs: int, size: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class C2f(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1, self.cv2 = conv(inputs, 2 * self.c), conv(3 * self.c, outputs)
        self.m = nn.ModuleList([nn.Sequential(conv(self.c, self.c, 3), nn.SiLU(), conv(self.c, self.c, 3))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(F.silu(self.cv1(x)).split((self.c, self.c), 1))
        y.extend(m(y[-1]) + y[-1] for m in self.m)
        return F.silu(self.cv2(torch.cat(y, 1)))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.key_dim = self.head_dim // 2
        self.qkv = conv(dim, dim + 2 * self.key_dim * heads)
        self.proj, self.pe = conv(dim, dim), conv(dim, dim, 3, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attention = (q.transpose(-2, -1) @ k * self.key_dim**-0.5).softmax(-1)
        x = (v @ attention.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(x)


class PSA(nn.Module):
    """Half of the channels go through attention and a feed-forward part, and are joined with the other half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c = width // 2
        self.cv1, self.cv2 = conv(width, 2 * self.c), conv(2 * self.c, width)
        self.attn = Attention(self.c, 2)
        self.ffn = nn.Sequential(conv(self.c, 2 * self.c), nn.SiLU(), conv(2 * self.c, self.c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        b = b + self.attn(b)
        b = b + self.ffn(b)
        return F.silu(self.cv2(torch.cat((a, b), 1)))


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.c2f, self.psa = conv(3, 16, 3), C2f(16, 24), PSA(24)
        self.cv3, self.fc = conv(24, 16, 3), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.psa(self.c2f(F.silu(self.stem(x))))
        return self.fc(F.silu(self.cv3(x)).mean((2, 3)))


def ready(row: MethodRow) -> Method:
    method = row.factory(Parts().eval(), IMAGES[:2], budget="flops=0.6", steps=4, seed=0)
    if row.acts == "while training":
        train(method, [(IMAGES, LABELS)] * 4)
    if row.needs == "calibration":
        method.collect([(IMAGES, LABELS)], F.cross_entropy)
    return method


@pytest.mark.parametrize("row", [row for row in METHODS if row.name in SOME], ids=lambda row: row.name)
def test_a_method_finishes_on_parts_of_detectors(row: MethodRow) -> None:
    method = ready(row)
    small = method.finish()
    result = method.result
    assert result is not None
    assert result.verification is not None
    assert result.verification.passed
    assert 0.97 <= result.reached("flops") / 0.6 <= 1
    prunable = {member.name for group in method.graph.groups for member in group.members}
    assert {"psa.attn.qkv.0.weight", "c2f.cv1.0.weight"} <= prunable, "heads and halves go, and are not frozen"
    F.cross_entropy(small.train()(IMAGES), LABELS).backward()
