"""No command writes over what it reads: the network's own Python file, a plug-in, the folder of a run or a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secateur import cli

NET = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""
MINE = """
import secateur
@secateur.methods.register
def mine(graph):
    return {group.name: range(group.width) for group in graph.groups}
"""
TINY = ("zoo:tiny", "--budget", "flops=0.5")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    return str(result.stderr)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    Path("mine.py").write_text(MINE)
    Path("a.pyt").mkdir()
    Path("a.pyt/net.py").write_text(NET)
    Path("link").symlink_to("net.py")
    assert run("prune", *TINY, "--save", "once", "-q").exit_code == 0
    return tmp_path


OWN = ("net.py:build", "--input-size", "3x8x8")
CASES = {
    "its Python file": ("net.py", ("prune", *OWN, "--budget", "flops=0.5", "--out", "net.py")),
    "its Python file, by a link": ("net.py", ("prune", *OWN, "--budget", "flops=0.5", "--plan-out", "link")),
    "its Python file, by an import path": ("net.py", ("prune", "net:build", *OWN[1:], "--budget", "flops=0.5", "--out",
                                                      "net.py")),
    "its Python file, in a folder of such a name": ("a.pyt/net.py", ("prune", "a.pyt/net.py:build", *OWN[1:],
                                                                     "--budget", "flops=0.5", "--out", "a.pyt/net.py")),
    "a Python file of another network": ("net.py", ("prune", *TINY, "--out", "net.py")),
    "a Python file, export": ("net.py", ("export", "once", "--format", "onnx", "--out", "net.py")),
    "a plug-in": ("mine.py", ("prune", *TINY, "--plugin", "mine.py", "--method", "mine", "--out", "./mine.py")),
    "a folder's weights": ("once/model.safetensors", ("prune", "once", "--budget", "flops=0.9", "--out",
                                                      "once/model.safetensors")),
    "a folder's plan": ("once/plan.json", ("prune", "once", "--budget", "flops=0.9", "--plan-out", "once/plan.json")),
    "a folder": ("once/model.safetensors", ("prune", "once", "--budget", "flops=0.9", "--save", "once")),
    "a folder, latency": ("once/plan.json", ("latency", "once", "--out", "once/plan.json")),
    "a Python file, latency": ("net.py", ("latency", *OWN, "--out", "net.py")),
    "a file for a folder": ("net.py", ("prune", *TINY, "--save", "net.py")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_stays(case: str, room: Path) -> None:
    name, arguments = CASES[case]
    before = (room / name).read_bytes()
    assert "give another" in refused(*arguments) or "give a folder" in refused(*arguments)
    assert (room / name).read_bytes() == before


@pytest.mark.parametrize("held", ["state.json", "results.json", "request.json"])
def test_a_network_is_not_saved_into_a_run(held: str, room: Path) -> None:
    Path("run").mkdir()
    Path("run", held).write_text("{}")
    assert "holds a run or a search" in refused("prune", *TINY, "--save", "run")
    assert [path.name for path in Path("run").iterdir()] == [held]


def test_a_saved_network_may_be_replaced_by_another(room: Path) -> None:
    before = Path("once/model.safetensors").read_bytes()
    assert run("prune", "zoo:tiny", "--budget", "flops=0.3", "--save", "once", "-q").exit_code == 0
    assert Path("once/model.safetensors").read_bytes() != before
