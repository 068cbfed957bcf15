"""`secateur compress` and `secateur sensitivity` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import secateur
from secateur.cli import app

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 2))

def train():
    torch.manual_seed(0)
    return [(torch.randn(60, 1, 8, 8), torch.arange(60) % 2) for _ in range(4)]
"""
QUICK = ["--trials", "1", "--methods", "l1", "--epochs", "1", "--time", "none", "--align", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    space: dict[str, object] = {}
    exec(NET, space)
    torch.manual_seed(0)
    save_file(space["build"]().state_dict(), tmp_path / "mine.safetensors")  # type: ignore[operator]
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(words))
    return found.exit_code, found.output


MODEL = ["net.py:build", "--input-size", "1x8x8", "--weights", "mine.safetensors"]


def test_compress_leaves_a_folder_that_can_be_resumed_and_loaded(folder: Path) -> None:
    code, said = _run("compress", *MODEL, "--data", "net.py:train", "--flops", "0.5", "--out", "c", *QUICK)
    assert code == 0, said
    assert "Chosen: l1" in said
    names = {path.name for path in (folder / "c").iterdir()}
    assert {"model.safetensors", "plan.json", "compress.json", "study.db", "request.json"} <= names
    space: dict[str, object] = {}
    exec(NET, space)
    network = secateur.load("c", model=space["build"]())  # type: ignore[operator]
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    first = (folder / "c" / "model.safetensors").read_bytes()
    code, said = _run("compress", "--resume", "c", "--json")
    assert code == 0
    assert json.loads(said)["format"] == "secateur.compress"
    assert (folder / "c" / "model.safetensors").read_bytes() == first
    code, said = _run("compress", *MODEL, "--data", "net.py:train", "--flops", "0.5", "--out", "c")
    assert code == 2
    assert "is there already" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress"], "Neither MODEL nor --resume"),
        (["compress", "net.py:build", "--resume", "c"], "both given"),
        (["compress", "--resume", "nowhere"], "There is no search"),
        (["compress", "--resume", "c", "--flops", "0.3"], "--resume and --flops are both given"),
        (["compress", "--resume", "c", "--time", "30m"], "--resume and --time are both given"),
        (["compress", "--resume", "c", "--data", "photos"], "--resume and --data are both given"),
        (["compress", "--resume", "c", "--model-arg", "a=1"], "--resume and --model-arg are both given"),
        (["compress", *MODEL, "--data", "net.py:train"], "Nothing says how small"),
        (["compress", *MODEL, "--data", "net.py:test", "--flops", "0.5"], "no 'test'"),
        (["compress", *MODEL, "--data", "nowhere", "--flops", "0.5"], "Unknown data set"),
        (["compress", *MODEL, "--speedup", "0.5", "--runtime", "pytorch"], "not a number above 1"),
        (["sensitivity", *MODEL, "--data", "net.py:train", "--shares", "half"], "not understood"),
        (["compress", *MODEL, "--flops", "0.5", "--align", "eight"], "Unknown alignment 'eight'"),
        (["compress", *MODEL, "--flops", "0.5", "--repairs", "l3ast_squares"], "Unknown repair"),
        (["compress", *MODEL, "--flops", "0.5", "--allocators", "even"], "Unknown allocator 'even'"),
        (["compress", *MODEL, "--flops", "0.5", "--max-ratio", "2"], "max_ratio=2.0 is not a share"),
        (["compress", *MODEL, "--flops", "0.5", "--ignore", "nothing.*"], "nothing.*"),
        (["compress", *MODEL, "--flops", "0.0001"], "smallest reachable"),
    ],
)
def test_refused_in_a_sentence(folder: Path, words: list[str], said: str) -> None:
    out = ["--out", "c"] if words[:2] == ["compress", MODEL[0]] and "--resume" not in words else []
    code, output = _run(*words, *out)
    assert code == 2
    assert said in " ".join(output.split())
    assert output.count("error:") == 1
    assert not (folder / "c").exists()  # the same folder may be named again


def test_what_is_compared_can_be_chosen(folder: Path) -> None:
    words = [*QUICK[:-2], "--repairs", "batchnorm", "--allocators", "uniform", "--align", "2", "--min-channels", "3"]
    code, said = _run("compress", *MODEL, "--data", "net.py:train", "--flops", "0.9", "--out", "c", *words)
    assert code == 0, said
    assert "Chosen: l1 with batchnorm, uniform" in said
    asked = json.loads((folder / "c" / "request.json").read_text())
    for key in ("repairs", "allocators", "min_channels", "max_ratio"):  # as a request of an earlier release has it
        del asked["asked"][key]
    (folder / "c" / "request.json").write_text(json.dumps(asked))
    code, said = _run("compress", "--resume", "c")
    assert (code, "of another network, other data or another task" in said) == (2, True)  # it asked for other things


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.usefixtures("folder")
def test_what_is_not_tried_is_said_on_stderr_before_the_search(quiet: bool) -> None:
    words = ["compress", *MODEL, "--flops", "0.5", "--out", "c", *QUICK, *["--quiet"] * quiet]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert ("No data are given: only methods that need none are tried" in found.stderr) != quiet
    assert "trial 1" not in found.stderr


def test_sensitivity_prints_a_table_and_ratios(folder: Path) -> None:
    code, said = _run("sensitivity", *MODEL, "--data", "net.py:train", "--shares", "0.5", "--drop", "99", "--out", "s")
    assert code == 0, said
    assert "Accuracy with one group narrowed" in said
    assert "--ratio 0=0.5 --ratio 2=0.5" in said
    assert (folder / "s" / "sensitivity.json").is_file()


def test_the_folder_of_a_pruned_network_is_searched_on(folder: Path) -> None:
    data = NET.replace("(60, 1, 8, 8)", "(20, 3, 32, 32)").replace("arange(60)", "arange(20)")
    (folder / "data.py").write_text(data, encoding="utf-8")
    assert _run("prune", "zoo:tiny", "--budget", "flops=0.8", "--save", "small", "-q")[0] == 0
    given = ["small", "--data", "data.py:train"]
    code, said = _run("sensitivity", *given, "--shares", "0.5")
    assert code == 0, said
    code, said = _run("compress", *given, "--flops", "0.8", "--out", "c", *QUICK)
    assert code == 0, said
    whole, smaller = (secateur.load(name) for name in ("small", "c"))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in whole.parameters())
    assert "leave --model-arg out" in _run("sensitivity", *given, "--model-arg", "width=3")[1]
