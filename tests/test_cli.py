"""The command line: what every command prints, and that whatever it refuses is one sentence and exit code 2."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import secateur
from secateur import cli
from secateur.methods import METHODS
from secateur.models import MODELS, create

ROOT = Path(__file__).parents[1]
FILE = """
import torch
from torch import nn

print("noise on stdout")


def net(channels=8):
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 4, 3))


ready = net()


class Inputs:
    pass


def example_inputs():
    return torch.randn(1, 3, 12, 12)


def raises():
    raise ValueError("first line\\nsecond line")


def number():
    return 3


def exits():
    raise SystemExit(7)


constant = 5
"""

MINE = """import secateur


def fails(graph):
    return graph["stem"]


def asks(graph):
    return {group.name: float(group.name) for group in graph.groups}


class Fails(secateur.methods.Method):
    name = "fails_late"

    def score(self):
        return {}["stem"]


def nothing():
    return {}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with model files in it."""
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "bare.py").write_text(FILE.replace("def example_inputs", "def other_inputs"))
    (tmp_path / "broken.py").write_text("import torch\n\nraise RuntimeError('no luck')\n")
    (tmp_path / "syntax.py").write_text("def net(:\n")
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Any:
    """One command in this process."""
    return CliRunner().invoke(cli.app, list(arguments))


def succeed(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def refuse(*arguments: str, code: int = 2) -> str:
    """The one sentence with which a command is refused."""
    result = run(*arguments)
    lines = [line for line in result.stderr.splitlines() if line != "noise on stdout"]
    assert result.exit_code == code, result.output
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return lines[0]


# ---------------------------------------------------------------------------------------------------------- succeed


def test_the_top_says_what_there_is() -> None:
    assert succeed("--version") == f"secateur {secateur.__version__}\n"
    for arguments in ((), ("--help",), ("-h",)):
        assert "secateur prune zoo:resnet20 --budget flops=0.5" in succeed(*arguments)


@pytest.mark.parametrize("command", ["inspect", "prune", "apply", "models", "methods"])
def test_help_has_examples(command: str) -> None:
    said = succeed(command, "--help")
    assert "Examples:" in said
    assert f"    secateur {command}" in said


COMMANDS = """
    run demo compress compare report verify export push inspect prune apply sensitivity latency methods models repairs
