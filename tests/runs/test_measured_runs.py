"""Runs whose widths are measured on calibration images: what is written down, killed runs, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _small import outcome, recipe

import secateur
from secateur import runs
from secateur.errors import ConfigError
from secateur.plan import Plan

MEASURED = ("allocator=measured", "data.calibration_images=64", "train.epochs=1")


@pytest.mark.parametrize("method", ["l1", "cap"])
def test_widths_follow_from_calibration_images(method: str, tmp_path: Path) -> None:
    folder = runs.start(recipe(*MEASURED, f"method={method}"), tmp_path / "run").folder
    plan = Plan.load(folder / "plan.json")
    assert plan.provenance["allocator"] == "measured"
    assert set(plan.provenance["measured"]["groups"]) == set(plan.masks)
    assert plan.provenance["measured"]["images"] == 8  # of 64: the others compensate
    assert json.loads((folder / "results.json").read_text())["remaining"]["macs"] == pytest.approx(0.6, abs=0.05)
    assert secateur.load(folder) is not None


def test_twice_the_same(tmp_path: Path) -> None:
    first, second = (runs.start(recipe(*MEASURED), tmp_path / name).folder for name in ("a", "b"))
    found, again = outcome(first), outcome(second)
    assert found["plan.json"] == again["plan.json"]
    assert found["model.safetensors"] == again["model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("method=bwcp",), "the method bwcp acts while training"),
        (("method=scratch", "finetune=null"), "the method scratch acts before training"),
        (("normalise=mean",), "normalise is mean"),
        (("method=cp",), "'cp' finds its widths itself"),
    ],
)
def test_where_nothing_can_be_measured(changes: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        runs.start(recipe(*MEASURED, *changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
