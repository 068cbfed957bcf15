"""`secateur latency`: what can be timed, what is said of it, and that every refusal is one sentence and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import secateur
from secateur import cli, references
from secateur.plan import Plan
from secateur.runtime import engines, save_model, save_weights

FAST = ("--runtime", "pytorch", "--repeats", "3")

NET = """
from torch import nn
def factory(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))
"""


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["latency", *map(str, arguments)])


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def timed(*arguments: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(succeed(*arguments, *FAST, "--json"))
    return document


def refuse(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return str(line)


@pytest.fixture
def result() -> secateur.Result:
    loaded = references.load("zoo:tiny", seed=3)
    return secateur.prune(loaded.model, loaded.inputs, budget="flops=0.5", verify=False)


def saved(folder: Path, result: secateur.Result, reference: str = "zoo:tiny") -> Path:
    save_model(folder, result.model, reference=reference, inputs=[(1, 3, 32, 32)], plan=result.plan)
    return folder


def test_one_network_alone(tmp_path: Path) -> None:
    document = timed("zoo:tiny", "--batch", 2, "--out", tmp_path / "latency.json")
    assert (document["format"], document["model"], document["against"]) == ("secateur.latency", "zoo:tiny", None)
    assert (document["batch_size"], document["threads"], document["repeats"]) == (2, 1, 3)
    (row,) = document["runtimes"]
    assert 0 < row["alone"]["p10_ms"] <= row["alone"]["median_ms"] <= row["alone"]["p90_ms"]
    assert json.loads((tmp_path / "latency.json").read_text()) == document


def test_two_networks_and_their_layers_in_a_table() -> None:
    text = succeed("zoo:tiny", "--against", "zoo:resnet8", *FAST, "--layers")
    for said in (
        "zoo:tiny",
        "against zoo:resnet8",
        "PyTorch: ",
        "stem.0",
        "gone",
        "everything else",
        "in all",
        "torch",
    ):
        assert said in text
    assert "1 thread, 3 times in turns" in " ".join(text.split())


def test_long_tables_are_cut_and_their_sums_are_not() -> None:
    text = succeed("zoo:resnet56", *FAST, "--layers")
    assert "51 more (--all)" in text  # 111 layers
    assert "more (--all)" not in succeed("zoo:resnet56", *FAST, "--layers", "--all")


def test_a_folder_is_compared_with_what_was_cut(tmp_path: Path, result: secateur.Result) -> None:
    folder = saved(tmp_path / "a", result)
    document = timed(folder)
    assert (document["model"], document["against"]) == (str(folder), "zoo:tiny")
    assert document["runtimes"][0]["said"]
    assert timed(folder, "--alone")["against"] is None
    assert timed("zoo:resnet8", "--against", folder, "--model-arg", "num_classes=10")["against"] == str(folder)
    assert "is called with 3x16x16 and" in refuse("zoo:resnet8", "--input-size", "3x16x16", "--against", folder)
    for option in (("--plan", "x"), ("--input-size", "3x8x8"), ("--model-arg", "a=1")):
        assert "which has all that is its network's" in refuse(folder, *option)


def test_a_plan_cuts_and_weights_fit_before_or_after(tmp_path: Path, result: secateur.Result) -> None:
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "narrow.safetensors", {})
    save_weights(references.load("zoo:tiny").model, tmp_path / "dense.safetensors", {})
    save_weights(references.load("zoo:resnet8").model, tmp_path / "other.safetensors", {})
    plan = ("zoo:tiny", "--plan", tmp_path / "plan.json", "--weights")
    for name in ("narrow", "dense"):
        document = timed(*plan, tmp_path / f"{name}.safetensors")
        assert (document["model"], document["against"]) == (f"zoo:tiny cut by {tmp_path / 'plan.json'}", "zoo:tiny")
    assert "do not fit" in refuse(*plan, tmp_path / "other.safetensors")
    assert "do not fit" in refuse("zoo:tiny", "--weights", tmp_path / "other.safetensors")


def test_a_run_of_a_python_file_needs_that_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    reference = f"{tmp_path / 'net.py'}:factory"
    loaded = references.load(reference, input_size="3x8x8")
    result = secateur.prune(loaded.model, loaded.inputs, budget="flops=0.5", verify=False)
    save_model(tmp_path / "a", result.model, reference=reference, inputs=loaded.inputs, plan=result.plan)
    assert "needs the original's code" in refuse(tmp_path / "a", *FAST)
    document = timed(tmp_path / "a", "--against", reference)
    assert document["against"] == reference
    assert {row["name"] for row in document["layers"]} == {"0", "4"}


def test_what_is_not_installed_is_listed_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engines.ENGINES["pytorch"].missing()
    assert real is None
    monkeypatch.setattr(
        engines.Engine,
        "missing",
        lambda self: None if self.name == "pytorch" else f"x is not installed: {self.install}",
    )
    document = json.loads(succeed("zoo:tiny", "--runtime", "all", "--repeats", 3, "--json"))
    assert [row["runtime"] for row in document["runtimes"]] == ["pytorch"]
    assert [row["runtime"] for row in document["skipped"]] == [name for name in engines.ENGINES if name != "pytorch"]
    assert all("pip install" in row["reason"] for row in document["skipped"])
    assert "x is not installed: pip install" in refuse("zoo:tiny", "--runtime", "pytorch,openvino")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("zoo:tiny", "--runtime", "openvin"), "did you mean 'openvino'?"),
        (("zoo:tiny", "--runtime", ","), "is empty or repeats a name"),
        (("zoo:tiny", "--runtime", "pytorch,pytorch"), "repeats a name"),
        (("zoo:tiny", "--alone", "--against", "zoo:resnet8"), "use one of them"),
        (("zoo:tinny",), "did you mean 'tiny'?"),
        (("zoo:tiny", "--against", "zoo:tinny"), "did you mean 'tiny'?"),
        (("zoo:tiny", "--repeats", 2), "--repeats"),
        (("zoo:tiny", "--batch", 0), "--batch"),
        (("zoo:tiny", "--threads", "two"), "--threads"),
        (("zoo:tiny", "--out", "/does/not/exist/x.json"), "does not exist"),
        (("zoo:tiny", "--plan", "nowhere.json"), "nowhere.json"),
        ((__file__,), "name the factory too"),
        ((Path(__file__).parent,), "is not a run's"),
        ((), "Missing argument"),
    ],
)
def test_refusals(arguments: tuple[object, ...], said: str) -> None:
    assert said in refuse(*arguments)


def test_a_plan_of_another_network_is_refused(tmp_path: Path, result: secateur.Result) -> None:
    result.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json")
    refuse("zoo:resnet8", "--plan", tmp_path / "plan.json", *FAST)


def test_the_staircase_of_a_layer() -> None:
    stairs = ("zoo:resnet8", "--staircase", "layer3.0.conv2", "--runtime", "pytorch")
    (row,) = json.loads(succeed(*stairs, "--json"))["runtimes"]
    assert row["sides"]["inputs"]["widths"] == list(range(32, 65))
    assert all(time > 0 for time in row["sides"]["outputs"]["us"])
    told = " ".join(succeed(*stairs).split())  # lines break anywhere
    assert "layer3.0.conv2: conv 3x3 on 8x8, 64 outputs of 64 inputs" in told
    assert "32 instead of 64 channels" in told


def test_a_staircase_is_of_one_layer_alone() -> None:
    assert "did you mean 'layer3.0.conv1'" in refuse("zoo:resnet8", "--staircase", "layer3.1.conv1")
    assert "--layers has no meaning" in refuse("zoo:resnet8", "--staircase", "auto", "--layers")
    left_out = succeed("zoo:resnet8", "--staircase", "auto", "--runtime", "compiled")
    assert "no kernels of its own" in " ".join(left_out.split())
