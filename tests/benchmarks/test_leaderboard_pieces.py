"""`make leaderboard`: which cells come when, what resumes, what is kept, and the page."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))

import _by_method
import _leaderboard_page
import _record
import leaderboard
from _contest import recipe
from leaderboard import Round, open_cells, rounds

from secateur.recipe import Recipe

LABELS = ("bwcp", "l1", "cp", "cap", "dcp", "fpgm", "dense")


def row(label: str, seed: int = 0, final: float = 0.5, budget: str = "flops=0.5") -> dict[str, Any]:
    budget = "flops=1.0" if label == "dense" else budget
    return {"label": label, "seed": seed, "budget": budget, "accuracy": {"final": final}}


def test_one_seed_of_all_then_three_of_some_then_other_budgets() -> None:
    planned = rounds(LABELS, ("flops=0.5", "params=0.5"), [], every=False)
    assert planned == [
        Round(0, "flops=0.5", LABELS),
        Round(1, "flops=0.5", ("bwcp", "l1", "dense")),
        Round(2, "flops=0.5", ("bwcp", "l1", "dense")),
        Round(0, "params=0.5", LABELS[:-1]),
    ]
    assert rounds(LABELS, ("flops=0.5",), [], every=True)[1:] == [Round(seed, "flops=0.5", LABELS) for seed in (1, 2)]


def test_the_best_three_of_the_others_get_three_seeds_too() -> None:
    rows = [row("cp", final=0.9), row("cap", final=0.8), row("dcp", final=0.95), row("fpgm", final=0.7), row("l1")]
    again = rounds(LABELS, ("flops=0.5",), rows, every=False)[1]
    assert again == Round(1, "flops=0.5", ("bwcp", "l1", "cp", "cap", "dcp", "dense"))


def test_what_is_finished_or_failed_is_not_measured_again() -> None:
    planned = rounds(("l1", "cp", "dense"), ("flops=0.5", "params=0.5"), [], every=False)
    result = {"rows": [row("l1"), row("dense"), row("l1", 1)], "failed": [row("cp")]}
    assert list(open_cells(planned, result)) == [
        Round(1, "flops=0.5", ("dense",)),
        Round(2, "flops=0.5", ("l1", "dense")),
        Round(0, "params=0.5", ("l1", "cp")),
    ]
    assert next(open_cells(planned, result, {("cp", 0, "flops=0.5")})) == Round(0, "flops=0.5", ("cp",))


@pytest.mark.parametrize("setup", leaderboard.SETUPS)
def test_recipes_have_the_same_epochs(setup: str) -> None:
    recipe = Recipe.read(leaderboard.HERE / "recipes" / f"leaderboard-{setup}.yaml")
    assert recipe.train is not None
    assert recipe.finetune is not None
    assert (recipe.train.epochs, recipe.finetune.epochs) == (16, 4)
    assert recipe.train.schedule == recipe.finetune.schedule == "onecycle"
    assert recipe.data.train_images is None
    assert recipe.model.reference == f"zoo:{setup}"


def test_a_rehearsal_has_few_images(tmp_path: Path) -> None:
    rng, arrays = np.random.default_rng(0), dict[str, Any]()
    for part, count in (("train", 400), ("test", 300)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(tmp_path / "all.npz", **arrays)
    given = argparse.Namespace(tiny=True, folder=tmp_path / "a" / "resnet20", data=tmp_path / "all.npz")
    changes = leaderboard._tiny(given)
    assert changes[0] == f"data.path={tmp_path / 'a' / 'tiny.npz'}"
    with np.load(tmp_path / "a" / "tiny.npz") as few:
        assert {name: len(few[name]) for name in few.files} == {
            "x_train": 96,
            "y_train": 96,
            "x_test": 50,
            "y_test": 50,
        }
        assert (few["x_test"] == arrays["x_test"][:50]).all()


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script in a folder of its own, with a recipe of seconds in place of its own and one more seed."""
    small = recipe(
        "export.onnx=false", "latency={batch_size: 1, repeats: 3, threads: 1}", "train.epochs=1", "train.warmup=0"
    )
    (tmp_path / "small.yaml").write_text(small.to_yaml(), encoding="utf-8")
    monkeypatch.setattr(leaderboard, "_recipe", lambda _: tmp_path / "small.yaml")
    monkeypatch.setattr(leaderboard, "SEEDS", (0, 1))
    monkeypatch.setattr(_record, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["leaderboard.py", "--methods", "l1,dense", "--device", "cpu", *arguments])
        leaderboard.main()
        return _record.read(tmp_path / "results" / "leaderboard" / "resnet20.json")

    return run


