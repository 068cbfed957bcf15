"""Plans compose: a network pruned several times is one cut of the network that was never pruned."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur import cli
from secateur.errors import PlanError
from secateur.forms import LayerForm
from secateur.history import earlier
from secateur.models import create
from secateur.runtime import export_int8, export_onnx, open_exported, save_model

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plan(**kept: list[int]) -> secateur.Plan:
    return secateur.Plan({name: np.array(mask, dtype=bool) for name, mask in kept.items()}, {}, "sha256:a")


def dense() -> nn.Module:
    torch.manual_seed(3)
    return create("tiny").eval()


def step(model: nn.Module) -> None:
    """Some training, so that the weights are no longer those that the plan was made from."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()(X).square().sum().backward()
    optimiser.step()
    model.eval()


def twice(model: nn.Module, budget: str = "flops=0.7") -> tuple[secateur.Result, secateur.Result]:
    first = secateur.prune(model, X, budget=budget)
    step(first.model)
    second = secateur.prune(first.model, X, budget=budget)
    step(second.model)
    return first, second


def same(a: nn.Module, b: nn.Module) -> bool:
    with torch.no_grad():
        return torch.allclose(a.eval()(X), b.eval()(X), rtol=1e-5, atol=1e-5)


def test_masks_compose_and_come_apart() -> None:
    first, second = plan(a=[1, 0, 1, 1], b=[0, 1]), plan(a=[0, 1, 1])
    both = first.then(second)
    assert {n: m.tolist() for n, m in both.masks.items()} == {"a": [False, False, True, True], "b": [False, True]}
    assert both.since(first).masks["a"].tolist() == [False, True, True]
    assert both.ends_with(second)
    assert not both.ends_with(first)
    assert secateur.Plan.parse(both.text()) == both


def test_plans_that_do_not_follow_each_other_are_refused() -> None:
    with pytest.raises(PlanError, match="expects 2 channels in group 'a', and the first leaves 3"):
        plan(a=[1, 0, 1, 1]).then(plan(a=[1, 0]))
    with pytest.raises(PlanError, match="cuts group 'c'"):
        plan(a=[1, 0]).then(plan(c=[1, 0]))
    formed = plan(a=[1, 0])
    formed.forms["conv"] = LayerForm("offsets", {})
    assert plan(a=[1, 1, 0]).then(formed).forms == formed.forms
    with pytest.raises(PlanError, match=r"computed another way \(conv\)"):
        formed.then(plan(a=[1]))
    with pytest.raises(PlanError, match="channels of group 'a' that are gone"):
        plan(a=[1, 1, 0]).since(plan(a=[1, 0, 1]))


@pytest.mark.parametrize("name", ["tiny", "resnet8", pytest.param("densenet40", marks=pytest.mark.long)])
def test_the_whole_plan_cuts_the_first_network_as_the_plans_did_in_turn(name: str) -> None:
    model = create(name, width=0.25 if name != "tiny" else 1.0)
    cuts = [secateur.prune(model, X[:1], budget="flops=0.8", verify=False)]
    for _ in range(2):
        cuts.append(secateur.prune(cuts[-1].model, X[:1], budget="flops=0.8", verify=False))
    whole = cuts[-1].whole_plan
    wanted = cuts[-1].model.state_dict()
    for start in (model, cuts[0].model, cuts[1].model):  # what is still to be done to each
        found = secateur.apply(start, X[:1], whole, verify=False).model.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_plan_is_carried_by_copies_and_survives_pickling() -> None:
    first, second = twice(dense())
    for narrow in (copy.deepcopy(second.model), pickle.loads(pickle.dumps(second.model))):
        assert earlier(narrow) == second.whole_plan
    assert second.plan != second.whole_plan
    assert first.plan == first.whole_plan
    assert earlier(dense()) is None
    assert not any("secateur" in key for key in second.model.state_dict())


def test_in_place_too() -> None:
    model = dense()
    first = secateur.prune(model, X, budget="flops=0.7", inplace=True)
    second = secateur.prune(model, X, budget="flops=0.7", inplace=True)
    assert earlier(model) == first.plan.then(second.plan)


