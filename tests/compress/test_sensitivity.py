"""Accuracy against the share removed, group by group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.compress import Sensitivity

FOUND = Sensitivity(
    "accuracy", "share", 0.9, (0.25, 0.5, 0.75), {"a": 8, "b": 8},
    {"a": (0.895, 0.85, 0.3), "b": (0.9, 0.6, 0.897)}, {},
)  # fmt: skip


def test_ratios_are_the_largest_shares_before_the_drop() -> None:
    assert FOUND.ratios(1) == {"a": 0.25, "b": 0.25}  # not 0.75: what lies between is worse
    assert FOUND.ratios(5) == {"a": 0.5, "b": 0.25}
    assert FOUND.ratios(0) == {"a": 0.0, "b": 0.25}
    with pytest.raises(secateur.ConfigError, match="points"):
        FOUND.ratios(-1)


def test_what_suffers_most_comes_first() -> None:
    lines = str(FOUND).splitlines()
    assert lines[0] == "Accuracy with one group narrowed; of the whole network 90.0%"
    assert lines[2].split() == ["a", "8", "89.5%", "85.0%", "30.0%"]


def test_one_group_at_a_time(model: nn.Module, loader: Any, tmp_path: Path) -> None:
    found = secateur.sensitivity(model, loader, shares=(0.5, 0.875))
    assert list(found.figures) == ["0", "3"]
    assert found.widths == {"0": 8, "3": 8}
    pruned = secateur.prune(model, torch.zeros(1, 1, 8, 8), method="l1", ratios={"0": 0.5}).model
    held = loader.dataset  # all of them: the figure is of a third
    right = (pruned(held.tensors[0]).argmax(1) == held.tensors[1]).float().mean()
    assert found.figures["0"][0] == pytest.approx(float(right), abs=0.15)
    ratios = found.ratios(100 - 1e-6)
    assert ratios == {"0": 0.875, "3": 0.875}
    assert secateur.prune(model, torch.zeros(1, 1, 8, 8), method="l1", ratios=ratios).plan.widths == {"0": 1, "3": 1}
    found.write(tmp_path / "s")
    document = json.loads((tmp_path / "s" / "sensitivity.json").read_text(encoding="utf-8"))
    assert [row["group"] for row in document["groups"]] == ["0", "3"]
    assert b"<svg" in (tmp_path / "s" / "sensitivity.svg").read_bytes()
    assert list(secateur.sensitivity(model, loader, shares=(0.5,), ignore="0").figures) == ["3"]


def test_refused(model: nn.Module, loader: Any) -> None:
    for given, said in (({"shares": (1.5,)}, "between 0 and 1"), ({"method": "cp"}, "does more than score")):
        with pytest.raises(secateur.ConfigError, match=said):
            secateur.sensitivity(model, loader, **given)
    with pytest.raises(secateur.ConfigError, match="give training data"):
        secateur.sensitivity(model, None, example_inputs=torch.zeros(1, 1, 8, 8))