def test_pieces_resume_and_the_page_says_what_is_missing(call: Any, tmp_path: Path) -> None:
    result = call()
    assert [(r["label"], r["seed"]) for r in result["rows"]] == [("l1", 0), ("dense", 0), ("l1", 1), ("dense", 1)]
    assert result["missing"] == result["failed"] == []
    assert all(r["latency"] for r in result["rows"])
    assert [base["seed"] for base in result["bases"]] == [0, 1]
    shutil.rmtree("runs")  # as on another machine: what is kept is not measured again
    more = call("--methods", "l1,dense,l2", "--minutes", "0")
    assert more["rows"] == result["rows"]
    assert [(r["label"], r["seed"]) for r in more["missing"]] == [("l2", 0)]
    failed = {"label": "cp", "seed": 0, "budget": "flops=0.5", "said": "The budget | is out of reach."}
    missing = {"label": "l2", "seed": 0, "budget": "flops=0.5"}
    kept = {**result, "failed": [failed], "missing": [missing]}
    _record.save(tmp_path / "results" / "leaderboard" / "resnet20.json", kept)
    (page,) = _leaderboard_page.pages(tmp_path).values()
    for each in result["rows"]:
        assert f"| {each['label']} | " in page
    assert "### Equal FLOPs: flops=0.5" in page
    assert "- flops=0.5, seed 0: l2\n" in page
    assert "- cp, seed 0, flops=0.5 failed: The budget | is out of reach." in page
    assert "## VGG-16-BN\n\nNothing is measured yet: `make leaderboard SETUP=vgg16_bn`." in page
    assert str(tmp_path) not in page


def test_who_is_below_random_channels_is_judged_by_seeds_that_both_have() -> None:
    rows = [row("random", 0, 0.50), row("random", 1, 0.40), row("l1", 0, 0.48), row("lamp", 1, 0.41)]
    rows += [row("nap", 0, 0.45), row("nap", 1, 0.42), row("dense", 2, 0.1)]  # nap: 43.5 of 45.0
    (said,) = _leaderboard_page._below({"rows": rows, "images": 100})
    assert "seeds that both have: [nap](methods/nap.md) 43.50% (random 45.00%), [l1](methods/l1.md) 48.00%" in said
    assert "lamp" not in said
    assert "dense" not in said
    assert "a standard error of up to 7.1 points" in said  # of l1's
    assert _leaderboard_page._below({"rows": rows[2:], "images": 100}) == []


def test_other_pages_compare_by_the_seeds_that_all_methods_have() -> None:
    rows = [row("l1", 0), row("l1", 1), row("nap", 0), row("nap", 1, budget="flops=0.3"), row("l1", 2)]
    assert [(each["label"], each["seed"]) for each in _by_method.level(rows)] == [("l1", 0), ("nap", 0)]
    assert _by_method.level([]) == []


def test_runs_computed_otherwise_than_most_are_named() -> None:
    devices = {"l1": "cpu, fp32", "cwb": "cpu, bf16", "lamp": "cpu, fp32", "nap": "cpu, bf16", "fpgm": "cpu, fp32"}
    rows = [{**row(label, seed), "device": on} for seed in (0, 1) for label, on in devices.items()][:-1]
    said = _leaderboard_page._precisions({"rows": rows})
    assert said == ["Trained on cpu, bf16: cwb, nap (seed 0), cwb, nap (seed 1); all others on cpu, fp32."]
    assert _leaderboard_page._precisions({"rows": rows[:1]}) == []


def test_networks_that_were_timed_together_are_named() -> None:
    times = {"l1": 3.0, "cwb": 2.0, "lamp": 3.0, "nap": 2.0, "fpgm": 3.0}
    rows = [{**row(label), "latency": {"pytorch": {"dense_ms": ms}}} for label, ms in times.items()]
    (said,) = _leaderboard_page._sessions({"rows": [*rows, {**row("dkp"), "latency": None}]})
    assert said.startswith("Latencies are of 2 sessions,")
    assert said.endswith(": cwb, nap (seed 0); and all others.")
    assert _leaderboard_page._sessions({"rows": [rows[0], rows[2]]}) == []


def test_a_piece_ends_in_time_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    stops = "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    script.write_text(f"#!{sys.executable}\nimport sys, time\n{stops}")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    given = argparse.Namespace(setup="resnet20", folder=tmp_path, jobs=1, device="cpu", tiny=False)
    assert leaderboard.piece(given, Round(0, "flops=0.5", ("l1",)), 1.0) is False
