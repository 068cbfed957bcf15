"""An exit that the example does not take: what it would return stays whole, and a question freezes nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _judge import cut_rightly, image, relu_conv, unique
from torch import nn
from torch.nn import functional as F

import secateur

EXITS: dict[str, Callable[[torch.Tensor, float], bool]] = {
    "largest": lambda scores, most: bool(scores.softmax(1).amax(1).min() > most),
    "item": lambda scores, most: F.softmax(scores, dim=1).max().item() > most,
    "all": lambda scores, most: bool(torch.all(torch.max(F.softmax(scores, 1), 1)[0] > most)),
    "entropy": lambda scores, most: -(scores.softmax(1) * scores.log_softmax(1)).sum(1).mean().item() < 1 - most,
    "margin": lambda scores, most: float(scores.topk(2).values.diff().abs().min()) > 1000 * most,
}


class Exits(nn.Module):
    """Class scores halfway, returned where they are sure enough."""

    def __init__(self, sure: Callable[[torch.Tensor, float], bool], most: float) -> None:
        super().__init__()
        self.sure, self.most = sure, most
        self.a, self.b = relu_conv(3, 12), relu_conv(12, 16)
        self.hidden, self.early, self.late = nn.Linear(12, 8), nn.Linear(8, 5), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        scores = self.early(self.hidden(x.mean((2, 3))).relu())
        return scores if self.sure(scores, self.most) else self.late(self.b(x).mean((2, 3)))


@pytest.mark.parametrize("how", EXITS)
def test_an_exit_that_is_not_taken_keeps_its_classes(how: str) -> None:
    result = cut_rightly(unique(Exits(EXITS[how], 2.0)).eval(), image())
    assert {group.name for group in result.graph.groups} == {"a.0", "b.0", "hidden"}
    result.model.most = -1000.0
    assert result.model(image()).shape == (2, 5)


def test_the_reason_is_told() -> None:
    graph = secateur.trace(Exits(EXITS["largest"], 2.0), image())
    assert {f.name: f.reason for f in graph.frozen}["early"].startswith(
        "no layer reads it, and code that goes by numbers"
    )


class Guarded(nn.Module):
    """Asks whether all is well, and mixes pixels by queries and keys that no layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.k = relu_conv(3, 16), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.out = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        assert not torch.isnan(x).any()
        mixed = self.q(x).flatten(2).mT @ self.k(x).flatten(2)
        return self.out((x.flatten(2) @ mixed.softmax(1)).view_as(x))


def test_a_question_freezes_nothing_that_layers_read() -> None:
    result = cut_rightly(unique(Guarded()).eval(), image(), 0.7)
    assert {group.name for group in result.graph.groups} == {"a.0", "q"}


class Routed(nn.Module):
    """Images with a positive mean go to one layer, the others to another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.down, self.out = relu_conv(3, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features, up = self.a(x).mean((2, 3)), x.mean((1, 2, 3)) > 0
        result = features.new_zeros(len(x), 8)
        for chosen, layer in ((up, self.up), (~up, self.down)):
            if chosen.any():
                result[chosen] = layer(features[chosen])
        return self.out(result)


def test_layers_that_the_example_does_not_reach_are_named() -> None:
    with pytest.raises(secateur.VerificationError, match=r"did not reach down\.weight.*go every way") as refusal:
        secateur.prune(unique(Routed()).eval(), image() + 5, budget="flops=0.5")
    assert "verify=False" not in str(refusal.value)


def test_inputs_that_go_every_way_are_enough() -> None:
    cut_rightly(unique(Routed()).eval(), torch.cat([image() + 5, image() - 5]))
