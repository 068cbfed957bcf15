"""How good a network is, in worked numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.compress.held_out import Source, source_of
from secateur.compress.judging import AGREEMENT, Judge, agreement, imitation, task_of

EXAMPLE = torch.zeros(1, 3)


def _judge(rows: int, labels: bool = True, task: Any = None) -> tuple[Judge, nn.Module]:
    """The original is right for all of the images, whose largest number is their class."""
    inputs = torch.eye(3).repeat(rows // 3, 1)
    data = [(inputs, inputs.argmax(1))] if labels else [inputs]
    return Judge(source_of(data, EXAMPLE, 0), task or task_of(None, None, None), nn.Identity()), nn.Identity()


class Shifted(nn.Module):
    """Right for class 0 alone, in evaluation mode; training mode would be seen."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return torch.stack([torch.ones(len(x)) * 0.5, x[:, 1] * 0, x[:, 2] * 0], 1)


def test_accuracy_is_the_share_of_held_out_images_that_are_right() -> None:
    judge, original = _judge(300)
    assert judge(original) == 1.0
    found = list(judge._source.held())
    share = sum(int((target == 0).sum()) for _, target in found) / judge._source.held_count
    model = Shifted()
    assert judge(model) == pytest.approx(share)
    assert model.training  # as it was
    assert (judge.unit, judge.percent, judge.told(0.875)) == ("accuracy", True, "87.5%")


def test_the_interval_is_wilsons() -> None:
    judge, _ = _judge(300)
    assert judge._source.held_count == 100
    # z = 1.96, n = 100, p = 0.9: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert judge.interval(0.9) == pytest.approx((0.8256, 0.9448), abs=1e-4)


def test_agreement() -> None:
    original = {"a": torch.tensor([3.0, 0.0]), "b": [torch.tensor([4.0])]}
    other = {"a": torch.tensor([3.0, 0.0]), "b": [torch.tensor([1.0])]}
    assert float(imitation(other, original)) == pytest.approx(9 / 25)
    assert float(agreement(other, original)) == pytest.approx(1 - 3 / 5)
    with pytest.raises(secateur.ConfigError, match="their sizes differ"):
        imitation([torch.zeros(2)], [torch.zeros(3)])


@pytest.mark.parametrize(("rows", "labels", "said"), [(9, True, "9 images are few"), (300, False, "have no labels")])
def test_where_accuracy_tells_nothing_networks_are_compared_with_the_original(
    rows: int, labels: bool, said: str
) -> None:
    judge, original = _judge(rows, labels)
    assert judge.unit == AGREEMENT
    assert said in judge.note
    assert judge(original) == 1.0
    assert judge(Shifted()) < 0.9


def test_with_a_loss_alone_less_is_better() -> None:
    judge, original = _judge(300, task=task_of(None, lambda output, target: output.sum(1).mean(), None))
    assert judge.unit == "minus loss"
    assert judge(original) == pytest.approx(-1.0)
    assert judge.points(-1.0, -1.5) == 0.5  # in its own unit
    assert judge.interval(0.5) is None


def test_a_metric_is_averaged_over_images() -> None:
    def largest(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.max(1).values.mean()

    held = [(torch.eye(3)[:1], torch.tensor([0])), (torch.zeros(3, 3), torch.zeros(3).long())]
    source = Source(3, 3, 1, lambda: held, lambda: [], None)
    judge = Judge(source, task_of(None, None, largest), nn.Identity())
    assert judge.unit == "largest"
    assert judge(nn.Identity()) == pytest.approx(1 / 4)


def test_a_task_has_its_own_loss() -> None:
    with pytest.raises(secateur.ConfigError, match="both given"):
        task_of("classification", torch.nn.functional.cross_entropy, None)