""".split()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal_of_80_columns(command: str) -> None:
    said = succeed(*command.split(), "--help")
    assert max(map(len, said.splitlines())) <= 80
    broken = [line for line in said.splitlines() if line.startswith("    ") and line.endswith("\\")]
    after = [said.splitlines()[said.splitlines().index(line) + 1].split()[0] for line in broken]
    assert all(word.startswith("-") for word in after), "an example is broken before an option, as a shell reads it"
    if not command:
        assert "..." not in said.partition("Commands:")[2], (
            "the first sentence of a command's docstring is its line here: keep it short"
        )
        assert sorted(re.findall(r"^  ([a-z]+)  ", said, re.MULTILINE)) == sorted(COMMANDS)


def test_inspect_shows_groups_totals_and_what_is_frozen() -> None:
    said = succeed("inspect", "zoo:tiny")
    for part in ("stem.0", "residual.0", "exact", "3 groups", "fc (10): reaches the model's output"):
        assert part in said
    assert max(map(len, said.splitlines())) <= 80


def test_inspect_json_holds_the_graph() -> None:
    document = json.loads(succeed("inspect", "zoo:lenet5", "--json", "--explain", "conv2"))
    assert document["format"] == "secateur.inspect"
    assert document["cost"]["macs"] == MODELS["lenet5"].macs
    assert document["cost"]["params"] == MODELS["lenet5"].params
    assert [g["name"] for g in document["groups"]] == ["conv1", "conv2", "fc1", "fc2"]
    assert all(0 < g["macs_share"] <= 1 and g["exact"] for g in document["groups"])
    assert document["frozen"] == [{"name": "fc3", "width": 10, "reason": "reaches the model's output"}]
    assert document["explain"]["conv2"].startswith("conv2: Conv2d")


def test_inspect_explains_a_layer() -> None:
    said = succeed("inspect", "zoo:lenet5", "--explain", "conv2", "--explain", "fc3")
    assert "read by     fc1 [weight x25]" in said
    assert "10 channels cannot be pruned" in said


def test_quiet_says_less() -> None:
    assert "stem.0" not in succeed("inspect", "zoo:tiny", "-q")
    assert succeed("prune", "zoo:tiny", "--budget", "flops=0.5", "-q") == ""
    assert succeed("models", "-q").split() == list(MODELS)
    assert "lamp" in succeed("methods", "-q").split()


def test_prune_shows_before_after_and_the_proof() -> None:
    said = succeed("prune", "zoo:resnet20", "--budget", "flops=0.5")
    for part in ("40,551,040", "flops 0.49", "layer3.2.conv1", "Verified, exact", "fc (10)"):
        assert part in said
    assert max(map(len, said.splitlines())) <= 80


def test_prune_says_that_weights_are_random_and_that_nothing_was_saved(tmp_path: Path) -> None:
    said = succeed("prune", "zoo:tiny", "--budget", "flops=0.5")
    assert "The weights are random: give trained ones with --weights FILE." in said
    assert "Nothing was saved: --save DIR keeps the network, --plan-out FILE the plan." in said
    weights, plan = tmp_path / "tiny.safetensors", tmp_path / "plan.json"
    save_file(create("tiny").state_dict(), weights)
    said = succeed("prune", "zoo:tiny", "--budget", "flops=0.5", "--weights", str(weights), "--plan-out", str(plan))
    assert "random" not in said
    assert "Nothing was saved" not in said
    assert "Nothing was saved: --out FILE does." in succeed("apply", "zoo:tiny", "--plan", str(plan))


def test_prune_json_is_what_the_library_does() -> None:
    arguments = ("prune", "zoo:tiny", "--budget", "flops=0.6", "--seed", "3", "--json", "--align", "2")
    document = json.loads(succeed(*arguments))
    assert document == json.loads(succeed(*arguments))
    torch.manual_seed(3)
    result = secateur.prune(create("tiny"), torch.randn(1, 3, 32, 32), budget="flops=0.6", align=2, seed=3)
    assert document["after"] == result.after.as_dict()
    assert {g["name"]: g["kept"] for g in document["groups"]} == result.plan.widths
    assert document["verification"]["exact"] is True
    assert document["remaining"]["macs"] <= 0.6


def test_prune_options_reach_the_library() -> None:
    document = json.loads(
        succeed("prune", "zoo:tiny", "--ratio", "residual.0=0.5", "--ratio", "branch.0=0.25", "--no-verify", "--json")
    )
    kept = {g["name"]: (g["width"], g["kept"]) for g in document["groups"]}
    assert kept == {"stem.0": (8, 8), "residual.0": (16, 8), "branch.0": (16, 12)}
    assert document["verification"] is None
    assert document["plan"]["provenance"]["allocator"] == "ratios"
    options = "--method l2 --allocator uniform --normalise max --set reduce=mean --min-channels 3 --max-ratio 0.7"
    document = json.loads(
        succeed("prune", "zoo:tiny", "--budget", "flops=0.7", "--ignore", "stem", "--json", *options.split())
    )
    kept = {g["name"]: (g["width"], g["kept"]) for g in document["groups"]}
    assert kept["stem.0"] == (8, 8)
    assert document["plan"]["provenance"]["method"] == "l2"
    assert "not verified" in succeed("prune", "zoo:tiny", "--budget", "flops=0.7", "--no-verify").casefold()
    document = json.loads(
        succeed("prune", "zoo:tiny", "--budget", "flops=0.7", "--allocator", "measured", *DIGITS, "--json")
    )
    assert set(document["plan"]["provenance"]["measured"]["groups"]) == {"stem.0", "residual.0", "branch.0"}


def test_files_come_back_as_the_same_network(folder: Path) -> None:
    original = create("tiny")
    save_file({k: v.contiguous() for k, v in original.state_dict().items()}, "original.safetensors")
    given = ("--weights", "original.safetensors", "--json")
    made = json.loads(
        succeed(
            "prune", "zoo:tiny", "--budget", "flops=0.5", "--plan-out", "plan.json", "--out", "a.safetensors", *given
        )
    )
    again = json.loads(succeed("apply", "zoo:tiny", "--plan", "plan.json", "--out", "b.safetensors", *given))
    assert made["files"] == {"plan": "plan.json", "weights": "a.safetensors"}
    assert made["after"] == again["after"]
    assert made["plan"]["fingerprint"] == again["plan"]["fingerprint"]
    a, b = load_file("a.safetensors"), load_file("b.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    with safe_open("a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "secateur.weights"
    assert metadata["model"] == "zoo:tiny"
    assert metadata["plan"] == made["plan"]["fingerprint"]
    narrow = secateur.apply(original, torch.randn(1, 3, 32, 32), secateur.Plan.load("plan.json")).model
    narrow.load_state_dict(a)  # strict
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []
    assert "Verified, exact" in succeed("apply", "zoo:tiny", "--plan", "plan.json")


def test_weights_of_another_type_and_of_tied_tensors(folder: Path) -> None:
    (folder / "tied.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Tied(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.stem = nn.Linear(6, 8)\n"
        "        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)\n"
        "        self.b.weight = self.a.weight\n        self.c = nn.Linear(8, 4)\n\n"
        "    def forward(self, x):\n        return self.c(self.b(self.a(self.stem(x)).relu()).relu())\n"
    )
    succeed("prune", "tied.py:Tied", "--input-size", "6", "--budget", "flops=1", "--out", "tied.safetensors")
    assert "b.weight" not in load_file("tied.safetensors")
    succeed("prune", "tied.py:Tied", "--input-size", "6", "--budget", "flops=1", "--weights", "tied.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in create("tiny").state_dict().items()}
    save_file(half, "half.safetensors")
    succeed("prune", "zoo:tiny", "--budget", "flops=0.5", "--weights", "half.safetensors")


@pytest.mark.parametrize("length", [896, 1152, 1408])
def test_safetensors_whose_header_length_looks_like_a_pickle(folder: Path, length: int) -> None:
    state = {k: v.contiguous() for k, v in create("lenet5").state_dict().items()}
    save_file(state, "x.safetensors", {"pad": ""})
    data = Path("x.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size <= length
    header = data[8 : 8 + size].rstrip().ljust(length)
    Path("x.safetensors").write_bytes(length.to_bytes(8, "little") + header + data[8 + size :])
    succeed("prune", "zoo:lenet5", "--budget", "flops=0.5", "--weights", "x.safetensors")


def test_a_file_of_the_users_own(folder: Path) -> None:
    result = run("inspect", "net.py:net", "--model-arg", "channels=6", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)  # what the file prints went to stderr
    assert "noise on stdout" in result.stderr
    assert document["groups"][0]["width"] == 6
    assert document["inputs"] == [[1, 3, 12, 12]]
    assert json.loads(succeed("inspect", "net.py:ready", "--json"))["class"] == "Sequential"
    shaped = succeed("inspect", str(folder / "bare.py") + ":net", "--input-shape", "2,3,16,16", "--json")
    assert json.loads(shaped)["inputs"] == [[2, 3, 16, 16]]


def test_zoo_arguments() -> None:
    document = json.loads(succeed("inspect", "zoo:lenet5", "--model-arg", "in_channels=1", "--json"))
    assert document["inputs"] == [[1, 1, 32, 32]]
    assert document["cost"]["params"] == 61_706


def test_lists() -> None:
    rows = json.loads(succeed("models", "--json"))["models"]
    assert [row["name"] for row in rows] == list(MODELS)
    assert "resnet20" in succeed("models")
    rows = json.loads(succeed("methods", "--json"))
    assert [row["name"] for row in rows][: len(METHODS)] == [row.name for row in METHODS]
    assert "1608.08710" in succeed("methods")


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
def test_torchvision_by_name() -> None:
    document = json.loads(succeed("inspect", "torchvision:mobilenet_v2", "--input-size", "3x64x64", "--json"))
    assert document["inputs"] == [[1, 3, 64, 64]]
    assert document["cost"]["params"] == 3_504_872
    assert "did you mean 'resnet50'" in refuse("inspect", "torchvision:resnet5O")
    assert "weights" in refuse("inspect", "torchvision:resnet18", "--model-arg", "weights=NONSENSE")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")
def test_timm_by_name() -> None:
    document = json.loads(succeed("inspect", "timm:resnet10t", "--input-size", "3x64x64", "--json"))
    assert document["class"] == "ResNet"
    said = succeed("prune", "timm:test_vit", "--budget", "flops=0.6")
    assert "inexact" in said
    assert "a layer norm over channels" in said
    assert "did you mean" in refuse("inspect", "timm:resnet5O")


#: Settings of those that would take long.
SMALL = {
    "acp": ("--set", "acp.particles=1", "--set", "acp.cycles=1"),
    "functionality": ("--set", "functionality.ascent_steps=2", "--set", "functionality.restarts=1"),
}


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_every_method_by_name(row: Any) -> None:
    words = ("prune", "zoo:tiny", "--budget", row.example_budget, "--method", row.name, *DIGITS, "--json")
    if row.acts == "while training":
        assert f"method: {row.name} for secateur run" in refuse(*words)
        return
    document = json.loads(succeed(*words, *SMALL.get(row.name, ())))
    assert document["plan"]["provenance"]["method"] == row.name
    assert document["verification"]["max_relative_error"] <= document["verification"]["tolerance"]


def test_several_budgets_hold_at_once() -> None:
    one = json.loads(succeed("prune", "zoo:tiny", "--budget", "flops=0.6,params=0.4", "--json"))
    two = json.loads(succeed("prune", "zoo:tiny", "--budget", "flops=0.6", "--budget", "params=0.4", "--json"))
    assert one["plan"]["fingerprint"] == two["plan"]["fingerprint"]


# ----------------------------------------------------------------------------------------------------------- refuse

PRUNE = ("prune", "zoo:tiny", "--budget", "flops=0.5")
DIGITS = ("--model-arg", "in_channels=1", "--input-size", "1x8x8", "--data", "digits", "--images", "64")
REFUSED = {
    "unknown model": (("inspect", "zoo:resnet21"), "did you mean"),
    "model without a source": (("inspect", "resnet20"), "did you mean 'zoo:resnet20'"),
    "unknown source": (("inspect", "keras:resnet"), "torchvision:NAME"),
    "empty model": (("inspect", ""), "not understood"),
    "unknown zoo argument": (("inspect", "zoo:tiny", "--model-arg", "depth=3"), "num_classes"),
    "zoo argument of a wrong kind": (("inspect", "zoo:tiny", "--model-arg", "width=wide"), "positive number"),
    "model argument without a value": (("inspect", "zoo:tiny", "--model-arg", "width"), "key=value"),
    "model argument given twice": (("inspect", "zoo:tiny", *("--model-arg", "width=1") * 2), "twice"),
    "method given twice": ((*PRUNE, "--method", "l1", "--method", "l2"), "--method is given more than once"),
    "seed given twice": ((*PRUNE, "--seed", "1", "--seed=1"), "--seed is given more than once"),
    "size given twice": (("inspect", "zoo:tiny", *("--input-size", "3x32x32") * 2), "--input-size is given more"),
    "file given twice": ((*PRUNE, "--out", "a.safetensors", "--out", "b.safetensors"), "--out is given more than"),
    "budget of nothing": (("prune", "zoo:tiny", "--budget", "flops=0"), "flops=0"),
    "negative budget": (("prune", "zoo:tiny", "--budget", "flops=-1"), "positive"),
    "budget that is not a number": (("prune", "zoo:tiny", "--budget", "flops=half"), "flops=half"),
    "nonsense for a budget": (("prune", "zoo:tiny", "--budget", "little"), "key=value"),
    "unknown budget key": (("prune", "zoo:tiny", "--budget", "flop=0.5"), "did you mean 'flops'"),
    "empty budget": (("prune", "zoo:tiny", "--budget", ""), "empty"),
    "no budget": (("prune", "zoo:tiny"), "needs a budget"),
    "budget out of reach": (("prune", "zoo:tiny", "--budget", "flops=1e-6"), "smallest"),
    "unknown method": ((*PRUNE, "--method", "l3"), "did you mean"),
    "method that needs data": ((*PRUNE, "--method", "taylor"), "--data"),
    "method that trains": ((*PRUNE, "--method", "bwcp"), "secateur run"),
    "file for a method": ((*PRUNE, "--method", "net.py:net"), "--plugin net.py:net"),
    "repair for a method": ((*PRUNE, "--method", "batchnorm"), "--repair batchnorm"),
    "repair without images": ((*PRUNE, "--repair", "batchnorm"), "--data KIND:PATH"),
    "setting given twice": ((*PRUNE, "--set", "l1.reduce=sum", "--set", "reduce=max"), "l1.reduce twice"),
    "images without data": ((*PRUNE, "--images", "8"), "no use without --data"),
    "batches without data": ((*PRUNE, "--batch-size", "8"), "no use without --data"),
    "folder that is not there": ((*PRUNE, "--method", "taylor", "--data", "./photos"), "no such folder"),
    "folders that are not there": ((*PRUNE, "--method", "taylor", "--data", "my/photos"), "no such folder"),
    "empty data": ((*PRUNE, "--method", "taylor", "--data", ""), "Unknown data set ''"),
    "one bound twice": ((*PRUNE, "--budget", "flops=0.6"), "flops twice"),
    "own function that fails": ((*PRUNE, "--plugin", "mine.py:fails", "--method", "fails"), "mine.py, line 5 failed"),
    "own function that asks wrongly": (
        (*PRUNE, "--plugin", "mine.py:asks", "--method", "asks"),
        "mine.py, line 9 failed (ValueError: could not convert",
    ),
    "own class that fails": (
        (*PRUNE, "--plugin", "mine.py:Fails", "--method", "fails_late"),
        "mine.py, line 16",
    ),
    "own function of nothing": ((*PRUNE, "--plugin", "mine.py:nothing", "--method", "nothing"), "with a graph alone"),
    "setting of another method": ((*PRUNE, "--set", "cp.ridge=1"), "l1.KEY=VALUE"),
    "unknown kind of data": ((*PRUNE, "--method", "cp", "--data", "digit"), "did you mean 'digits'"),
    "data of another size": ((*PRUNE, "--method", "cp", "--data", "digits"), "1x8x8"),
    "no such plug-in": ((*PRUNE, "--plugin", "nowhere.py"), "is not there"),
    "unknown allocator": ((*PRUNE, "--allocator", "globl"), "did you mean 'global'"),
    "measuring without images": ((*PRUNE, "--allocator", "measured"), "--data KIND:PATH"),
    "measuring and normalising": (
        (*PRUNE, "--allocator", "measured", "--normalise", "mean", *DIGITS),
        "normalise='mean' is of no use",
    ),
    "unknown normalisation": ((*PRUNE, "--normalise", "median"), "median"),
    "unknown reduction": ((*PRUNE, "--set", "reduce=median"), "median"),
    "unknown attention": ((*PRUNE, "--attention", "tails"), "head_dim"),
    "ignore that matches nothing": ((*PRUNE, "--ignore", "steam"), "did you mean 'stem'"),
    "ratio that matches nothing": (("prune", "zoo:tiny", "--ratio", "steam=0.5"), "steam"),
    "ratio without a share": (("prune", "zoo:tiny", "--ratio", "stem"), "share to remove"),
    "ratio that is no share": (("prune", "zoo:tiny", "--ratio", "stem=2"), "from 0 to 1"),
    "ratio given twice": (("prune", "zoo:tiny", *("--ratio", "stem=0.5") * 2), "twice"),
    "ratio beside another allocator": ((*PRUNE, "--allocator", "uniform", "--ratio", "stem=0.5"), "ratios"),
    "align of nothing": ((*PRUNE, "--align", "0"), "align=0"),
    "align that is no number": ((*PRUNE, "--align", "eight"), "Unknown alignment 'eight'"),
    "no channels at least": ((*PRUNE, "--min-channels", "0"), "min_channels=0"),
    "ratio above one": ((*PRUNE, "--max-ratio", "1.5"), "max_ratio=1.5"),
    "ratio not a number": ((*PRUNE, "--max-ratio", "nan"), "max_ratio=nan"),
    "negative seed": ((*PRUNE, "--seed", "-1"), "seed"),
    "wrong channels": (("inspect", "zoo:tiny", "--input-size", "4x32x32"), "Check their shape"),
    "nonsense for a size": (("inspect", "zoo:tiny", "--input-size", "big"), "3x224x224"),
    "size of nothing": (("inspect", "zoo:tiny", "--input-size", "3x0x32"), "positive"),
    "enormous size": (("inspect", "zoo:tiny", "--input-size", "3x999999x999999"), "smaller"),
    "nonsense for a shape": (("inspect", "zoo:tiny", "--input-shape", "3x32x32"), "1,3,224,224"),
    "size and shape": (("inspect", "zoo:tiny", "--input-size", "3x32x32", "--input-shape", "1,3,32,32"), "one of them"),
    "unknown layer to explain": (("inspect", "zoo:tiny", "--explain", "steam"), "did you mean 'stem'"),
    "file that does not exist": (("inspect", "nowhere.py:net"), "nowhere.py"),
    "file without a factory": (("inspect", "net.py"), "name the factory"),
    "factory that does not exist": (("inspect", "net.py:nett"), "did you mean 'net'"),
    "factory that is no function": (("inspect", "net.py:constant"), "neither"),
    "factory that raises": (("inspect", "net.py:raises"), "ValueError: first line second line in line"),
    "factory that exits": (("inspect", "net.py:exits"), "SystemExit"),
    "factory that takes no such argument": (("inspect", "net.py:net", "--model-arg", "depth=3"), "depth"),
    "factory of something else": (("inspect", "net.py:number"), "torch.nn.Module"),
    "file that raises": (("inspect", "broken.py:net"), "RuntimeError: no luck in line 3"),
    "file that is not Python": (("inspect", "syntax.py:net"), "SyntaxError"),
    "file without inputs": (("inspect", "bare.py:net"), "--input-size"),
    "plan that does not exist": (("apply", "zoo:tiny", "--plan", "plan.json"), "plan.json"),
    "plan that is none": (("apply", "zoo:tiny", "--plan", "net.py"), "not valid JSON"),
    "no plan": (("apply", "zoo:tiny"), "--plan"),
    "output in a folder that does not exist": ((*PRUNE, "--out", "nowhere/x.safetensors"), "does not exist"),
    "output that is a folder": ((*PRUNE, "--out", "."), "is a folder"),
    "plan in a folder that does not exist": ((*PRUNE, "--plan-out", "nowhere/plan.json"), "does not exist"),
    "two outputs of one name": ((*PRUNE, "--out", "x", "--plan-out", "./x"), "same file"),
    "output over the weights": ((*PRUNE, "--weights", "net.py", "--out", "net.py"), "same file"),
    "weights that do not exist": ((*PRUNE, "--weights", "x.safetensors"), "no weights file"),
    "weights that are something else": ((*PRUNE, "--weights", "net.py"), "cannot be read"),
    "unknown option": ((*PRUNE, "--budgett", "1"), "--budget"),
    "unknown command": (("prun", "zoo:tiny"), "prune"),
    "no model": (("prune",), "MODEL"),
    "too many models": (("inspect", "zoo:tiny", "zoo:lenet5"), "lenet5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence(name: str, folder: Path) -> None:
    arguments, part = REFUSED[name]
    files = sorted(path.name for path in folder.iterdir())
    assert part in refuse(*arguments)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == files


def _missing(model: dict[str, torch.Tensor]) -> None:
    del model["fc.bias"]


def _additional(model: dict[str, torch.Tensor]) -> None:
    model["extra"] = torch.zeros(1)


def _reshaped(model: dict[str, torch.Tensor]) -> None:
    model["fc.bias"] = torch.zeros(11)


def _not_numbers(model: dict[str, torch.Tensor]) -> None:
    model["fc.bias"] = torch.full((10,), float("nan"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_missing, "fc.bias is missing"),
        (_additional, "extra is not in the model"),
        (_reshaped, "fc.bias is 11 in the file and 10 in the model"),
        (_not_numbers, "fc.bias holds NaN"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], part: str) -> None:
    state = {k: v.clone() for k, v in create("tiny").state_dict().items()}
    change(state)
    save_file(state, "w.safetensors")
    assert part in refuse(*PRUNE, "--weights", "w.safetensors", "--out", "out.safetensors")
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_are_read_whatever_they_are_called(folder: Path, name: str, zipped: bool) -> None:
    trained = create("tiny")
    torch.save({"model": trained.state_dict()}, name, _use_new_zipfile_serialization=zipped)
    said = succeed(*PRUNE, "--weights", name, "--save", "small")
    assert "The weights are those under 'model' in the file." in " ".join(said.split())
    network = secateur.load("small", trained)
    assert torch.equal(network.fc.bias, trained.fc.bias)
    torch.save({"model": trained}, name, _use_new_zipfile_serialization=zipped)
    assert "can run code" in refuse(*PRUNE, "--weights", name)


def test_a_plan_of_another_network(folder: Path) -> None:
    succeed(*PRUNE, "--plan-out", "plan.json", "-q")
    assert "plan" in refuse("apply", "zoo:lenet5", "--plan", "plan.json")
    assert "plan" in refuse("apply", "zoo:tiny", "--model-arg", "width=2", "--plan", "plan.json")


def test_an_interrupted_save_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out.safetensors").write_text("old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refuse(*PRUNE, "--out", "out.safetensors")
    assert Path("out.safetensors").read_text() == "old"
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_write_protected_folder(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)
    assert "write-protected" in refuse(*PRUNE, "--out", "locked/x.safetensors")


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_says_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    finder = type(
        "Missing", (), {"find_spec": staticmethod(lambda name, *_: _raise(name) if name == package else None)}
    )
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    assert 'pip install "secateur[vision]"' in refuse("inspect", f"{package}:resnet18")


def _raise(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_defect_of_secateur_asks_to_be_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secateur, "trace", None)
    monkeypatch.delenv(cli.DEBUG, raising=False)
    said = refuse("inspect", "zoo:tiny", code=1)
    assert "please report it" in said
    assert "TypeError: 'NoneType' object is not callable" in said
    assert "SECATEUR_DEBUG=1" in said
    monkeypatch.setenv(cli.DEBUG, "1")
    assert isinstance(run("inspect", "zoo:tiny").exception, TypeError)


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(secateur, "trace", interrupt)
    result = run("inspect", "zoo:tiny")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


# ---------------------------------------------------------------------------------------------- in a process of its own


def _process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-m", "secateur", *arguments], capture_output=True, text=True, env=everything, timeout=120
    )


def test_the_demo_in_a_process_of_its_own() -> None:
    done = _process("prune", "zoo:resnet20", "--budget", "flops=0.5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert 0.495 < document["remaining"]["macs"] <= 0.5
    assert document["verification"]["exact"]


def test_a_refusal_in_a_process_of_its_own() -> None:
    done = _process("prune", "zoo:resnet20", "--budget", "flops=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_no_colours_in_a_pipe() -> None:
    assert "\x1b" not in _process("models").stdout
