"""The commands about runs: what they print, in which form, and that every refusal is one sentence and exit code 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))

from _small import GATED, recipe

from secateur import cli, runs
from secateur.methods import METHODS
from secateur.recipe import Recipe
from secateur.repair import METHOD_OF, REPAIRS
from secateur.runtime import EXPORTERS

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> Any:
    """One command in this process."""
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def refuse(*arguments: object) -> str:
    """The one sentence with which a command is refused."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return str(lines[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    overrides = (*GATED, "finetune.distill.weight=0", "export.pt2=true")
    return runs.start(recipe(*overrides), tmp_path_factory.mktemp("finished")).folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe and a copy of a finished run in it."""
    (tmp_path / "small.yaml").write_text(recipe("train.epochs=1", "finetune=null", "name=a small/one").to_yaml())
    shutil.copytree(finished, tmp_path / "done")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------------------------ run


def test_run_opens_with_a_table_and_ends_with_the_report(folder: Path) -> None:
    said = succeed("run", "small.yaml", "--set", "seed=3", "--set", "budget=flops=0.7")
    opening, _, end = said.partition("Accuracy")
    for part in ("a small/one", "zoo:tiny", "digits: 270 images", "l1: sum of absolute weights", "flops=0.7"):
        assert part in opening
    assert "train (1 epoch), prune and verify, export, report" in " ".join(opening.split())
    assert "MACs" in end
    assert said.splitlines()[-1] == "Report: runs/a-small-one-3/report.html"
    assert Path("runs/a-small-one-3/report.html").is_file()
    assert Recipe.read("runs/a-small-one-3/recipe.yaml").seed == 3
    assert max(map(len, said.splitlines())) <= 80
    assert "secateur run --resume runs/a-small-one-3" in refuse("run", "small.yaml", "--set", "seed=3")


def test_run_for_programs(folder: Path) -> None:
    result = run("run", "small.yaml", "--out", "x", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads(Path("x/results.json").read_text())
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [e["event"] for e in events if e["event"] in ("stage", "epoch", "end")] == ["stage", "epoch", "end"]


def test_repairs_have_a_short_form(folder: Path) -> None:
    succeed("run", "small.yaml", "--out", "x", "-q", "--repair", "batchnorm", "--repair", "batchnorm")
    assert [each.name for each in Recipe.read("x/recipe.yaml").repair] == ["batchnorm", "batchnorm"]


def test_quiet_says_where_the_report_is(folder: Path) -> None:
    result = run("run", "small.yaml", "--out", "x", "-q")
    assert (result.stdout, result.stderr) == ("x/report.html\n", "")


def test_resuming_what_is_finished(folder: Path) -> None:
    before = Path("done/results.json").read_bytes()
    said = succeed("run", "--resume", "done")
    assert said.startswith("The run in done is finished; nothing was left to do.\n")
    assert "Report: done/report.html" in said
    assert Path("done/results.json").read_bytes() == before
    assert json.loads(succeed("run", "--resume", "done", "--json")) == json.loads(before)
    assert succeed("run", "--resume", "done", "-q") == "done/report.html\n"


def test_an_interrupt_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.stages.Stages, "_prune", interrupted)
    result = run("run", "small.yaml", "--out", "my run", "-q")
    assert result.exit_code == 130
    assert result.stderr == "error: Interrupted: continue with secateur run --resume 'my run'.\n"
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run("run", "--resume", "my run", "-q").exit_code == 0
    monkeypatch.setattr(runs, "prepare", interrupted)
    result = run("run", "small.yaml", "--out", "other")
    assert (result.exit_code, result.stderr) == (130, "error: Interrupted before anything was written.\n")
    assert not Path("other").exists()


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing to run": (("run",), "RECIPE"),
    "no such recipe": (("run", "nowhere.yaml"), "No such file"),
    "a recipe and a resumption": (("run", "small.yaml", "--resume", "done"), "--resume and RECIPE"),
    "a resumption with changes": (
        ("run", "--resume", "done", "--set", "seed=1"),
        "seed cannot be changed in a run that has begun",
    ),
    "a resumption elsewhere": (("run", "--resume", "done", "--out", "x"), "--resume and --out"),
    "a resumption with a repair": (("run", "--resume", "done", "--repair", "batchnorm"), "--resume and --repair"),
    "a resumption on another device": (("run", "--resume", "done", "--device", "cpu"), "--resume and --device"),
    "no such run": (("run", "--resume", "nowhere"), "begin one with secateur run RECIPE --out nowhere"),
    "not a run": (("run", "--resume", "."), "is not the folder of a run"),
    "a folder that is full": (("run", "small.yaml", "--out", "."), "is not empty"),
    "a run that is there": (("run", "small.yaml", "--out", "done"), "secateur run --resume done"),
    "a file for a folder": (("run", "small.yaml", "--out", "small.yaml"), "is a file"),
    "unknown device": (("run", "small.yaml", "--device", "tpu"), "engine.device is 'tpu'"),
    "unknown repair": (("run", "small.yaml", "--repair", "batchnrom"), "did you mean 'batchnorm'?"),
    "no repair": (("run", "small.yaml", "--repair", ""), "repair.name"),
    "a repair twice over": (
        ("run", "small.yaml", "--repair", "batchnorm", "--set", "repair=[]"),
        "--repair and --set repair=... are both given",
    ),
    "unknown key": (("run", "small.yaml", "--set", "train.epoch=3"), "did you mean 'train.epochs'?"),
    "nonsense to set": (("run", "small.yaml", "--set", "epochs"), "a.b=value"),
    "unknown method": (("methods", "bwpc"), "did you mean 'bwcp'?"),
    "report of nothing": (("report", "nowhere"), "nowhere"),
    "report of something else": (("report", "."), "results.json"),
    "report beside nothing": (("report", "done", "--others", "nowhere"), "nowhere"),
    "verify nothing": (("verify", "nowhere"), "nowhere"),
    "verify something else": (("verify", "."), "results.json"),
    "export of nothing": (("export", "nowhere", "--format", "onnx"), "nowhere"),
    "export to nowhere": (("export", "done", "--format", "pt2", "--out", "no/where.pt2"), "does not exist"),
    "unknown format": (("export", "done", "--format", "onyx"), "did you mean 'onnx'?"),
    "no format": (("export", "done"), "--format"),
    "no quantiser": (("export", "done", "--format", "pt2", "--int8"), "choose onnx or openvino"),
    "demo in the way": (("demo", "--out", "done"), "holds a run already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence(name: str, folder: Path) -> None:
    arguments, part = REFUSED[name]
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    assert part in refuse(*arguments)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before


# ----------------------------------------------------------------------------------------------------------- the others


def test_the_demo_is_an_ordinary_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def start(given: Recipe, where: Path, **_: Any) -> Any:
        started.append((given, where))
        return runs.Outcome(where, {}, where / "report.html")

    monkeypatch.setattr(runs, "start", start)
    succeed("demo")
    Path("runs/demo").mkdir(parents=True)
    succeed("demo")
    (given, first), (_, second) = started
    assert (first, second) == (Path("runs/demo"), Path("runs/demo-2"))
    assert given == Recipe.read(ROOT / "recipes" / "demo.yaml")
    assert given.data.name == "digits"
    assert given.longer


#: The one of large images and a network of torchvision's is tried in tests/data/test_data_streams.py.
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if not path.stem.startswith("imagenet"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_repository_are_in_order(path: Path) -> None:
    read = Recipe.read(path)
    if read.task.name == "classification":  # other tasks make their own data
        read = Recipe.read(path, ["data={name: digits}"])
    assert read.name == path.stem
    assert runs.prepare(read).dense.macs > 0


def test_report_is_written_anew(folder: Path) -> None:
    Path("done/report.html").unlink()
    said = succeed("report", "done")
    assert "MACs" in said
    assert said.splitlines()[-1] == "Report: done/report.html"
    assert Path("done/report.html").is_file()
    assert succeed("report", "done", "--others", "done", "-q") == "done/report.html\n"
    assert json.loads(succeed("report", "done", "--json"))["report"] == "done/report.html"


def test_verify_says_what_it_checked(folder: Path) -> None:
    said = succeed("verify", "done")
    assert said.startswith("The run in done is sound.\n")
    told = " ".join(said.split())
    assert "cut gives what the original network gives (relative error" in told
    assert "model.pt2 gives what the network gives (relative error" in told
    assert "Not checked: accuracy and latency are measurements" in told
    assert max(map(len, said.splitlines())) <= 80
    assert succeed("verify", "done", "-q") == ""
    assert json.loads(succeed("verify", "done", "--json"))["cut"]["exact"] is True
    weights = Path("done/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert "model.safetensors" in refuse("verify", "done")


def test_export_into_the_run_and_elsewhere(folder: Path) -> None:
    document = json.loads(succeed("export", "done", "--format", "pt2", "--out", "small.pt2", "--json"))
    assert document["max_relative_error"] <= document["tolerance"]
    assert Path("small.pt2").is_file()
    Path("done/model.pt2").unlink()
    assert "done/model.pt2: differs from the network by" in succeed("export", "done", "--format", "pt2")
    succeed("verify", "done")


@pytest.mark.long
def test_export_in_eight_bits(folder: Path) -> None:
    document = json.loads(succeed("export", "done", "--format", "onnx", "--int8", "--json"))
    assert (document["kind"], document["path"]) == ("onnx", "done/model.int8.onnx")
    assert document["images"] == 500
    succeed("verify", "done")
    results = json.loads(Path("done/results.json").read_text())
    assert results["int8"]["onnxruntime"]["accuracy"] == document["accuracy"]


def test_help_names_every_format() -> None:
    said = " ".join(succeed("export", "--help").split())
    assert all(name in said for name in EXPORTERS)


def test_methods_are_the_registry() -> None:
    said = succeed("methods")
    assert all(row.name in said and row.arxiv in said for row in METHODS)
    assert max(map(len, said.splitlines())) <= 80
    assert succeed("methods", "-q").split() == [row.name for row in METHODS]
    rows = json.loads(succeed("methods", "--json"))
    assert [row["name"] for row in rows] == [row.name for row in METHODS]
    assert set(rows[0]) >= {"name", "paper", "year", "needs", "acts", "fidelity"}


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_a_method_and_its_settings(row: Any) -> None:
    said = succeed("methods", row.name)
    assert all(name in said for name in row.config.model_fields)
    assert max(map(len, said.splitlines())) <= 80
    found = json.loads(succeed("methods", row.name, "--json"))
    assert [s["name"] for s in found["settings"]] == list(row.config.model_fields)
    assert all(s["meaning"] and s["default"] and s["allowed"] for s in found["settings"])


def test_repairs_are_the_registry() -> None:
    said = succeed("repairs")
    assert max(map(len, said.splitlines())) <= 80
    assert succeed("repairs", "-q").split() == [row.name for row in REPAIRS]
    rows = json.loads(succeed("repairs", "--json"))["repairs"]
    assert [row["name"] for row in rows] == [row.name for row in REPAIRS]
    for row, listed in zip(REPAIRS, rows, strict=True):
        assert row.name in said
        assert row.arxiv in said
        assert [s["name"] for s in listed["settings"]] == list(row.factory.Config.model_fields)
        one = succeed("repairs", row.name)
        assert max(map(len, one.splitlines())) <= 80
        assert all(s["name"] in one for s in listed["settings"])
        assert json.loads(succeed("repairs", row.name, "--json")) == listed
    assert "did you mean 'batchnorm'" in refuse("repairs", "batchnorms")
    assert {alias: row["name"] for row in rows for alias in row["also"]} == dict(METHOD_OF)


@pytest.mark.parametrize("command", ["run", "demo", "report", "verify", "export", "methods", "repairs"])
def test_help_has_examples(command: str) -> None:
    said = succeed(command, "--help")
    assert "Examples:" in said
    assert f"    secateur {command}" in said


def test_tables_in_the_documentation_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import tables

    page = (ROOT / "docs" / "recipes.md").read_text()
    assert page.count("<!-- table ") == 10
    assert tables.filled(page) == page
