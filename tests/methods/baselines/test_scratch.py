"""The baseline: widths from a plan or the same share everywhere, channels by chance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur
from secateur.errors import BudgetError, PlanError
from secateur.methods import method
from secateur.models import create

IMAGE = torch.randn(2, 3, 32, 32)


def test_widths_are_those_of_the_plan_and_channels_are_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = secateur.prune(create("resnet8_b"), IMAGE, budget="flops=0.5", method="l1")
    found.plan.save(tmp_path / "plan.json")
    scratch = method("scratch").factory(
        create("resnet8_b"), IMAGE, budget="flops=0.5", plan=str(tmp_path / "plan.json")
    )
    scratch.finish()
    assert scratch.result.plan.widths == found.plan.widths
    assert scratch.result.plan != found.plan
    assert scratch.result.after == found.after


def test_without_a_plan_every_group_loses_the_same_share() -> None:
    scratch = method("scratch").factory(create("resnet8_b"), IMAGE, budget="flops=0.5")
    scratch.finish()
    shares = [scratch.result.plan.widths[g.name] / g.width for g in scratch.graph.groups]
    assert max(shares) - min(shares) < 0.15
    assert 0.49 <= scratch.result.reached("flops") <= 0.5


def test_plans_that_do_not_fit(tmp_path: Path) -> None:
    secateur.prune(create("resnet8"), IMAGE, budget="flops=0.5").plan.save(tmp_path / "other.json")
    with pytest.raises(PlanError):
        method("scratch").factory(create("resnet8_b"), IMAGE, budget="flops=0.5", plan=str(tmp_path / "other.json"))
    secateur.prune(create("resnet8_b"), IMAGE, budget="flops=0.8").plan.save(tmp_path / "wide.json")
    with pytest.raises(BudgetError, match="do not meet the budget"):
        method("scratch").factory(create("resnet8_b"), IMAGE, budget="flops=0.5", plan=str(tmp_path / "wide.json"))
