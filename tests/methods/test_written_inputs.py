"""Networks that write over their inputs: every pass sees the same images, and the user's stay as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur

IMAGES = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 5
LABELS = torch.arange(16) % 3


class Normalising(nn.Module):
    """Normalises its images first, in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inplace = inplace
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.sub_(5).div_(3) if self.inplace else (x - 5) / 3
        answer: torch.Tensor = self.head(F.relu(self.b(F.relu(self.norm(self.a(x))))).mean((2, 3)))
        return answer


def pruned(name: str, inplace: bool) -> nn.Module:
    """The narrow network; what was shown is what it was."""
    row, example, shown = secateur.methods.method(name), IMAGES[:2].clone(), IMAGES.clone()
    pruner = row.factory(Normalising(inplace), example, budget="flops=0.7", steps=4)
    if row.collects:
        pruner.collect([(shown, LABELS)], F.cross_entropy)
    pruner.train()
    for _ in range(4 if row.needs == "training" else 0):
        pruner.before_forward(LABELS)
        output = pruner(IMAGES.clone())
        pruner.after_forward(output, LABELS)
        (F.cross_entropy(output, LABELS) + pruner.loss()).backward()
        pruner.after_backward()
        pruner.after_step()
    pruner.after_epoch()
    small = pruner.finish()
    assert torch.equal(example, IMAGES[:2])
    assert torch.equal(shown, IMAGES)
    return small


@pytest.mark.parametrize(
    "name", ["bwcp", "cap", "catro", "cp", "csgd", "cwb", "dcp", "functionality", "gdp", "group_fisher", "nap", "pfp"]
)
def test_they_are_pruned_as_those_that_do_not(name: str) -> None:
    one, other = (pruned(name, inplace).state_dict() for inplace in (True, False))
    assert {key: tensor.shape for key, tensor in one.items()} == {key: tensor.shape for key, tensor in other.items()}
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key])
