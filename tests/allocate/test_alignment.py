"""Alignment: widths of layers are multiples, whatever a channel is there and however many groups make one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _fake_graph import resnet50
from torch import nn

import secateur
from secateur.allocate import Constraints
from secateur.allocate.alignment import Alignment
from secateur.graph.sides import Sides

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Modules and numbers by name, and a forward that is told."""

    def __init__(self, forward: Callable[[Net, torch.Tensor], torch.Tensor], **modules: Any) -> None:
        super().__init__()
        self.told = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.told(self, x)


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def heads(features: int) -> Net:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q, k, v = m.qkv(x).view(b, n, 3, -1, features).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return m.out((x + m.p(y)).mean(1))

    return Net(
        forward, a=conv(3, 48), qkv=nn.Linear(48, 18 * features), p=nn.Linear(6 * features, 48), out=nn.Linear(48, 5)
    )


# several indices a channel: fewer channels than the multiple are enough
SEVERAL = {
    "group norm": lambda: Net(
        lambda m, x: m.o(m.n(m.b(F.relu(m.m(m.a(x)))))), a=conv(3, 32), m=nn.GroupNorm(8, 32), b=conv(32, 64),
        n=nn.GroupNorm(8, 64), o=head(64),
    ),
    "grouped convolution": lambda: Net(
        lambda m, x: m.o(F.relu(m.g(F.relu(m.a(x))))), a=conv(3, 64), g=conv(64, 64, groups=8), o=head(64)
    ),
    "grouped in one dimension": lambda: Net(
        lambda m, x: m.o(m.g(m.a(x.flatten(2)).relu()).relu().mean(2)), a=nn.Conv1d(3, 48, 1),
        g=nn.Conv1d(48, 48, 3, groups=8), o=nn.Linear(48, 5),
    ),
    "heads of eight": lambda: heads(8),
    "heads of four": lambda: heads(4),
    "halves of a gate": lambda: Net(lambda m, x: m.o(F.glu(m.a(x), 1)), a=conv(3, 48), o=head(24)),
    "pixel shuffle": lambda: Net(lambda m, x: m.o(F.pixel_shuffle(m.a(x), 2)), a=conv(3, 64), o=head(16)),
    "flattened": lambda: Net(
        lambda m, x: m.o(F.adaptive_avg_pool2d(m.a(x), 2).flatten(1)), a=conv(3, 24), o=nn.Linear(96, 5)
    ),
}  # fmt: skip


def misaligned(model: nn.Module, cut: nn.Module, align: int) -> dict[str, int]:
    """Widths of layers that were multiples and are none."""
    whole, found = dict(model.named_modules()), {}
    for name, module in cut.named_modules():
        for attribute in ("out_channels", "in_channels", "out_features", "in_features"):
            before, now = getattr(whole[name], attribute, 0), getattr(module, attribute, 0)
            if before % align == 0 and now % align:
                found[f"{name}.{attribute}"] = now
    return found


@pytest.mark.parametrize("name", SEVERAL)
def test_widths_of_layers_are_multiples(name: str) -> None:
    torch.manual_seed(0)
    model = SEVERAL[name]()
    result = secateur.prune(model, IMAGE, budget="flops=0.7", align=8, verify=False)
    assert misaligned(model, result.model, 8) == {}
    assert result.reached("flops") <= 0.7


@pytest.mark.parametrize(
    ("name", "align", "step"),
    [("heads of eight", 8, 1), ("heads of eight", 16, 2), ("heads of four", 8, 2), ("group norm", 8, 1),
     ("grouped convolution", 32, 4), ("halves of a gate", 8, 8), ("flattened", 8, 8)],
)  # fmt: skip
def test_how_many_channels_are_a_multiple(name: str, align: int, step: int) -> None:
    graph = secateur.trace(SEVERAL[name](), IMAGE)
    assert Constraints(align=align).steps(graph)[graph.groups[-1].name] == step


