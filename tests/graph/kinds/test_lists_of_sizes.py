"""Several numbers taken from a width and put into one tensor: the cut is told to compute with others, not refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from _judge import image, macs, relu_conv, unique
from torch import nn

import secateur

LISTS: dict[str, Callable[[int, torch.Tensor], torch.Tensor]] = {
    "integers": lambda c, x: torch.tensor([c // 2, c // 4]),
    "moved to the input": lambda c, x: torch.tensor([c // 2, c // 4]).to(x),
    "roots": lambda c, x: torch.tensor([c // 2, c // 4], dtype=torch.float).rsqrt(),
    "of the input's type": lambda c, x: x.new_tensor((c**0.5, 1 / c)),
    "stacked": lambda c, x: torch.stack([torch.tensor(1.0 / c), torch.tensor(c / 3.0)]),
    "softmax": lambda c, x: torch.tensor([float(c), 1.0]).softmax(0) * 9,
    "written one by one": lambda c, x: _written(c),
    "numpy": lambda c, x: torch.from_numpy(np.array([c, c / 2], dtype="float32")),
    "a matrix": lambda c, x: torch.tensor([[c], [c // 2]]),
}


def _written(width: int) -> torch.Tensor:
    both = torch.zeros(2)
    both[0], both[1] = width, 1 / width
    return both


class Scaled(nn.Module):
    """Both halves of what follows are scaled, each by a number of its own."""

    def __init__(self, numbers: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.numbers = numbers
        self.a, self.b, self.out = relu_conv(3, 24), relu_conv(24, 16), nn.Conv2d(32, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x))
        scales = self.numbers(x.shape[1], x).view(1, 2, 1, 1, 1)
        return self.out((x[:, None] * scales).flatten(1, 2))


@pytest.mark.parametrize("how", LISTS)
def test_numbers_of_a_width_in_one_tensor_are_told(how: str) -> None:
    model = unique(Scaled(LISTS[how])).eval()
    result = secateur.prune(model, image(), method="random", allocator="ratios", ratios={"*": 0.5})
    proof = result.verification
    assert proof.passed
    assert not proof.exact
    assert all(reason.startswith("a constant that depends on the width") for reason in proof.reasons)
    assert macs(result.model, image()) < 0.5 * macs(model, image())


def test_a_list_of_numbers_that_follows_no_width_leaves_the_cut_exact() -> None:
    model = unique(Scaled(lambda c, x: torch.tensor([2, 3]))).eval()
    assert secateur.prune(model, image(), budget="flops=0.5").verification.exact


def test_a_list_along_channels_keeps_them() -> None:
    class Own(Scaled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.b(self.a(x))
            x = x * torch.tensor([1.0 + k for k in range(x.shape[1])]).view(-1, 1, 1)
            return self.out(torch.cat([x, x], 1))

    graph = secateur.trace(Own(LISTS["integers"]), image())
    assert [group.name for group in graph.groups] == ["a.0"]