def test_a_network_pruned_twice_is_saved_and_loaded(tmp_path: Path) -> None:
    first, second = twice(dense())
    save_model(tmp_path / "a", second.model, reference="zoo:tiny", inputs=X, plan=second.plan)
    for model in (None, dense(), first.model):
        loaded = secateur.load(tmp_path / "a", model)
        assert type(loaded) is type(second.model)
        assert same(loaded, second.model)
    third = secateur.prune(secateur.load(tmp_path / "a"), X, budget="flops=0.8")
    save_model(tmp_path / "b", third.model, reference="zoo:tiny", inputs=X, plan=third.plan)
    assert same(secateur.load(tmp_path / "b"), third.model)


def test_a_network_that_does_not_know_its_plans_is_saved_with_theirs(tmp_path: Path) -> None:
    first, second = twice(dense())
    save_model(tmp_path / "known", second.model, reference="zoo:tiny", inputs=X)
    assert same(secateur.load(tmp_path / "known"), second.model)
    second.model.__dict__.pop("_secateur_plan")
    with pytest.raises(secateur.RunError, match=r"give plan=result\.plan"):
        save_model(tmp_path / "a", second.model, reference="zoo:tiny", inputs=X)
    with pytest.raises(secateur.RunError, match=r"plan=first\.then\(second\)"):
        save_model(tmp_path / "a", second.model, reference="zoo:tiny", inputs=X, plan=second.plan)
    save_model(tmp_path / "a", second.model, reference="zoo:tiny", inputs=X, plan=first.plan.then(second.plan))
    assert same(secateur.load(tmp_path / "a"), second.model)


def test_cuts_that_make_no_single_plan_are_said_and_not_saved(tmp_path: Path) -> None:
    first = secateur.prune(dense(), X, budget="flops=0.8").model
    first.__dict__["_secateur_plan"] = plan(other=[1, 0]).text()
    second = secateur.prune(first, X, budget="flops=0.8")
    assert any("make no single plan" in note for note in second.notes)
    third = secateur.prune(second.model, X, budget="flops=0.9")
    for result in (second, third):
        with pytest.raises(secateur.RunError, match="make no single plan"):
            save_model(tmp_path / "a", result.model, reference="net.py:f", inputs=X, plan=result.plan)
    assert not (tmp_path / "a").exists()


NET = """
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def example_inputs():
    return torch.zeros(1, 3, 16, 16)
"""
FRESH = "import secateur, sys, torch; print(secateur.load(sys.argv[1], trust=True)(torch.ones(1, 3, 16, 16)).tolist())"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def test_from_the_command_line_with_an_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    space: dict[str, Any] = {}
    exec(NET, space)
    torch.save({"epoch": 9, "state_dict": space["build"]().state_dict()}, "best.pth")
    run("prune", "net.py:build", "--weights", "best.pth", "--budget", "flops=0.7", "--save", "once")
    document = json.loads(run("prune", "once", "--trust", "--budget", "flops=0.7", "--save", "twice", "--json"))
    loaded = secateur.load("twice", trust=True)
    assert type(loaded) is nn.Sequential
    assert sum(p.numel() for p in loaded.parameters()) == document["after"]["params"]
    assert loaded[0].out_channels < secateur.load("once", trust=True)[0].out_channels <= 8
    said = subprocess.run([sys.executable, "-c", FRESH, "twice"], capture_output=True, text=True, check=True).stdout
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(json.loads(said)), loaded(torch.ones(1, 3, 16, 16)))
    refused = CliRunner().invoke(cli.app, ["prune", "once", "--budget", "flops=0.7"])
    assert refused.exit_code == 2
    assert "trust" in refused.stderr


@pytest.mark.long
def test_twice_then_exported_and_in_8_bits(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, second = twice(dense())
    save_model(tmp_path / "a", second.model, reference="zoo:tiny", inputs=X, plan=second.plan)
    loaded = secateur.load(tmp_path / "a")
    export_onnx(loaded, X, tmp_path / "a" / "model.onnx")
    assert same(open_exported(tmp_path / "a" / "model.onnx"), loaded)
    export_int8("onnxruntime", loaded, X, tmp_path / "a" / "model.int8.onnx", [X, X])
    assert open_exported(tmp_path / "a" / "model.int8.onnx")(X).shape == loaded(X).shape
