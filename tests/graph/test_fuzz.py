"""Random networks: cut equals masked, the plan costs what the cut model costs, and survives its file."""

from __future__ import annotations

import copy

import pytest
import torch
from _harness import assert_applies, assert_same_state, assert_sound, halve, masked_error, state
from _strategy import FAMILIES, Spec, build, specs
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.fuzz
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_random_network(family: str, data: st.DataObject) -> None:
    check(data.draw(specs(family), label="spec"))


def check(spec: Spec) -> None:
    """All that must hold of one network."""
    model = build(spec)
    inputs = torch.randn(2, 3, spec.side, spec.side, generator=torch.Generator().manual_seed(spec.seed))
    before = state(model)
    result = halve(model, inputs, spec.seed, spec.share)
    assert result.graph.unsupported == ()
    assert_sound(result, inputs)
    assert_same_state(before, model)
    assert result.cut.slices or all(result.plan.masks[g.name].all() for g in result.graph.groups)
    if not any(g.inexact for g in result.graph.groups) and result.verification.exact:
        assert masked_error(result, inputs) <= 1e-3  # float32, on the weights as they are
    assert_applies(result, copy.deepcopy(model), inputs)
