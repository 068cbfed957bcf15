"""A run whose network looks at the image: means over images in its documents, exports that say what they compute."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from _small import outcome, recipe

import secateur
from secateur import runs
from secateur.data import open_data
from secateur.errors import ConfigError
from secateur.forms import formed
from secateur.plan import Plan
from secateur.runtime import check_folder
from secateur.tasks import create

GATED = (
    "name=gated", "model=zoo:resnet8", "method={name: manidp}", "budget=flops=0.7", "finetune=null",
    "data.calibration_images=40", "export={onnx: true, pt2: true}", "latency={repeats: 3, runtimes: [pytorch]}",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    return runs.start(recipe(*GATED), tmp_path_factory.mktemp("gated") / "run").folder


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_costs_are_means_over_the_calibration_images(folder: Path) -> None:
    results = read(folder, "results.json")
    said = results["expected"]
    assert said["images"] == 40
    assert results["after"]["macs"] == said["macs"] <= said["most"]
    assert results["remaining"]["macs"] == pytest.approx(said["macs"] / results["before"]["macs"], abs=1e-4)
    assert results["remaining"]["macs"] <= 0.7
    assert any("MACs are the mean over 40 images" in note for note in results["method"]["notes"])
    assert "MACs (mean over 40 images)" in (folder / "report.html").read_text()
    assert {row["form"] for row in results["layers"] if "form" in row} == {"gated"}


def test_the_network_comes_back_and_skips(folder: Path) -> None:
    network = secateur.load(folder)
    assert all(layer.skip for _, _, layer in formed(network))
    images, _ = next(iter(open_data(recipe(*GATED).data, 0, create("classification")).test.batches(4)))
    with torch.no_grad():
        whole = network(images)
        alone = torch.cat([network(image) for image in images.split(1)])
    assert (whole - alone).abs().max() <= 1e-5 * whole.abs().max()
    plan = Plan.load(folder / "plan.json")
    assert plan.provenance["expected"]["images"] == 40
    assert check_folder(folder)["pt2"]["dynamic_batch"]


def test_exports_say_what_they_compute(folder: Path) -> None:
    checks, notes = read(folder, "verification.json"), read(folder, "results.json")["method"]["notes"]
    rows = checks["onnx"]["forms"]
    assert {row["name"] for row in rows} == {name for name, _, _ in formed(secateur.load(folder))}
    assert checks["onnx"]["dynamic_batch"] is not any(row["kept"] for row in rows)
    assert checks["pt2"]["dynamic_batch"]
    assert "In model.pt2 all channels are computed and masked, for batches of any size." in notes
    assert any(note.startswith("In model.onnx ") for note in notes)
    assert read(folder, "latency.json")["images"] == 16


def test_a_run_that_is_interrupted_ends_the_same(folder: Path, tmp_path: Path) -> None:
    shorter = [*(o for o in GATED if not o.startswith(("export", "latency"))), "export={onnx: false, pt2: false}"]
    first = runs.start(recipe(*shorter), tmp_path / "a").folder
    cut = runs.start(recipe(*shorter), tmp_path / "b").folder
    state = read(cut, "state.json")
    for stage in ("prune", "report"):
        state["stages"].pop(stage)
    (cut / "state.json").write_text(json.dumps(state))
    assert outcome(runs.resume(cut).folder) == outcome(first)


def test_a_repair_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="what it computes without gates"):
        runs.start(recipe(*GATED, "repair=batchnorm"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
