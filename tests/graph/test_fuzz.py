"""Random networks: cut equals masked, the plan costs what the cut model costs, and survives its file."""

from __future__ import annotations

import copy

import pytest
import torch
from _harness import assert_applies, assert_same_state, assert_sound, call, halve, masked_error, outputs, state
from _strategy import FAMILIES, Block, Spec, build, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur


@pytest.mark.fuzz
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "sizes"])
@given(data=st.data())
def test_random_network(family: str, data: st.DataObject) -> None:
    check(data.draw(specs(family), label="spec"))


#: Examples of what takes longer, because sizes settle or widths are chosen within a budget.
FEW = settings(max_examples=settings().max_examples // 20)


@pytest.mark.fuzz
@FEW
@given(data=st.data())
def test_random_network_with_sizes_in_code(data: st.DataObject) -> None:
    check(data.draw(specs("sizes"), label="spec"))


@pytest.mark.fuzz
@pytest.mark.parametrize("family", FAMILIES)
@FEW
@given(data=st.data())
def test_random_network_aligned(family: str, data: st.DataObject) -> None:
    check_aligned(data.draw(specs(family), label="spec"), data.draw(st.sampled_from([4, 8, 16]), label="align"))


FOUND = {
    "channel shuffle of equal factors: the number of groups must follow": Spec(
        (Block("Residual", 9, 1), Block("Shuffle", 12, 1)), head="several", bias=False
    ),
    "channel shuffle of nine in three groups": Spec(
        (Block("Grouped", 12, 7), Block("C2f", 9, 6), Block("Shuffle", 4, 7)), head="several", side=7, seed=757
    ),
    "as many features a head as there are parts of qkv": Spec((Block("Attention", 6, 0),), bias=False, share=0.25),
    "group norm of a permuted tensor, then flattened": Spec(
        (Block("Normed", 11, 11), Block("Normed", 8, 6), Block("Attention", 14, 7)), side=7
    ),
    "all spellings of a diagonal": Spec(tuple(Block("Diagonal", 6, way) for way in range(8))),
    "all values by position": Spec(tuple(Block("Numbered", 6, way) for way in range(5)), bias=False),
    "padded shortcut after halves": Spec((Block("C2f", 5, 1), Block("Residual", 12, 0)), bias=False, seed=460),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_once_found(name: str) -> None:
    check(FOUND[name])


ALIGNED = {
    "a norm of two groups and heads": (Spec((Block("Normed", 16, 1), Block("Attention", 16, 1))), 8),
    "stated halves of sixteen": (Spec((Block("Plain", 16, 1), Block("Stated", 16, 0))), 8),
    "a part beside the rest": (Spec((Block("Plain", 16, 1), Block("Split", 8, 2), Block("Grouped", 16, 2))), 4),
}


@pytest.mark.parametrize("name", ALIGNED)
def test_aligned(name: str) -> None:
    check_aligned(*ALIGNED[name])


def check_aligned(spec: Spec, align: int) -> None:
    """Layers whose widths are multiples stay multiples, or the plan says which do not; and the cut is sound."""
    model = build(spec)
    inputs = torch.randn(2, 3, spec.side, spec.side, generator=torch.Generator().manual_seed(spec.seed))
    fewest = 2 if any(b.kind == "Attention" for b in spec.blocks) else 1
    options = {"method": "random", "seed": spec.seed, "align": align, "min_channels": fewest}
    try:
        result = secateur.prune(model, inputs, budget="flops=0.7", **options)
    except secateur.BudgetError:
        return
    assert_sound(result, inputs)
    if not result.plan.provenance.get("notes"):
        assert_aligned(model, result.model, align)


def assert_aligned(model: nn.Module, cut: nn.Module, align: int) -> None:
    """Every convolution's and linear layer's outputs and inputs: a multiple, as wide as before, or never a multiple."""
    whole = dict(model.named_modules())
    for name, module in cut.named_modules():
        for attribute in ("out_channels", "in_channels", "out_features", "in_features"):
            width, before = getattr(module, attribute, 0), getattr(whole[name], attribute, 0)
            assert width == before or width % align == 0 or before % align, f"{name}.{attribute}: {before} to {width}"


def check(spec: Spec) -> None:
    """All that must hold of one network."""
    model = build(spec)
    inputs = torch.randn(2, 3, spec.side, spec.side, generator=torch.Generator().manual_seed(spec.seed))
    before = state(model)
    # of one channel left, PyTorch computes products and attention by other operators: those widths would be kept whole
    fewest = 2 if any(b.kind == "Attention" for b in spec.blocks) else 1
    result = halve(model, inputs, spec.seed, spec.share, min_channels=fewest)
    assert result.graph.unsupported == ()
    assert "neck" in result.plan.widths
    assert_sound(result, inputs)
    assert_same_state(before, model)
    assert result.cut.slices or all(result.plan.masks[g.name].all() for g in result.graph.groups)
    if not any(g.inexact for g in result.graph.groups) and result.verification.exact:
        assert masked_error(result, inputs) <= 1e-3  # float32, on the weights as they are
    if any(b.kind == "TrainingHead" for b in spec.blocks):
        trained = [outputs(call(copy.deepcopy(m).train(), inputs)) for m in (model, result.model)]
        assert [t.shape for t in trained[0]] == [t.shape for t in trained[1]]
    assert_applies(result, copy.deepcopy(model), inputs)
