"""Settled sizes in a plan: calls are found by module, operator and how often that ran there before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import PlanError
from secateur.graph import SizeConflict, trace
from secateur.graph.settled import find_settled, keep_settled
from secateur.graph.sizes import Done


class Twice(nn.Module):
    """Calls the same operator twice in one module, and one more in its first run only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cached = nn.Conv2d(3, 8, 1), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cached is None:
            self.cached = torch.ones(1).cumsum(0)
        return self.conv(x).relu().sigmoid().relu() * self.cached


def calls_of(model: nn.Module) -> list[Any]:
    return trace(model, torch.zeros(1, 3, 4, 4)).recording.calls


def test_the_second_of_two_like_calls_is_found_again_in_a_shorter_trace() -> None:
    fresh = Twice().eval()
    used = copy.deepcopy(fresh)
    used(torch.zeros(1, 3, 4, 4))
    first, later = calls_of(fresh), calls_of(used)
    relus, again = ([k for k, call in enumerate(calls) if call.name == "aten::relu"] for calls in (first, later))
    assert relus != again
    kept = keep_settled([SizeConflict(relus[1], "", "relu", "why", Done(3, (relus[0],)))], first)
    assert kept == [["", "aten::relu", 1, "relu", "why", 3, [["", "aten::relu", 0]]]]
    (found,) = find_settled(kept, later)
    assert found.call == again[1]
    assert found.done == Done(3, (again[0],))


@pytest.mark.parametrize(
    "entry",
    [
        ["", "aten::relu", 2, "relu", "why", 3, []],  # it runs twice
        ["", "aten::relu", 1, "relu", "why", -1, []],
        ["", "aten::relu", 1, "relu", "why", 3, [["", "aten::relu", 7]]],
        ["", "aten::relu", 1, "relu", "why", 3, [4]],
        [4, "model", "view", "of an earlier version", 0, []],
        "nonsense",
    ],
)
def test_what_is_not_there_is_refused(entry: Any) -> None:
    with pytest.raises(PlanError, match="size in code"):
        find_settled([entry], calls_of(Twice().eval()))
