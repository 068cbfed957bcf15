"""A comparison from recipe to leaderboard: what is shared, what is measured, and that interruptions leave no trace."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from _contest import contest, outcome, recipe, run_file

from secateur import runs
from secateur.compare import Outcome, compare, read
from secateur.errors import RunError, SecateurError
from secateur.runs.folder import locked
from secateur.runtime import check_folder
from secateur.training import Silent

METHODS = ("bwcp", "nap", "l1", "scratch")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Four methods, one of each kind, and two seeds, with latencies."""
    folder = tmp_path_factory.mktemp("whole")
    return contest(folder, *METHODS, seeds=[0, 1], overrides=("latency.repeats=3",), command="secateur compare x")


def same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(bool((first[k] == second[k]).all()) for k in first)


# ------------------------------------------------------------------------------------------------------- what is shared


def test_every_cell_is_an_ordinary_run(whole: Outcome) -> None:
    for label in METHODS:
        assert check_folder(whole.folder / "runs" / f"{label}-0-flops=0.6")["cut"]["exact"]
    assert len(list((whole.folder / "runs").iterdir())) == 8
    assert not whole.failed


def test_all_that_begin_with_weights_begin_with_the_same(whole: Outcome) -> None:
    for seed in (0, 1):
        base = whole.folder / "bases" / str(seed) / "weights.safetensors"
        for label in ("l1", "nap"):
            dense = whole.folder / "runs" / f"{label}-{seed}-flops=0.6" / "checkpoints" / "dense.safetensors"
            assert same(base, dense)
    assert not same(base, whole.folder / "bases" / "0" / "weights.safetensors")


def test_the_base_is_what_an_ordinary_run_trains(whole: Outcome, tmp_path: Path) -> None:
    alone = runs.start(recipe(), tmp_path / "alone").folder
    cell = whole.folder / "runs" / "l1-0-flops=0.6"
    for name in ("checkpoints/dense.safetensors", "model.safetensors"):
        assert same(alone / name, cell / name)
    mine, theirs = (json.loads((f / "results.json").read_text())["accuracy"] for f in (cell, alone))
    assert mine == theirs


def test_epochs_are_the_same_for_all(whole: Outcome) -> None:
    assert {row["label"]: row["epochs"] for row in whole.document["rows"]} == {
        "bwcp": {"base": None, "train": 5, "finetune": None, "total": 5},
        "nap": {"base": 2, "train": 3, "finetune": None, "total": 5},
        "l1": {"base": 2, "train": None, "finetune": 3, "total": 5},
        "scratch": {"base": None, "train": 5, "finetune": None, "total": 5},
    }


# ----------------------------------------------------------------------------------------------------- what is measured


def test_rows_are_the_runs_own_figures(whole: Outcome) -> None:
    for row in whole.document["rows"]:
        cell = f"{row['label']}-{row['seed']}-flops=0.6"
        results = run_file(whole.folder, cell, "results.json")
        assert row["accuracy"] == {k: results["accuracy"][k] for k in ("dense", "soft", "hard", "pruned", "final")}
        assert row["macs"]["after"] == results["after"]["macs"]
        assert math.isclose(row["macs"]["share"], results["remaining"]["macs"])
        assert math.isclose(row["params"]["share"], results["remaining"]["params"])
        assert row["within"] == (0.594 <= results["remaining"]["macs"] <= 0.6)
        assert (row["exact"], row["plan"]) == (results["verification"]["exact"], results["plan"])
        base = next((b for b in whole.document["bases"] if b["seed"] == row["seed"]), None)
        own = results["seconds"]
        if row["label"] in ("l1", "nap"):
            assert base is not None
            assert row["accuracy"]["dense"] == base["accuracy"]
            assert math.isclose(row["seconds"]["total"], own["total"] + base["seconds"], abs_tol=0.01)
        else:
            assert row["seconds"]["base"] is None
            assert row["seconds"]["total"] == own["total"]
        trained = {"bwcp": "acting", "nap": "acting", "scratch": "train", "l1": None}[row["label"]]
        found = {key: row["seconds"][key] for key in ("acting", "train")}
        assert found == {"acting": None, "train": None} | ({trained: own["train"]} if trained else {})
        assert set(row["latency"]) == {"pytorch"}
        timed = json.loads((whole.folder / "latency" / f"{cell}.json").read_text())
        assert row["latency"]["pytorch"]["ratio"] == timed["runtimes"][0]["ratio"]["median"]