# one layer that is two groups of no multiple: twenty and twelve of thirty-two
PARTS = {
    "split of one layer": (
        lambda: Net(
            lambda m, x: m.o(m.c(torch.cat([m.b((y := m.a(x).split([m.h, m.k], 1))[0]), y[1]], 1))), a=conv(3, 32),
            b=conv(20, 24), c=conv(36, 16), o=head(16), h=20, k=12,
        ),
        {"a.out_channels"},
    ),
    "slices of one layer": (
        lambda: Net(
            lambda m, x: m.o(m.b((y := m.a(x))[:, : m.h]) + m.c(y[:, m.h :])), a=conv(3, 32), b=conv(20, 16),
            c=conv(12, 16), o=head(16), h=20,
        ),
        {"a.out_channels"},
    ),
    "concatenation": (
        lambda: Net(
            lambda m, x: m.o(m.c(torch.cat([m.a(x), m.b(x)], 1))), a=conv(3, 20), b=conv(3, 12), c=conv(32, 16),
            o=head(16),
        ),
        {"c.in_channels"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("budget", ["flops=0.35", "flops=0.75"])
@pytest.mark.parametrize("name", PARTS)
def test_layers_of_several_groups_are_multiples(name: str, budget: str) -> None:
    torch.manual_seed(0)
    make, straight = PARTS[name]
    model = make()
    result = secateur.prune(model, IMAGE, budget=budget, align=8, verify=False)
    crooked = straight & misaligned(model, result.model, 8).keys()
    told = "".join(result.plan.provenance.get("notes", ()))  # inputs may stay where the budget would be wasted
    assert not crooked or (name == "concatenation" and "does not hold for c (inputs)" in told)
    assert not all(mask.all() for mask in result.plan.masks.values())


def test_nothing_to_remove_leaves_all_whole() -> None:
    model = PARTS["split of one layer"][0]()
    result = secateur.prune(model, IMAGE, budget="flops=1.0", align=8, verify=False)
    assert all(mask.all() for mask in result.plan.masks.values())


def test_what_cannot_be_straight_is_said() -> None:
    model = PARTS["slices of one layer"][0]()
    result = secateur.prune(model, IMAGE, allocator="ratios", ratios={"b:in": 0.5}, align=8)
    (note,) = result.plan.provenance["notes"]
    assert "align=8 does not hold for a 28" in note


def sides(*rows: tuple[list[int], int, bool]) -> Sides:
    names = tuple(f"layer{k}" for k in range(len(rows)))
    return Sides(
        names, np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), np.array([r[2] for r in rows])
    )


def alignment(whole: list[int], found: Sides, align: int = 8) -> Alignment:
    class Graph:
        groups = tuple(type("Group", (), {"width": width}) for width in whole)

        def sides(self) -> Sides:
            return found

    return Alignment.of(Graph(), align)  # type: ignore[arg-type]


def test_groups_beside_what_stays_lose_multiples() -> None:
    # 6 + 6 + 36 of 48: the small ones cannot be a multiple of eight, so the large one is 4 more than one
    found = alignment([6, 6, 36], sides(([1, 1, 1], 48, False)))
    floors, steps = found.grid(np.array([1, 1, 1]))
    assert floors.tolist() == [6, 6, 4]
    assert steps.tolist() == [8, 8, 8]


def test_beside_frozen_channels() -> None:
    floors, _ = alignment([13], sides(([1], 16, False))).grid(np.array([1]))  # three stay: 5 + 3 = 8
    assert floors.tolist() == [5]


def test_a_narrow_layer_is_never_a_multiple() -> None:
    # 6 heads of 8 features, and a linear layer with one output a head
    assert alignment([6], sides(([8], 48, False), ([1], 6, False))).steps.tolist() == [1]
    assert alignment([6], sides(([1], 6, False))).steps.tolist() == [8]


def test_what_is_crooked() -> None:
    found = alignment([20, 12], sides(([1, 1], 32, False), ([1, 0], 20, False), ([1, 1], 32, True)))
    assert found.crooked(np.array([20, 8])).tolist() == [0, 2]
    assert found.crooked(np.array([20, 8]), inputs=False).tolist() == [0]
    assert found.crooked(np.array([16, 8])).tolist() == found.crooked(np.array([20, 12])).tolist() == []
    assert found.odd(np.array([20, 8]), np.array([8, 8]), inputs=False).tolist() == [True, False]
    assert found.tops(np.array([8, 8])).tolist() == [16, 8]


def test_graphs_whose_channels_are_one_index_are_as_ever() -> None:
    graph = resnet50()
    floors, steps = Constraints(align=8, min_channels=9).grid(graph)
    assert steps.tolist() == [8] * len(graph.groups)
    assert floors.tolist() == [min(16, group.width) for group in graph.groups]
