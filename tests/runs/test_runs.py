"""A run from recipe to folder: what is refused, what is left, and that the same recipe leaves the same."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from _small import GATED, outcome, recipe

import secateur
from secateur import methods, runs
from secateur.errors import RunError, SecateurError
from secateur.methods.baselines import one_shot
from secateur.methods.contract import Method, Settings
from secateur.methods.row import MethodRow
from secateur.models import create
from secateur.plan import Plan
from secateur.report.html import write_report
from secateur.runs.folder import Folder, locked
from secateur.runtime import check_folder
from secateur.training import Engine, Silent

FILES = ("recipe.yaml", "metrics.jsonl", "results.json", "plan.json", "model.safetensors", "verification.json")


class Told(Silent):
    """Remembers every sentence."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of L1 with fine-tuning."""
    return runs.start(recipe(), tmp_path_factory.mktemp("plain")).folder


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of BWCP with everything that can be left behind."""
    folder = tmp_path_factory.mktemp("gated")
    whole = recipe(*GATED, "train.epochs=3", "export.onnx=true", "export.pt2=true", "latency.repeats=3")
    return runs.start(whole, folder, command="secateur run x.yaml").folder


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


# ------------------------------------------------------------------------------------------------------ what is left


def test_the_folder_of_a_run(gated: Path) -> None:
    names = {p.name for p in gated.iterdir()}
    assert {*FILES, "model.onnx", "model.pt2", "latency.json", "report.html", "checkpoints", "state.json"} <= names
    checked = check_folder(gated)
    assert checked["cut"]["exact"]
    assert {"pt2", "onnx"} <= set(checked)
    report = (gated / "report.html").read_text()
    assert "bwcp" in report.casefold()


def test_results_say_what_was_done(gated: Path) -> None:
    results = results_of(gated)
    assert results["format"] == "secateur.run"
    assert results["command"] == "secateur run x.yaml"
    assert (results["model"], results["arguments"], results["class"]) == ("zoo:tiny", {"in_channels": 1}, "Tiny")
    assert results["method"]["name"] == "bwcp"
    assert results["method"]["settings"]["delta"] == 0.05
    assert results["epochs"] == {"pretrain": 1, "train": 3, "finetune": 1}
    assert set(results["seconds"]) == {"pretrain", "train", "prune", "finetune", "export", "latency", "total"}
    assert math.isclose(
        results["seconds"]["total"], sum(v for k, v in results["seconds"].items() if k != "total"), abs_tol=0.01
    )
    assert results["data"]["test"] == results["accuracy"]["images"] == 500
    assert results["remaining"]["macs"] <= 0.6
    assert sum(row["macs_before"] for row in results["layers"]) == results["before"]["macs"]
    assert sum(row["macs_after"] for row in results["layers"]) == results["after"]["macs"]
    assert {g["name"]: g["kept"] for g in results["groups"]} == Plan.load(gated / "plan.json").widths
    assert results["verification"]["exact"]
    assert results["dense_bytes"] > results["files"]["model.safetensors"]["bytes"]
    assert [s["torch"] for s in results["sessions"]] == [str(torch.__version__)]


def test_accuracies_belong_together(gated: Path, plain: Path) -> None:
    found = results_of(gated)["accuracy"]
    assert found["pruned"] == found["hard"]  # the cut network is the masked one
    assert found["final"] == found["finetuned"]
    assert all(found[name] is not None for name in ("dense", "soft", "hard", "pruned", "finetuned"))
    found = results_of(plain)["accuracy"]
    assert (found["soft"], found["hard"]) == (None, None)


def test_the_accuracy_is_that_of_the_file(plain: Path) -> None:
    network = secateur.load(plain)
    prepared = runs.prepare(recipe())
    right = sum(int((network(x).argmax(1) == y).sum()) for x, y in prepared.data.test.batches(100))
    assert right / 500 == results_of(plain)["accuracy"]["final"]


def test_metrics_have_a_line_for_every_epoch(gated: Path) -> None:
    rows = [json.loads(line) for line in (gated / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in rows] == [
        ("pretrain", 1),
        *(("train", n) for n in (1, 2, 3)),
        ("finetune", 1),
    ]
    assert {"flops", "channels", "strength"} <= set(rows[1]["method"])
    assert rows[0]["method"] == {}
    assert [r["seconds"] for r in rows] == sorted(r["seconds"] for r in rows)


def test_same_recipe_and_seed_same_plan_and_weights(plain: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # what the caller's generators hold does not matter, nor is it changed
    before = torch.get_rng_state()
    again = runs.start(recipe(), tmp_path / "again").folder
    assert torch.equal(torch.get_rng_state(), before)
    assert outcome(again) == outcome(plain)
    other = runs.start(recipe("seed=1"), tmp_path / "other").folder
    assert outcome(other)["model.safetensors"] != outcome(plain)["model.safetensors"]


def test_the_test_split_is_looked_at_once_for_every_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Engine.evaluate

    def counted(self: Engine, module: nn.Module, split: Any, **more: Any) -> Any:
        if len(split) == 500:
            seen.append(len(split))
        return original(self, module, split, **more)

    monkeypatch.setattr(Engine, "evaluate", counted)
    found = runs.start(recipe(*GATED, "train.select=best"), tmp_path / "a").results["accuracy"]
    named = [name for name in ("dense", "soft", "hard", "pruned", "finetuned") if found[name] is not None]
    assert len(seen) == len(named) == 5


# ---------------------------------------------------------------------------------------------------- other ways to run


def test_the_dense_network_is_trained_as_long(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, begun = Engine.fit, {}

    def watched(engine: Engine, stage: str, module: nn.Module, *more: Any, **options: Any) -> Any:
        begun[stage] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        return fit(engine, stage, module, *more, **options)

    monkeypatch.setattr(Engine, "fit", watched)
    folder = runs.start(recipe("longer=true"), tmp_path / "longer").folder
    dense = load_file(folder / "checkpoints" / "dense.safetensors")
    assert all(torch.equal(tensor, begun["longer"][name]) for name, tensor in dense.items())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["train", "train", "finetune", "longer"]
    found = results_of(folder)["accuracy"]
    assert found["longer"] not in (None, found["dense"])
    assert results_of(plain)["accuracy"]["longer"] is None
    assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_a_method_that_needs_data_sees_the_images_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    original = one_shot.accumulate_gradients

    def watched(model: nn.Module, data: Any, loss: Any) -> Any:
        def passed() -> Iterator[Any]:
            for images, labels in data:
                batches.append(len(images))
                yield images, labels

        return original(model, passed(), loss)

    monkeypatch.setattr(one_shot, "accumulate_gradients", watched)
    overrides = ("method=taylor", "data.calibration_images=120", "finetune=null")
    found = runs.start(recipe(*overrides), tmp_path / "a")
    assert batches == [50, 50, 20]
    assert found.results["accuracy"]["finetuned"] is None
    assert found.results["accuracy"]["final"] == found.results["accuracy"]["pruned"]


def test_trained_weights_need_no_training(tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_file(create("tiny", in_channels=1).state_dict(), tmp_path / "w.safetensors")
    found = runs.start(
        recipe("train=null", "finetune=null", f"model.weights={tmp_path / 'w.safetensors'}"), tmp_path / "a"
    )
    assert found.results["accuracy"]["dense"] is not None
    assert found.results["epochs"] == {}
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    assert check_folder(tmp_path / "a")["cut"]["exact"]


class FirstThing(Method):
    """Keeps the first channels of every group, before any training."""

    name = "first"

    def score(self) -> dict[str, Any]:
        return {g.name: np.arange(g.width, 0, -1.0) for g in self.graph.groups}


def test_a_method_that_acts_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(
        methods.METHODS[-1],
        name="first",
        needs="nothing",
        acts="before training",
        factory=FirstThing,
        settings=Settings,
    )
    assert isinstance(row, MethodRow)
    monkeypatch.setattr(methods, "_REGISTERED", {"first": row})
    found = runs.start(recipe("method=first", "finetune=null"), tmp_path / "a").results
    assert list(found["seconds"]) == ["prune", "train", "export", "total"]
    assert found["accuracy"]["dense"] is None
    assert found["accuracy"]["final"] == found["accuracy"]["finetuned"]
    with pytest.raises(SecateurError, match="put its epochs into train"):
        runs.prepare(recipe("method=first"))


def test_a_network_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef net(width=12):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(36 * width, 10))\n"
    )
    model = f"model={{reference: '{tmp_path / 'net.py'}:net', arguments: {{width: 8}}}}"
    found = runs.start(recipe(model, "export.pt2=true"), tmp_path / "a")
    assert found.results["arguments"] == {"width": 8}
    assert [g["width"] for g in found.results["groups"]] == [8]
    assert secateur.load(tmp_path / "a")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_run_is_pruned_again_and_stands_on_its_own(plain: Path, tmp_path: Path) -> None:
    found = runs.start(recipe(f"model={plain}", "train=null"), tmp_path / "again").results
    first = json.loads((plain / "results.json").read_text())
    assert found["before"]["macs"] == first["after"]["macs"]
    assert found["accuracy"]["dense"] == first["accuracy"]["final"]
    kept = {group["name"]: (group["width"], group["kept"]) for group in first["groups"]}
    assert all(row["width"] == kept[row["name"]][0] for row in found["groups"])
    assert any(row["kept"] < kept[row["name"]][1] for row in found["groups"])
    moved = (tmp_path / "again").rename(tmp_path / "moved")
    network = secateur.load(moved)
    assert type(network) is type(secateur.load(plain))
    assert sum(p.numel() for p in network.parameters()) == found["after"]["params"]
    assert secateur.runtime.check_folder(moved)["cut"]["exact"]


# ------------------------------------------------------------------------------------------------------------- resuming


def test_a_finished_run_is_left_alone(plain: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in plain.rglob("*") if p.is_file()}
    again = runs.resume(plain)
    assert again.already
    assert again.results == results_of(plain)
    assert {p: p.stat().st_mtime_ns for p in plain.rglob("*") if p.is_file()} == before


def test_a_damaged_file_is_made_again(plain: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(plain, folder)
    (folder / "results.json").unlink()
    pruned = folder / "checkpoints" / "pruned.safetensors"
    pruned.write_bytes(pruned.read_bytes()[:-1])
    told = Told()
    runs.resume(folder, progress=told)
    assert any("pruned.safetensors is not as the stage prune left it" in sentence for sentence in told.said)
    found = outcome(folder)
    notes = found["results"]["method"].pop("notes")
    assert any("pruned.safetensors" in note for note in notes)
    expected = outcome(plain)
    del expected["results"]["method"]["notes"]
    assert found == expected
    secateur.runtime.check_folder(folder)


def test_damaged_results_are_made_again_as_the_refusal_says(plain: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(plain, folder)
    (folder / "results.json").write_text('{"format": ')
    with pytest.raises(RunError, match=r"remove results\.json, and resume the run"):
        runs.resume(folder)
    with pytest.raises(RunError, match="remove it, and finish the run"):
        write_report(folder)
    (folder / "results.json").unlink()
    runs.resume(folder)
    secateur.runtime.check_folder(folder)


def test_a_budget_that_asks_for_nothing_is_told(plain: Path, tmp_path: Path) -> None:
    said = "Nothing was removed: the network is within the budget as it is."
    assert said not in results_of(plain)["method"]["notes"]
    assert said in runs.start(recipe("budget=flops=1.0"), tmp_path / "a").results["method"]["notes"]


def test_a_search_of_a_method_that_does_not_search_is_told() -> None:
    assert "search has no effect: the method l1" in " ".join(runs.prepare(recipe("search.images=3")).notes)
    assert not runs.prepare(recipe()).notes


def test_what_cannot_be_resumed(plain: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(RunError, match="no run"):
        runs.resume(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"has no state\.json"):
        runs.resume(tmp_path)
    for name, change, said in (
        ("recipe", lambda f: (f / "recipe.yaml").write_text("name: other"), "has been changed since the run began"),
        ("json", lambda f: (f / "state.json").write_text("{"), "not valid JSON"),
        ("foreign", lambda f: (f / "state.json").write_text("{}"), "damaged"),
        ("version", lambda f: (f / "state.json").write_text('{"format": "secateur.state", "version": 2}'), "version 2"),
    ):
        folder = tmp_path / name
        shutil.copytree(plain, folder)
        change(folder)
        with pytest.raises(RunError, match=said):
            runs.resume(folder)


def test_a_run_that_was_continued_elsewhere_says_so(plain: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(plain, tmp_path / "a")
    state = json.loads((tmp_path / "a" / "state.json").read_text())
    state["sessions"][0]["torch"] = "1.0"
    del state["stages"]["report"]
    (tmp_path / "a" / "state.json").write_text(json.dumps(state))
    notes = runs.resume(tmp_path / "a").results["method"]["notes"]
    assert f"The run was begun with torch 1.0 and continued with {torch.__version__}." in notes


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    Folder.create(tmp_path / "a", recipe())
    with locked(tmp_path / "a"), pytest.raises(RunError, match="Another process is working"):
        runs.resume(tmp_path / "a")


# ------------------------------------------------------------------------------------------------------------- refusals

#: overrides -> part of the sentence; nothing may have been written
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown method": (("method=bwpc",), "did you mean 'bwcp'?"),
    "unknown setting": (("method.redcue=mean",), "did you mean 'method.reduce'?"),
    "impossible setting": (("method.reduce=median",), "method.reduce is 'median'"),
    "unknown model": (("model=zoo:tinny",), "did you mean"),
    "unknown argument": (("model.arguments.depth=3",), "takes no argument 'depth'"),
    "classes that are not the data's": (("model.arguments.num_classes=7",), "num_classes is 7"),
    "channels that are not the data's": (("model.arguments.in_channels=3",), "in_channels is 3"),
    "another size": (("model.input_size=[3, 32, 32]",), "model.input_size is 3x32x32"),
    "model too deep for the images": (("model=zoo:vgg16_bn",), "does not run with 1x8x8 images"),
    "weights that are not there": (("model.weights=nowhere.safetensors",), "nowhere.safetensors"),
    "data that are not there": (("data.name=cifar10", "data.path=nowhere"), "nowhere"),
    "data without a path": (("data.name=npz",), "path"),
    "too many images": (("data.train_images=5000",), "5,000"),
    "unknown augmentation": (("data.augment=[rotat]",), "rotat"),
    "budget out of reach": (("budget=flops=1e-6",), "smallest"),
    "constraint that matches nothing": (("constraints.ignore=steam",), "steam"),
    "pretraining for a method after training": (("pretrain.epochs=2",), "put its epochs into train"),
    "no training for a method that needs it": (("method=bwcp", "train=null", "model.weights=x"), "train is missing"),
    "as long as nothing": (("longer=true", "finetune=null"), "there is no finetune: leave it out."),
    "as long, and no dense network": (
        ("longer=true", "method=bwcp"),
        "bwcp acts while training: leave it out, or compare with dense by secateur compare.",
    ),
    "no teacher": (("method=bwcp", "finetune.distill.weight=0.5"), "no teacher"),
    "best of nothing": (("data.validation=0", "train.select=best"), "data.validation is 0"),
    "no GPU": (("engine.device=cuda",), "GPU"),
    "classes for numbers": (("task=regression",), "as many targets as answers"),
    "classes for masks": (("task=segmentation",), "at every pixel"),
    "ten classes for two": (("task=binary",), "0 for no and 1 for yes"),
    "a classifier for a detector": (("task=detection",), "does not run on images of 1x8x8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    overrides, part = REFUSED[name]
    folder = tmp_path / "deep" / "run"
    with pytest.raises(SecateurError) as caught:
        runs.start(recipe(*overrides), folder)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not folder.parent.exists()


@pytest.mark.parametrize("package", ["accelerate", "onnx", "jinja2"])
def test_a_missing_package_is_missed_at_the_start(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == package else found(name, *more))
    with pytest.raises(SecateurError, match=rf'{package} is not installed: pip install "secateur'):
        runs.start(recipe("export.onnx=true"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_folders_that_are_in_the_way(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"holds a run already: continue it with secateur run --resume .*, or give another"
    ):
        runs.start(recipe(), plain)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        runs.start(recipe(), tmp_path / "full")
    with pytest.raises(RunError, match="is a file"):
        runs.start(recipe(), tmp_path / "full" / "x")
    with pytest.raises(RunError, match="is a file, so"):
        runs.start(recipe(), tmp_path / "full" / "x" / "y")
    assert (tmp_path / "full" / "x").read_text() == "mine"


def test_weights_are_those_of_the_last_stage(plain: Path) -> None:
    last = load_file(plain / "model.safetensors")
    before = load_file(plain / "checkpoints" / "pruned.safetensors")
    assert last.keys() == before.keys()
    assert any(not torch.equal(last[k], before[k]) for k in last)
