"""Images that hold no numbers, and answers that overflow: one sentence, whatever learns from them."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

import secateur
from secateur.batches import parts_of
from secateur.errors import InputError

IMAGES, LABELS = torch.randn(16, 3, 8, 8), torch.arange(16) % 4


def _network(norm: type[nn.Module] = nn.Identity) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(128, 4)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "method", ["cap", "catro", "pfp", "adapruner", "itpruner", "prunenet", "cp", "dcp", "dkp", "taylor"]
)
def test_an_image_that_holds_no_number_is_refused(method: str, late: bool, value: float) -> None:
    images = IMAGES.clone()
    images[13 if late else 2, 1, 4, 4] = value
    batches = [(images[:8], LABELS[:8]), (images[8:], LABELS[8:])]
    budget = "params=0.6" if method == "dkp" else "flops=0.6"
    with pytest.raises(InputError, match="NaN or infinite"):
        secateur.prune(_network(), IMAGES[:2], method=method, budget=budget, data=batches)


@pytest.mark.parametrize("repair", [row.name for row in secateur.repair.REPAIRS])
def test_a_repair_refuses_it_too(repair: str) -> None:
    images = IMAGES.clone()
    images[5] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        secateur.prune(_network(nn.BatchNorm2d), IMAGES[:2], budget="flops=0.6", data=[images], repair=repair)


@pytest.mark.parametrize("way", [{"method": "cap"}, {"method": "prunenet"}, {"repair": "compensation"}])
def test_answers_that_overflow_are_refused(way: dict[str, Any]) -> None:
    """A loop that waits for a matrix to become definite never ends where it holds no numbers."""
    network = _network()
    with torch.no_grad():
        for layer in (network[0], network[3]):
            cast(nn.Conv2d, layer).weight.mul_(1e25)
    with pytest.raises(InputError, match="is not finite"):
        secateur.prune(network, IMAGES[:2] * 1e-20, budget="flops=0.6", data=[(IMAGES, LABELS)], **way)


def test_a_mask_of_infinities_is_an_input_as_any_other() -> None:
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -float("inf"))
    inputs, _ = parts_of(((IMAGES[:4], mask), LABELS[:4]), (IMAGES[:2], mask))
    assert inputs[1] is mask
    with pytest.raises(InputError, match="NaN or infinite"):
        parts_of(((IMAGES[:4], mask), LABELS[:4]), (IMAGES[:2], torch.zeros(4, 4)))
