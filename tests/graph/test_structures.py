"""Every structure, through the public door: its groups, the proof, the costs, the plan's round trip, and once more."""

from __future__ import annotations

import copy

import pytest
import torch
from _harness import assert_applies, assert_same_state, assert_sound, call, halve, masked_error, randomise, state
from structures import CASES, Case

from secateur import trace

PARAMS = [
    pytest.param(c, id=c.name, marks=pytest.mark.xfail(strict=True, reason=c.xfail) if c.xfail else ()) for c in CASES
]


def make(case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    model = randomise(case.build()).eval()
    with torch.no_grad():
        call(model, case.inputs())  # reparametrised weights of the old style become plain tensors
    return model


@pytest.mark.parametrize("case", PARAMS)
def test_structure(case: Case) -> None:
    model, inputs = make(case), case.inputs()
    before = state(model)
    proofs = []
    for seed in range(2):
        result = halve(model, inputs, seed, case.share, attention=case.attention)
        assert {g.name: g.width for g in result.graph.groups} == case.groups
        assert result.plan.widths == {n: w - int(w * case.share + 1e-9) for n, w in case.groups.items()}
        assert bool(result.settled) == case.settled
        assert_sound(result, inputs, macs=case.macs)
        proofs.append(result.verification)
        assert bool(proofs[-1].reasons) != proofs[-1].exact
        assert result.graph.unsupported == ()
        assert_same_state(before, model)
        if case.exact:
            double = halve(copy.deepcopy(model).double(), to_double(inputs), seed, case.share, attention=case.attention)
            assert double.verification.max_relative_error <= 1e-10
            assert masked_error(double, to_double(inputs)) <= 1e-10
    # an inexact group may agree by chance, such as neighbours in a convolution over channels
    assert all(p.exact for p in proofs) == case.exact
    assert_applies(result, copy.deepcopy(model), inputs)
    if case.again:
        again = halve(result.model, inputs, 3, 0.3, attention=case.attention)
        assert again.graph.groups
        assert_sound(again, inputs, macs=case.macs)


def to_double(inputs: object) -> object:
    if isinstance(inputs, torch.Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {k: to_double(v) for k, v in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(to_double(v) for v in inputs)
    return inputs


@pytest.mark.parametrize("case", [c for c in CASES if not c.xfail][::6], ids=str)
def test_keeping_everything_changes_nothing(case: Case) -> None:
    model, inputs = make(case), case.inputs()
    graph = trace(model, inputs, attention=case.attention)
    assert graph.cost() == graph.cost(None)
    made = graph.cut(type("Plan", (), {"masks": {}})())
    assert graph.verify(made, type("Plan", (), {"masks": {}})()).max_relative_error == 0
