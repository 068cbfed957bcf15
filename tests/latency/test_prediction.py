"""Predictions of a runtime whose times are known are those times, and a latency is a budget like any other."""

from __future__ import annotations

from pathlib import Path

import _made_up
import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur import latency
from secateur.allocate import Constraints
from secateur.budget import Target
from secateur.errors import BudgetError, ConfigError
from secateur.latency import prediction
from secateur.methods import METHODS, method
from secateur.models import create
from secateur.plan import Plan

IMAGE = torch.zeros(1, 3, 32, 32)


class Mixed(nn.Module):
    """Plain, grouped, depthwise and transposed convolutions, a sum and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.point = nn.Conv2d(32, 16, 1)
        self.up = nn.ConvTranspose2d(16, 24, 2, stride=2)
        self.last = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = x + self.point(self.depth(self.grouped(x).relu()).relu())
        out: torch.Tensor = self.last(self.up(x).relu().mean((2, 3)))
        return out


def aligned_plans(graph: secateur.Graph, count: int) -> list[Plan]:
    random = np.random.default_rng(0)
    plans = []
    for _ in range(count):
        masks = {}
        for group in graph.groups:
            steps = group.width // _made_up.STEP
            masks[group.name] = np.arange(group.width) < _made_up.STEP * int(random.integers(1, steps + 1))
        plans.append(Plan(masks))
    return plans


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(("model", "image"), [(Mixed, torch.zeros(1, 3, 12, 12)), (lambda: create("resnet8"), IMAGE)])
@pytest.mark.parametrize("batch", [1, 4])
def test_whole_networks_are_predicted(model: type[nn.Module], image: torch.Tensor, batch: int) -> None:
    target = Target("pytorch", batch=batch)
    graph = secateur.trace(model(), image)
    prediction = latency.predict(graph, target)
    a, b, c = prediction.factors
    assert (a, b, c) == (
        pytest.approx(2, rel=0.03),
        pytest.approx(_made_up.PER_ELEMENT, rel=0.2),
        pytest.approx(30, abs=60),
    )
    assert prediction.error < 0.01
    for plan in aligned_plans(graph, 5):
        true = _made_up.network_time(graph.cut(plan).model, image, target)
        assert float(prediction.expect(graph, graph.widths(plan))) == pytest.approx(true, rel=0.05)


@pytest.mark.usefixtures("made_up")
def test_a_network_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times vary from one measurement to the next; a run must not see another latency in every stage."""
    first = latency.predict(secateur.trace(create("resnet8"), IMAGE), Target("pytorch"))
    monkeypatch.setattr("secateur.latency.prediction.times_of", None)
    again = latency.predict(secateur.trace(create("resnet8"), IMAGE), Target("pytorch"))
    assert (again.factors, again.trials) == (first.factors, first.trials)
    with pytest.raises(TypeError):  # another network is timed
        latency.predict(secateur.trace(create("resnet8", num_classes=7), IMAGE), Target("pytorch"))


@pytest.mark.usefixtures("made_up")
def test_a_table_that_cannot_be_kept_is_told_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file"))
    result = secateur.prune(create("resnet20"), IMAGE, budget="latency=0.6@pytorch")
    assert "could not be kept" in result.plan.provenance["latency"]["note"]


@pytest.mark.usefixtures("made_up")
def test_latency_is_one_of_the_costs_and_rises() -> None:
    graph = secateur.trace(create("resnet8"), IMAGE)
    assert graph.cost().latency is None
    assert "latency" not in graph.cost().as_dict()
    graph.attach(latency.predict(graph, Target("pytorch")))
    whole = graph.cost()
    assert whole.latency is not None
    assert whole.as_dict()["latency"] == whole.latency
    widths = graph.widths()
    for k in range(len(widths)):
        column = np.repeat(widths[None], widths[k], 0).astype(float)
        column[:, k] = np.arange(1, widths[k] + 1)
        assert (np.diff(graph.costs.evaluate(column)["latency"]) >= -1e-9).all()


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("allocator", ["global", "uniform", "per_cost"])
def test_prune_to_a_latency(allocator: str) -> None:
    result = secateur.prune(create("resnet20"), IMAGE, budget="latency=0.6@pytorch", allocator=allocator)
    assert 0.5 < result.reached("latency") <= 0.6
    assert all(width % _made_up.STEP == 0 for width in result.plan.widths.values())
    assert result.verification is not None
    assert result.verification.exact
    said = result.plan.provenance["latency"]
    assert said["target"] == "pytorch"
    assert said["median_error"] < 0.02
    assert said["expected_us"] == said["counted_us"]
    assert "note" not in said
    assert result.plan.provenance["budget"] == {"latency": "0.6@pytorch"}