def test_means_are_over_seeds_and_the_best_is_first(whole: Outcome) -> None:
    means = whole.document["means"]
    finals = {}
    for label in METHODS:
        both = [run_file(whole.folder, f"{label}-{s}-flops=0.6", "results.json") for s in (0, 1)]
        finals[label] = [results["accuracy"]["final"] for results in both]
    for mean in means:
        values = finals[mean["label"]]
        found = mean["values"]["accuracy.final"]
        assert math.isclose(found["mean"], statistics.mean(values))
        assert math.isclose(found["sd"], statistics.stdev(values))
        assert mean["seeds"] == [0, 1]
    order = [mean["label"] for mean in means]
    assert order == sorted(METHODS, key=lambda label: (-statistics.mean(finals[label]), label))
    assert means[0]["values"]["accuracy.soft"] is None or means[0]["label"] == "bwcp"


def test_the_document_says_how_it_came_about(whole: Outcome) -> None:
    document = json.loads((whole.folder / "leaderboard.json").read_text())
    assert document == json.loads(json.dumps(whole.document))
    assert document["format"] == "secateur.leaderboard"
    assert [call["command"] for call in document["calls"]] == ["secateur compare x"]
    assert document["threads"] == [1]
    assert [device.partition(",")[0] for device in document["device"]] == ["cpu"]
    assert document["recipe"]["finetune"]["epochs"] == 3
    assert "method" not in document["recipe"]
    text = (whole.folder / "leaderboard.md").read_text()
    for part in ("same base weights for each seed", "no base weights", "nothing is chosen by them", "5 epochs"):
        assert part in text


# ------------------------------------------------------------------------------------------------------------- going on


def test_a_finished_comparison_is_taken_as_it_is(whole: Outcome) -> None:
    files = [p for room in ("runs", "bases", "latency") for p in (whole.folder / room).rglob("*") if p.is_file()]
    before = {p: p.stat().st_mtime_ns for p in files}
    again = contest(whole.folder, *METHODS, seeds=[0, 1], overrides=("latency.repeats=3",))
    assert {p: p.stat().st_mtime_ns for p in files} == before
    assert again.document["rows"] == whole.document["rows"]


@pytest.mark.long
def test_more_methods_seeds_and_budgets_are_added(tmp_path: Path) -> None:
    contest(tmp_path / "a", "l1")
    first = outcome(tmp_path / "a")
    contest(tmp_path / "a", "random", budgets=["flops=0.8"])
    both = contest(tmp_path / "a", "l1", seeds=[1])
    assert [(m["budget"], m["label"]) for m in both.document["means"]] == [
        ("flops=0.6", "l1"), ("flops=0.8", "random"),
    ]  # fmt: skip
    assert both.document["means"][0]["seeds"] == [0, 1]
    assert both.document["means"][1]["values"]["accuracy.final"]["sd"] is None
    now = outcome(tmp_path / "a")
    assert {key: now[key] for key in first} == first
    assert {call["jobs"] for call in both.document["calls"]} == {1}


class Stopping(Silent):
    """Interrupts at its n-th epoch."""

    def __init__(self, left: int) -> None:
        self.left = left

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_interrupted_again_and_again_is_as_if_never_interrupted(whole: Outcome, tmp_path: Path) -> None:
    calls = 0
    while calls < 20:
        calls += 1
        try:
            contest(tmp_path / "a", *METHODS, progress=Stopping(1 + calls % 3))
            break
        except KeyboardInterrupt:
            continue
    assert calls > 5
    expected = {key: value for key, value in outcome(whole.folder).items() if "-1-" not in key and key != "base 1"}
    assert outcome(tmp_path / "a") == expected


