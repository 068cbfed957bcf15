"""Every way of choosing channels x every repair, on one small network: cut, proven, within the budget.

Rows of `CRITERIA`, `METHODS` and `REPAIRS` are found here by themselves.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.methods import METHODS, Method, MethodRow
from secateur.methods.baselines import CRITERIA
from secateur.repair import REPAIRS, RepairRow, repairs
from secateur.surgery import Result
from secateur.testing import NETWORKS

NETWORK = NETWORKS[0]
DATA = list(NETWORK.batches(3, seed=3))
BUDGET = "flops=0.5"
#: Less work for methods that take seconds with their defaults; any other row is found and used as it is.
QUICK: dict[str, dict[str, Any]] = {
    "functionality": {"ascent_steps": 1, "restarts": 1, "size": 4},
    "prunenet": {"rounds": 6, "sweeps": 10},
}
#: Likewise for repairs.
SHORT: dict[str, dict[str, Any]] = {"distillation": {"steps": 4}}
AFTER = [row for row in METHODS if row.acts == "after training" and row.granularity == "channel"]


@cache
def trained() -> nn.Module:
    """A few steps are enough to give norms statistics of their own."""
    net = NETWORK.make()
    optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for images, labels in NETWORK.batches(10):
        optimiser.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()
    return net.eval()


@cache
def looked(row: MethodRow) -> Method:
    """The method just before the cut, made once, with its plan made once: `finish` leaves both as they are."""
    made = row.factory(trained(), NETWORK.inputs(), budget=BUDGET, **QUICK.get(row.name, {}))
    if row.needs == "calibration":
        made.collect(DATA, F.cross_entropy)
    plan = made.plan()
    made.plan = lambda: copy.deepcopy(plan)  # type: ignore[method-assign]
    return made


def short(row: RepairRow) -> dict[str, Any]:
    return {"name": row.name, **SHORT.get(row.name, {})}


def sound(result: Result | None, repair: str) -> None:
    """It is cut, proven, and uses the budget up to a hundredth; its weights are numbers, and were repaired."""
    assert result is not None
    assert result.verification is not None
    assert result.verification.passed
    assert 0.49 <= result.reached("flops") <= 0.5
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.model.state_dict().values())
    assert [each["name"] for each in result.plan.provenance["repairs"]] == [repair]
    with torch.no_grad():
        assert bool(torch.isfinite(result.model.eval()(DATA[0][0])).all())


@pytest.fixture(autouse=True)
def _left_alone() -> Any:
    before = {name: tensor.clone() for name, tensor in trained().state_dict().items()}
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained().state_dict().items())


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda row: row.name)
@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda row: row.name)
def test_every_criterion_with_every_repair(criterion: Any, repair: Any) -> None:
    found = secateur.prune(
        trained(),
        NETWORK.inputs(),
        budget=BUDGET,
        method=criterion.name,
        data=iter(DATA),
        loss=F.cross_entropy,
        repair=short(repair),
    )
    sound(found, repair.name)


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda row: row.name)
@pytest.mark.parametrize("row", AFTER, ids=lambda row: row.name)
def test_every_method_with_every_repair(row: MethodRow, repair: Any) -> None:
    method = looked(row)
    method.finish(repairs(short(repair)), iter(DATA))
    sound(method.result, repair.name)


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda row: row.name)
def test_repairs_change_what_the_cut_network_computes_and_are_the_same_again(repair: Any) -> None:
    options: dict[str, Any] = {"budget": BUDGET, "method": "random", "data": DATA}
    bare = secateur.prune(trained(), NETWORK.inputs(), **options).model
    first, second = (secateur.prune(trained(), NETWORK.inputs(), repair=repair.name, **options).model for _ in "ab")
    state, again = first.state_dict(), second.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    with torch.no_grad():
        images = DATA[0][0]
        assert not torch.allclose(first.eval()(images), bare.eval()(images), rtol=1e-3, atol=1e-3)


def test_several_repairs_in_a_row() -> None:
    rows = [row for row in REPAIRS if row.name != "batchnorm"] + [row for row in REPAIRS if row.name == "batchnorm"]
    names = [row.name for row in rows]
    given = [short(row) for row in rows]
    found = secateur.prune(trained(), NETWORK.inputs(), budget=BUDGET, data=DATA, repair=given)
    assert [each["name"] for each in found.plan.provenance["repairs"]] == names
    assert found.verification is not None
    assert found.verification.passed
