"""Which round of a training is kept, in worked numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from _quarters import images, network
from torch import nn

from secateur.compress.held_out import source_of
from secateur.compress.judging import AGREEMENT, Judge, task_of
from secateur.compress.record import Record
from secateur.compress.training import Plan, Tuner


class Scripted(Judge):
    """A judge whose figures are given; of whom each is, it keeps the first weight."""

    def __init__(self, figures: Sequence[float], *args: Any) -> None:
        super().__init__(*args)
        self._figures, self.weights = list(figures), [math.nan]

    def __call__(self, model: nn.Module) -> float:
        self.weights.append(float(next(model.parameters()).detach().flatten()[0]))
        return self._figures.pop(0)


def _trained(figures: Sequence[float], least: float | None) -> tuple[float, int]:
    """The figure of what is kept, and the number of its round; 80 images are held out."""
    model, pair = network(), images(240)
    source = source_of([pair], torch.zeros(1, 1, 8, 8), 0)
    judge = Scripted(figures, source, task_of(None, None, None), model)
    tuner = Tuner(source, judge, Record(None, 0))
    figure = tuner.tune(model, Plan("sgd 0.01", 0.0, len(figures), 1, 0), "final", figure=0.5, least=least)
    kept = float(next(model.parameters()).detach().flatten()[0])
    return figure, judge.weights.index(kept) if kept in judge.weights else 0


# Wilson's interval of 0.9 of 80 images begins at 0.8146
@pytest.mark.parametrize(
    ("figures", "least", "wanted"),
    [
        ((0.8, 0.9, 0.85), None, (0.9, 2)),  # short trainings are compared by their best
        ((0.8, 0.9, 0.85), -math.inf, (0.85, 3)),  # chance can make the difference
        ((0.8, 0.9, 0.81), -math.inf, (0.9, 2)),  # and this one not
        ((0.8, 0.9, 0.85), 0.86, (0.9, 2)),  # more than the drop that may be
        ((0.4, 0.3), -math.inf, (0.5, 0)),  # what was before any training
        ((0.8, 0.9), -math.inf, (0.9, 2)),
    ],
)
def test_which_round_is_kept(figures: Sequence[float], least: float | None, wanted: tuple[float, int]) -> None:
    assert _trained(figures, least) == wanted


def test_what_chance_can_do() -> None:
    source = source_of([images(240)], torch.zeros(1, 1, 8, 8), 0)
    judge = Judge(source, task_of(None, None, None), network())
    assert source.held_count == 80
    assert judge.alike(0.9, 0.82)
    assert not judge.alike(0.9, 0.81)
    judge.unit = AGREEMENT  # no share of images: nothing is known of its spread
    assert not judge.alike(0.9, 0.89)
    assert judge.alike(0.9, 0.9)