@pytest.mark.long
def test_interrupted_between_stages(whole: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    for place in ("_prune", "_finetune"):
        monkeypatch.setattr(runs.stages.Stages, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            contest(tmp_path / "a", "l1")
        monkeypatch.undo()
    contest(tmp_path / "a", "l1")
    found = outcome(tmp_path / "a")
    assert found == {key: outcome(whole.folder)[key] for key in found}


@pytest.mark.long
def test_latency_is_of_the_network_that_is_there(tmp_path: Path) -> None:
    import shutil

    fast = ("latency.repeats=3",)
    contest(tmp_path / "a", "random", overrides=fast)
    file = tmp_path / "a" / "latency" / "random-0-flops=0.6.json"
    old = json.loads(file.read_text())
    file.write_text(json.dumps(old | {"plan": "sha256:of another network"}))
    shutil.rmtree(tmp_path / "a" / "runs" / "random-0-flops=0.6")
    contest(tmp_path / "a", "random", overrides=fast)
    assert json.loads(file.read_text())["plan"] == old["plan"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "earlier": True}))
    contest(tmp_path / "a", "random", overrides=fast)
    assert json.loads(file.read_text())["earlier"]  # nothing is new, so nothing is timed
    contest(tmp_path / "a", "l1", overrides=fast)
    assert "earlier" not in json.loads(file.read_text())  # all are timed together with what is new


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_a_run_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    given = {"scratch": {"plan": str(plan)}}
    first = contest(tmp_path / "a", "scratch", "l1", settings=given)
    assert len(first.failed) == 1
    assert "plan.json" in first.failed[0]
    assert [row["label"] for row in first.document["rows"]] == ["l1"]
    assert [row["label"] for row in first.document["failed"]] == ["scratch"]
    assert "plan.json" in (tmp_path / "a" / "leaderboard.md").read_text()
    plan.write_bytes((tmp_path / "a" / "runs" / "l1-0-flops=0.6" / "plan.json").read_bytes())
    second = contest(tmp_path / "a", "scratch")
    assert not second.failed
    assert not second.document["failed"]
    assert {row["label"] for row in second.document["rows"]} == {"l1", "scratch"}


def test_what_a_method_refuses_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    said: list[str] = []
    told = contest(tmp_path / "a", "l1", "dkp", "csgd", seeds=[0, 1], told=lambda event: said.append(event["text"]))
    assert said[0] == "6 runs: 0 finished before, 6 to do."
    assert said[1:3] == [
        f"dkp, seed {seed}, flops=0.6: cannot be run: Single weights that are set to zero save no flops: give the "
        "share of weights that stay, such as params=0.1."
        for seed in (0, 1)
    ]
    assert "base network, seed 0: begun." in said[3]
    assert {(row["label"], row["seed"]) for row in told.document["failed"]} == {("dkp", 0), ("dkp", 1)}
    assert {row["label"] for row in told.document["rows"]} == {"l1", "csgd"}
    assert not list((tmp_path / "a" / "runs").glob("dkp*"))


@pytest.mark.parametrize("budget", ["flops=0.001", "params=0.001,flops=0.5"])
def test_a_budget_out_of_reach_is_told_before_anything_is_trained(tmp_path: Path, budget: str) -> None:
    said: list[str] = []
    told = contest(tmp_path / "a", "l1", "bwcp", budgets=[budget], told=lambda event: said.append(event["text"]))
    assert [row["label"] for row in told.document["failed"]] == ["l1", "bwcp"]
    assert not [text for text in said if "begun" in text]


def test_a_defect_fails_one_run_and_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("half of nothing")

    monkeypatch.setattr(runs.stages.Stages, "_finetune", broken)
    found = contest(tmp_path / "a", "l1", "scratch")
    assert [row["label"] for row in found.document["rows"]] == ["scratch"]
    assert "ZeroDivisionError: half of nothing" in found.failed[0]
    noted = json.loads((tmp_path / "a" / "failed" / "l1-0-flops=0.6.json").read_text())
    assert "in broken" in noted["details"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyError])
