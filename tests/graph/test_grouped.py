"""Whole groups of a grouped convolution go where heads of attention run through them; elsewhere positions go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _harness import assert_applies, assert_sound, halve, masked_error, randomise
from structures._case import Net, conv, head
from torch import nn

import secateur


class Heads(nn.Module):
    """Attention over positions whose queries, keys and values pass grouped convolutions, a group of each a head."""

    def __init__(self, heads: int, size: int, *, norm: bool = False, depthwise: bool = True) -> None:
        super().__init__()
        width = 3 * heads * size
        self.size, self.qkv = size, conv(12, width, 1)
        self.spread = conv(width, width, 3, groups=width) if depthwise else nn.Identity()
        self.each = nn.Conv2d(width, width, 1, groups=3 * heads)
        self.proj, self.norm = conv(heads * size, 12, 1), nn.GroupNorm(1, 12) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, height, width = x.shape
        y = self.each(self.spread(self.qkv(x))).reshape(b, -1, 3 * self.size, height * width).transpose(-1, -2)
        y = y * y.select(-1, 0).sigmoid().unsqueeze(-1)  # by its number, so no feature of a head may go
        q, k, v = y.split(self.size, -1)
        y = (q.relu() @ (k.relu().transpose(-1, -2) @ v)).transpose(-1, -2)
        return x + self.norm(self.proj(y.reshape(b, -1, height, width)))


def net(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = {"stem": conv(3, 12), "at": Heads(6, 4, **options), "head": head(12)}
    return randomise(Net(lambda m, x: m.head(m.at(m.stem(x))), **layers)).eval()


@pytest.mark.parametrize("depthwise", [True, False])
def test_heads_go_with_their_groups(depthwise: bool) -> None:
    model, inputs = net(depthwise=depthwise), torch.randn(2, 3, 6, 6)
    result = halve(model, inputs)
    assert {g.name: g.width for g in result.graph.groups} == {"stem": 12, "at.qkv": 6}
    assert_sound(result, inputs)
    assert result.verification.exact
    assert masked_error(result, inputs) <= 1e-5
    each = result.model.at.each
    assert (each.groups, each.in_channels, each.out_channels) == (9, 36, 36)
    assert each.weight.shape == (36, 4, 1, 1)
    assert_applies(result, net(depthwise=depthwise), inputs)
    again = halve(result.model, inputs, seed=2)
    assert {g.name: g.width for g in again.graph.groups} == {"stem": 6, "at.qkv": 3}
    assert_sound(again, inputs)


def test_a_norm_behind_is_proven_on_the_survivors() -> None:
    model, inputs = net(norm=True), torch.randn(2, 3, 6, 6)
    result = halve(model, inputs)
    assert {g.name: g.width for g in result.graph.groups} == {"stem": 12, "at.qkv": 6}
    assert result.verification.passed
    assert not result.verification.exact
    assert result.model.at.each.groups == 9


def test_without_heads_positions_go() -> None:
    model = Net(lambda m, x: m.head(m.b(m.a(x))), a=conv(3, 12), b=conv(12, 12, groups=3), head=head(12))
    graph = secateur.trace(model, torch.randn(2, 3, 6, 6))
    assert {g.name: g.width for g in graph.groups} == {"a": 4, "b": 4}
    assert all(not any(e.arg == "groups" for e in call.expects) for call in graph.recording.calls)