@pytest.mark.usefixtures("made_up")
def test_milliseconds_and_other_bounds_together() -> None:
    model = create("resnet20")
    graph = secateur.trace(model, IMAGE)
    graph.attach(latency.predict(graph, Target("pytorch")))
    whole = graph.cost().latency
    assert whole is not None
    result = secateur.prune(model, IMAGE, budget=f"latency={0.7 * whole / 1e3:.6f}ms@pytorch,params=0.4")
    assert result.reached("latency") <= 0.7
    assert result.reached("params") <= 0.4


@pytest.mark.usefixtures("made_up")
def test_an_alignment_of_ones_own_stays_and_is_told_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "_TOLD", 1.001)  # few of these widths are odd
    torch.manual_seed(0)
    result = secateur.prune(create("resnet20"), IMAGE, budget="latency=0.6@pytorch", align=3)
    assert any(width % _made_up.STEP for width in result.plan.widths.values())
    assert result.reached("latency") <= 0.6
    said = result.plan.provenance["latency"]
    assert said["counted_us"] == pytest.approx(result.after.latency, abs=1.0)
    assert said["expected_us"] > 1.001 * said["counted_us"]
    assert f"widths are no multiples of {_made_up.STEP}: with align={_made_up.STEP} they are." in said["note"]
    pruner = method("l1").factory(
        create("resnet20"), IMAGE, budget="latency=0.6@pytorch", constraints=Constraints(align=3)
    )
    pruner.finish()
    assert any("with align=" in note for note in pruner.notes)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    "name", [row.name for row in METHODS if row.needs == "nothing" and row.acts == "after training"]
)
def test_methods_meet_a_latency(name: str) -> None:
    pruner = method(name).factory(create("resnet8"), IMAGE, budget="latency=0.6@pytorch")
    assert pruner.constraints.align == _made_up.STEP
    pruner.finish()
    assert 0.4 < pruner.result.reached("latency") <= 0.6
    assert pruner.result.plan.provenance["latency"]["target"] == "pytorch"


@pytest.mark.usefixtures("made_up")
def test_a_latency_out_of_reach_says_what_can_be_had() -> None:
    with pytest.raises(
        BudgetError, match=r"latency=0\.05@pytorch cannot be met: the smallest reachable number of micro"
    ):
        secateur.prune(create("resnet8"), IMAGE, budget="latency=0.05@pytorch")


def test_an_unknown_runtime_is_named() -> None:
    with pytest.raises(ConfigError, match="Unknown runtime of a latency 'onnx'"):
        secateur.prune(create("resnet8"), IMAGE, budget="latency=0.5@onnx")


def test_presets() -> None:
    from secateur.allocate.presets import align_of, this_machine

    assert align_of(12) == 12
    assert align_of("12") == 12
    assert align_of("x86-avx512") == 16
    assert align_of("auto") == latency.PRESETS[this_machine()]
    with pytest.raises(ConfigError, match="did you mean 'x86-avx2'"):
        align_of("x86-avx3")
    result = secateur.prune(create("resnet20"), IMAGE, budget="flops=0.6", align="arm")
    assert all(width % 8 == 0 for width in result.plan.widths.values())
    assert Constraints(align=align_of("auto")).align in (8, 16)


@pytest.mark.slow
def test_a_real_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, as these are the machine's: only that all parts fit together on a runtime that exists."""
    monkeypatch.setattr("secateur.latency.prediction._SHAPES", ((1.0, 1.0), (0.5, 0.5)))  # exporting takes seconds
    prediction = latency.predict(secateur.trace(Mixed(), torch.zeros(1, 3, 16, 16)), Target("onnxruntime"))
    assert len(prediction.trials) == 2
    assert all(trial.measured > 0 for trial in prediction.trials)
    assert min(prediction.factors) >= 0