def test_a_defect_in_a_method_fails_its_run_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Also where it shows before anything is trained."""

    def broken(*_: Any) -> Any:
        raise error("half of nothing")

    monkeypatch.setattr("secateur.methods.bwcp.method.BWCP.prepare", broken)
    found = contest(tmp_path / "a", "bwcp", "scratch")
    assert [row["label"] for row in found.document["rows"]] == ["scratch"]
    assert f"Secateur itself failed ({error.__name__}" in found.failed[0]


def test_without_its_base_network_a_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise RunError("The disk is full.")

    monkeypatch.setattr("secateur.compare.bases.save_weights", refused)
    found = contest(tmp_path / "a", "l1", "scratch")
    assert [row["label"] for row in found.document["failed"]] == ["l1"]
    assert found.document["failed"][0]["said"] == "Its base network could not be trained: The disk is full."


def test_a_changed_recipe_of_a_run_is_told(tmp_path: Path) -> None:
    contest(tmp_path / "a", "scratch")
    file = tmp_path / "a" / "runs" / "scratch-0-flops=0.6" / "recipe.yaml"
    file.write_text(file.read_text().replace("name: contest", "name: other"))
    found = contest(tmp_path / "a", "scratch")
    assert "has been changed since the run began" in found.failed[0]
    assert not found.document["rows"]


def test_what_a_comparison_refuses(tmp_path: Path) -> None:
    contest(tmp_path / "a", "scratch", settings={"scratch": {}})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").touch()
    for folder, options, part in (
        ("a", {"overrides": ("train.epochs=4",)}, "train.epochs is 2, and here it is 4"),
        ("a", {"overrides": ("model.arguments={width: 2.0}",)}, "and here it is"),
        ("a", {"settings": {"scratch": {"plan": "x.json"}}}, "has runs of scratch with the settings"),
        ("other", {}, "is no comparison"),
        ("new", {"seeds": []}, "No seed"),
        ("new", {"seeds": [-1]}, "out of range"),
        ("new", {"budgets": ["flops=2x"]}, "flops"),
        ("new", {"overrides": ("model=zoo:tinny",)}, "did you mean"),
        ("new", {"overrides": ("data.train_images=5000",)}, "5,000"),
        ("new", {"settings": {"scratch": {"plna": "x"}}}, "scratch.plan"),
    ):
        with pytest.raises(SecateurError) as caught:
            contest(tmp_path / folder, "scratch", **options)  # type: ignore[arg-type]
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()
    with pytest.raises(SecateurError, match="No method"):
        compare(recipe(), tmp_path / "new", methods=[])


def test_two_processes_do_not_work_on_one_comparison(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"), pytest.raises(RunError, match="Another process is working"):
        contest(tmp_path / "a", "scratch")


@pytest.mark.long
def test_a_method_of_ones_own_is_compared(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import secateur\n\n@secateur.methods.register\ndef compared(graph):\n"
        "    return {g.name: range(g.width) for g in graph.groups}\n"
    )
    found = contest(tmp_path / "out", "compared", "l1", overrides=(f"plugins={plugin}",), jobs=2)
    assert not found.failed
    plan = run_file(tmp_path / "out", "compared-0-flops=0.6", "plan.json")
    assert all(group["kept"][-1] == group["width"] - 1 for group in plan["groups"].values())


def test_the_whole_network_is_compared_as_well(tmp_path: Path) -> None:
    found = contest(tmp_path, "random", seeds=[0, 1], dense=True)
    rows = {(row["label"], row["seed"]): row for row in found.document["rows"]}
    assert set(rows) == {(label, seed) for label in ("random", "dense") for seed in (0, 1)}
    whole = rows["dense", 0]
    assert (whole["macs"]["share"], whole["params"]["share"], whole["epochs"]["total"]) == (1.0, 1.0, 5)
    assert whole["accuracy"]["pruned"] == whole["accuracy"]["dense"] == rows["random", 0]["accuracy"]["dense"]
    (paired,) = found.document["paired"]["budgets"].values()
    assert paired["best"] == "random"
    assert paired["others"]["dense"]["n"] == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert {"leaderboard.csv", "leaderboard.tex", "methods.bib", "leaderboard-1.svg"} <= names
    pandas = pytest.importorskip("pandas")
    frame = read(tmp_path)
    assert isinstance(frame, pandas.DataFrame)
    assert sorted(frame["accuracy.final"]) == sorted(row["accuracy"]["final"] for row in found.document["rows"])
    with pytest.raises(RunError, match="leaderboard"):
        read(tmp_path / "runs")
    with pytest.raises(SecateurError, match="give dense alone"):
        contest(tmp_path / "b", "dense+batchnorm")
