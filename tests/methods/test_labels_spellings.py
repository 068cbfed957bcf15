"""Class numbers as people have them: of any integer type, none for some samples, beginning with 1, none at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import ConfigError, InputError, SecateurError
from secateur.methods import METHODS

IMAGES = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 4
#: Methods that look at labels and need no training.
LOOKING = [row.name for row in METHODS if row.needs == "calibration" and row.labels and row.acts == "after training"]


def _network(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs)).eval()


def _pruned(method: str, labels: torch.Tensor, outputs: int = 4, **options: Any) -> secateur.Result:
    batches = [(IMAGES[:12], labels[:12]), (IMAGES[12:], labels[12:])]
    budget = "params=0.7" if method == "dkp" else "flops=0.7"
    return secateur.prune(_network(outputs), IMAGES[:2], method=method, budget=budget, data=batches, **options)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("taylor", torch.int32), ("taylor", torch.uint8), ("taylor", torch.int16), ("dcp", torch.int32),
        ("cap", torch.uint8), ("adapruner", torch.int16), ("catro", torch.int32),
    ],
)  # fmt: skip
def test_labels_of_any_integer_type_say_the_same(method: str, kind: torch.dtype) -> None:
    assert _pruned(method, LABELS.to(kind)).plan == _pruned(method, LABELS).plan


@pytest.mark.parametrize("task", [None, "classification"])
@pytest.mark.parametrize("method", ["taylor", "cap", "adapruner"])
def test_labels_that_begin_with_one_are_refused(method: str, task: str | None) -> None:
    with pytest.raises(SecateurError, match=r"4 classes apart|from 0 to 3"):
        _pruned(method, LABELS + 1, task=task)


def test_a_label_of_no_class_is_left_out() -> None:
    none = torch.where(torch.arange(24) < 12, -100, LABELS)
    options: dict[str, Any] = {"method": "taylor", "budget": "flops=0.6"}
    found = secateur.prune(_network(), IMAGES[:2], data=[(IMAGES, none)], **options)
    wanted = secateur.prune(_network(), IMAGES[:2], data=[(IMAGES[12:], LABELS[12:])], **options)
    assert found.plan.masks.keys() == wanted.plan.masks.keys()
    assert all((found.plan.masks[name] == mask).all() for name, mask in wanted.plan.masks.items())


@pytest.mark.parametrize("method", LOOKING)
@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        ((LABELS > 1).long(), lambda output, y: F.binary_cross_entropy_with_logits(output[:, 0], y.float())),
        (LABELS.float() - 1.5, lambda output, y: F.mse_loss(output[:, 0], y)),
        ((LABELS > 1)[:, None], lambda output, y: F.soft_margin_loss(output, 2.0 * y - 1)),
    ],
)
def test_one_output_is_served_or_refused_in_a_sentence(
    method: str, labels: torch.Tensor, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    """What scores nothing must not report success: either the loss has a say, or there is a sentence."""
    if method == "catro" and (labels.dim() > 1 or labels.is_floating_point()):
        with pytest.raises(ConfigError, match="Classes are to be told apart"):
            _pruned(method, labels, outputs=1, loss=loss)
        return
    found = _pruned(method, labels, outputs=1, loss=loss)
    assert not any("same score" in note for note in found.notes)


def test_the_usual_loss_says_what_it_cannot_take() -> None:
    with pytest.raises(InputError, match="go from -3 to 7"):
        sys.modules["secateur.prune"].cross_entropy(torch.zeros(2, 4), torch.tensor([-3, 7]))


@pytest.mark.parametrize("method", ["taylor", "dcp", "dkp", "acp", "adapruner"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda output, y: F.cross_entropy(output, y, reduction="none"),
        lambda output, y: F.cross_entropy(output, y).item(),
        lambda output, y: None,
    ],
)
def test_a_loss_that_is_no_number_is_refused(method: str, loss: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="one number"):
        _pruned(method, LABELS, loss=loss)


@pytest.mark.parametrize(
    ("method", "asked"), [("l1", False), ("pfp", False), ("cap", False), ("taylor", True), ("dcp", True)]
)
def test_a_loss_that_nobody_asked_for_is_said(method: str, asked: bool) -> None:
    found = _pruned(method, LABELS, loss=F.cross_entropy)
    assert any("loss function was not used" in note for note in found.notes) != asked


def test_data_that_nobody_looked_at_are_said() -> None:
    for method in ("l1", "cpmc"):
        assert any("data were not used" in note for note in _pruned(method, LABELS).notes)
