"""Runs of other tasks than classification, on the recipes and the data of secateur.examples."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from _small import outcome

import secateur
from secateur import runs
from secateur.compare import compare
from secateur.errors import ConfigError
from secateur.recipe import Recipe
from secateur.references import load
from secateur.training import Silent

ROOT = Path(__file__).parents[2]
RECIPES = {"shapes-unet": "mIoU", "shapes-detector": "mAP", "gratings-espcn": "PSNR"}
SMALL = ("data.options={images: 24}", "data.batch_size=8", "data.validation=0.25", "engine.device=cpu")
QUIET = (*SMALL, "export={onnx: false, pt2: false}", "latency=null")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _recipe(name: str, *more: str) -> Recipe:
    short = [f"{stage}.epochs=2" for stage in ("pretrain", "train", "finetune")]
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    known = [change for change in short if f"\n{change.partition('.')[0]}:" in text]
    return Recipe.parse(text, (*known, *more))


class Stops(Silent):
    """Ctrl-C after some steps, as a person gives it."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, loss: float, headline: str, images_per_second: float, extra: Mapping[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def _killed(recipe: Recipe, folder: Path) -> Path:
    """The same run, broken off in every stage that trains and once more in between."""
    for at in (1, 3, 2, 4):
        begun = (folder / "state.json").exists()
        with contextlib.suppress(KeyboardInterrupt):
            _ = runs.resume(folder, progress=Stops(at)) if begun else runs.start(recipe, folder, progress=Stops(at))
    return runs.resume(folder).folder


def test_a_run_is_judged_and_reported_by_its_task(tmp_path: Path) -> None:
    recipe = _recipe("shapes-unet", *QUIET, "train.epochs=2", "train.select=best", "finetune=null")
    folder = runs.start(recipe, tmp_path / "a").folder
    results = json.loads((folder / "results.json").read_text())
    assert results["task"] == {
        "name": "segmentation", "headline": "mIoU", "higher_is_better": True, "unit": "share"
    }  # fmt: skip
    assert "accuracy" not in results
    assert 0 <= results["mIoU"]["final"] <= 1
    assert results["mIoU"]["images"] == 12
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["validation_mIoU"] is not None for row in rows)
    page = (folder / "report.html").read_text()
    assert "mIoU just after the cut" in page
    assert "ccuracy" not in page.replace("pixel accuracy", "")
    assert outcome(folder) == outcome(_killed(recipe, tmp_path / "b"))


def test_a_method_that_cannot_serve_the_task_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cwb needs the class of every sample"):
        runs.start(_recipe("shapes-unet", *QUIET, "method=cwb"), tmp_path / "a")
    with pytest.raises(ConfigError, match="taylor looks at the loss of a network in evaluation"):
        runs.start(_recipe("shapes-detector", *QUIET, "method=taylor"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("change", ["finetune.mixup=0.1", "finetune.cutmix=1.0", "train.label_smoothing=0.1"])
def test_what_the_task_has_not_is_refused_before_anything_is_written(change: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="detection"):
        runs.start(_recipe("shapes-detector", *QUIET, "finetune={epochs: 1}", change), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_from_end_to_end(tmp_path: Path, name: str) -> None:
    """Killed and resumed it leaves the same bits; what it leaves is exported and loaded, and computes the same."""
    whole = _recipe(name, *QUIET)
    folder = runs.start(whole, tmp_path / "a").folder
    assert outcome(folder) == outcome(_killed(whole, tmp_path / "b"))
    results = json.loads((folder / "results.json").read_text())
    assert results[RECIPES[name]]["final"] is not None
    assert RECIPES[name] in (folder / "report.html").read_text()
    fresh = load(whole.model.reference, input_size="1x32x32").model
    found = secateur.runtime.export_folder(folder, "onnx", model=fresh)
    assert found["max_relative_error"] < 1e-3
    net = secateur.load(folder, model=fresh)
    assert sum(p.numel() for p in net.parameters()) == results["after"]["params"]


@pytest.mark.long
@pytest.mark.parametrize(("name", "methods"), [
    ("shapes-unet", ["l1", "taylor", "bwcp", "nap", "cap"]),
    ("shapes-detector", ["l1", "cp", "bwcp", "group_fisher", "dcpcac"]),
    ("gratings-espcn", ["l1", "taylor", "cap", "nap", "group_fisher"]),
])  # fmt: skip
def test_five_methods_on_a_recipe(tmp_path: Path, name: str, methods: list[str]) -> None:
    recipe = _recipe(name, *QUIET, "finetune.epochs=2", "pretrain=null")
    made = compare(recipe, tmp_path / "c", methods=methods, seeds=[0])
    assert not made.failed
    document = json.loads((tmp_path / "c" / "leaderboard.json").read_text())
    assert document["task"]["headline"] == RECIPES[name]
    # the whole network comes last
    *finals, dense = (mean["values"]["accuracy.final"]["mean"] for mean in document["means"])
    assert len(finals) == len(methods)
    assert finals == sorted(finals, reverse=True)
    assert dense is not None


def test_the_detector_has_losses_in_training_and_boxes_in_evaluation() -> None:
    from secateur.examples import detection

    net, sample = detection.net(), detection.data(4)["train"].dataset[0]
    images, targets = detection._together([sample, sample])
    assert set(net(images, targets)) == {"centres", "sizes"}
    found = net.eval()(images)
    assert [row["boxes"].shape for row in found] == [torch.Size([4, 4])] * 2
