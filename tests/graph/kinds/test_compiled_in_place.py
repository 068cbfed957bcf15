"""Layers that torch.compile has taken in hand: they are seen as they are without it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from _judge import TOLERANCE, error, image, macs, relu_conv, unique
from torch import nn

import secateur

pytestmark = pytest.mark.long  # `make long` runs it


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = relu_conv(16, 12), nn.Conv2d(12, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.a(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.out = relu_conv(3, 16), nn.Sequential(Block(), Block()), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.pooled(self.blocks(self.stem(x))))

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu().mean((2, 3))


def every_block(model: Net) -> None:
    for block in model.blocks:
        block.compile(backend="eager")


def whole(model: Net) -> None:
    model.compile(backend="eager", dynamic=False)


def part_and_whole(model: Net) -> None:
    model.blocks[1].a.compile(backend="eager")
    model.compile(backend="eager")


def leaf(model: Net) -> None:
    model.stem[0].compile(backend="eager")


def method(model: Net) -> None:
    model.pooled = torch.compile(model.pooled, backend="eager")


def forward_method(model: Net) -> None:
    block = model.blocks[0]
    block.forward = torch.compile(block.forward, backend="eager")


def wrapped_inside(model: Net) -> None:
    model.blocks = torch.compile(model.blocks, backend="eager")


WAYS: list[Callable[[Net], None]] = [
    every_block, whole, part_and_whole, leaf, method, forward_method, wrapped_inside
]  # fmt: skip


def plain_names(names: dict[str, int]) -> dict[str, int]:
    return {name.replace("_orig_mod.", ""): width for name, width in names.items()}


@pytest.fixture(autouse=True)
def clean() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
def test_compiled_layers_have_the_same_groups_and_give_the_same_cut(way: Callable[[Net], None]) -> None:
    plain = unique(Net()).eval()
    wanted = secateur.prune(plain, image(), budget="flops=0.5")
    model = copy.deepcopy(plain)
    way(model)
    if way is every_block:  # has run before
        with torch.no_grad():
            model(image())
    result = secateur.prune(model, image(), budget="flops=0.5")
    assert plain_names({g.name: g.width for g in result.graph.groups}) == {g.name: g.width for g in wanted.graph.groups}
    assert plain_names(result.plan.widths) == wanted.plan.widths
    assert result.after.macs == wanted.after.macs == macs(wanted.model, image())
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(result.model(image()), wanted.model(image()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(image()), plain(image()), rtol=1e-4, atol=1e-5)
    assert error(plain, wanted.model, image()) <= TOLERANCE


def test_what_was_compiled_in_place_stays_compiled() -> None:
    model = unique(Net()).eval()
    every_block(model)
    before = [block._compiled_call_impl for block in model.blocks]
    secateur.prune(model, image(), budget="flops=0.5")
    assert all(b is block._compiled_call_impl for b, block in zip(before, model.blocks, strict=True))
    assert all(before)
