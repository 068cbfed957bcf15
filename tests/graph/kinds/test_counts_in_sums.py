"""The number of channels as a number to compute with: however it is spelt, the cut is right and says that it counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _judge import TOLERANCE, image, masked, relu_conv, unique
from torch import nn

import secateur

Count = Callable[[torch.Tensor, int], torch.Tensor]

WAYS: dict[str, Count] = {
    "a mean by hand": lambda h, n: h * (h.sum(1, keepdim=True) / n),
    "a factor": lambda h, n: h * n,
    "a difference": lambda h, n: h - n,
    "a power": lambda h, n: (h + 1) ** n / 2.0**n,
    "a bound": lambda h, n: h.clamp(max=n) / n,
    "a keyword": lambda h, n: torch.add(h, h, alpha=n),
    "a keyword of three": lambda h, n: torch.addcmul(h, h, h, value=n),
    "a tensor of one number": lambda h, n: h / h.new_tensor([n]),
    "a tensor of no dimension": lambda h, n: h / torch.tensor(n),
    "filled with it": lambda h, n: h / torch.full((1,), n),
    "filled with it later": lambda h, n: h / torch.ones(1).fill_(n),
    "filled like another": lambda h, n: h / torch.full_like(h[:1, :1, :1, :1], n),
    "an integer in a list": lambda h, n: h / torch.tensor([n]),
    "an integer filled like another": lambda h, n: h / torch.full_like(torch.zeros(1, 1, dtype=torch.long), n),
    "a new integer": lambda h, n: h * torch.zeros(1, dtype=torch.int32).new_full((1, 1, 1), n),
    "an integer of 16 bits": lambda h, n: h.mul(torch.tensor([[n]], dtype=torch.int16)),
    "an integer that is subtracted": lambda h, n: torch.sub(h, torch.as_tensor([n])),
    "added to a sum of all": lambda h, n: h / torch.add((h * 0).sum(), n),
    "a running mean": lambda h, n: h.cumsum(1) / n,
}


class Counting(nn.Module):
    """Computes with the number of its channels, or with another that it is told."""

    def __init__(self, way: Count) -> None:
        super().__init__()
        self.a, self.b, self.scores, self.way = relu_conv(3, 16), relu_conv(16, 16), nn.Linear(16, 5), way
        self.told: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.b(self.a(x))
        found: torch.Tensor = self.scores(self.way(h, h.shape[1] if self.told is None else self.told).mean((2, 3)))
        return found


@pytest.mark.parametrize("how", WAYS)
def test_a_number_of_channels_that_is_computed_with(how: str) -> None:
    model = unique(Counting(WAYS[how])).eval()
    result = secateur.prune(model, image(), allocator="ratios", ratios={"*": 0.5})
    width = result.model.b[0].out_channels
    assert width == (9 if how == "filled like another" else 8)  # its first channel stays
    proof = result.verification
    assert proof is not None
    assert not proof.exact
    assert any("depends on the width" in reason for reason in proof.reasons)
    want = masked(model, result.model)
    want.told = width
    difference = (want(image()) - result.model(image())).abs().max() / want(image()).abs().max()
    assert float(difference.detach()) <= TOLERANCE


def test_places_that_are_counted_stay_what_they_are() -> None:
    """Integers among integers are places: the norm makes the proof go the long way, and they agree there."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.scores = relu_conv(3, 16), nn.GroupNorm(1, 16), nn.Conv2d(16, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.norm(self.a(x))
            rows = h.shape[2] - 1 - torch.arange(h.shape[2])
            found: torch.Tensor = self.scores(h[:, :, rows])
            return found

    result = secateur.prune(unique(Turned()).eval(), image(), allocator="ratios", ratios={"*": 0.5})
    assert result.verification is not None
    assert result.verification.passed
