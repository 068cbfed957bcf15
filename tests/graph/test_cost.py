"""Costs: by hand, by torch's counter, vectorised as one by one, and the same after the cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _harness import count, halve
from _strategy import FAMILIES, build, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from structures._case import Net, conv, head
from torch import nn

from secateur import Cost, trace

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    return Net(lambda m, x: m.head(m.c(m.stem(x).relu())), stem=conv(3, 8), c=conv(8, 6), head=head(6))


def test_costs_by_hand() -> None:
    """stem 3->8 and c 8->6 on 8x8 pixels, two images; head 6->5."""
    graph = trace(net(), IMAGE)
    pixels = 2 * 64
    macs = pixels * 9 * 3 * 8 + pixels * 9 * 8 * 6 + 2 * 6 * 5
    params = 8 * 27 + 8 + 6 * 72 + 6 + 30 + 5
    # written: stem, relu, c, the pooled mean, the linear layer (views write nothing)
    activations = pixels * (8 + 8 + 6) + 2 * 6 + 2 * 5
    peak = pixels * (8 + 8)  # stem's output and its relu
    assert graph.cost() == Cost(macs, params, activations, peak)
    found = graph.costs.evaluate(np.array([[5, 2]]))
    assert found["macs"].tolist() == [pixels * 9 * (3 * 5 + 5 * 2) + 2 * 2 * 5]
    assert found["params"].tolist() == [5 * 27 + 5 + 2 * 45 + 2 + 10 + 5]
    assert found["activations"].tolist() == [pixels * (5 + 5 + 2) + 2 * 2 + 2 * 5]
    assert found["peak_activations"].tolist() == [pixels * 10]


def test_the_peak_counts_a_shortcut_as_long_as_it_lives() -> None:
    """stem's output waits for the addition: with c1's output and c2's it makes the peak."""
    model = Net(
        lambda m, x: m.head((h := m.stem(x)) + m.c2(m.c1(h))), stem=conv(3, 4), c1=conv(4, 10), c2=conv(10, 4),
        head=head(4)
    )  # fmt: skip
    cost = trace(model, IMAGE).cost()
    assert cost.peak_activations == 2 * 64 * (4 + 10 + 4)


def test_in_place_operators_write_nothing_new() -> None:
    plain, inplace = (
        Net(lambda m, x: m.head(m.c(m.r(m.stem(x)))), stem=conv(3, 8), c=conv(8, 6), r=nn.ReLU(inplace=i), head=head(6))
        for i in (False, True)
    )
    assert trace(plain, IMAGE).cost().activations - trace(inplace, IMAGE).cost().activations == 2 * 64 * 8


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(data=st.data())
def test_vectorised_costs_are_the_scalar_ones_and_monotone(family: str, data: st.DataObject) -> None:
    spec = data.draw(specs(family), label="spec")
    graph = trace(build(spec), torch.randn(2, 3, spec.side, spec.side))
    full = np.array([g.width for g in graph.groups])
    generator = np.random.default_rng(spec.seed)
    widths = generator.integers(1, full + 1, size=(4, 3, len(full)))
    batch = graph.costs.evaluate(widths)
    for name in graph.costs.names:
        assert batch[name].shape == (4, 3)
        each = [[float(graph.costs.evaluate(row)[name]) for row in rows] for rows in widths]
        assert np.array_equal(batch[name], each)
        assert np.array_equal(batch[name], np.round(batch[name]))
    whole = graph.costs.evaluate(full)
    assert graph.cost() == Cost(**{n: round(float(whole[n])) for n in graph.costs.names})
    for group in range(len(full)):
        if full[group] > 1:
            less = full.copy()
            less[group] -= 1
            fewer = graph.costs.evaluate(less)
            assert all(fewer[n] <= whole[n] for n in graph.costs.names)
            assert fewer["params"] < whole["params"]
    assert graph.costs.macs_by_call(full).sum() == whole["macs"]


def test_marginal_costs_are_what_one_more_channel_costs_in_the_cut_model() -> None:
    model = net()
    fewer, more = halve(model, IMAGE, share=0.5), halve(model, IMAGE, share=0.375)
    assert [f - m for f, m in zip(more.plan.widths.values(), fewer.plan.widths.values(), strict=True)] == [1, 1]
    costs = more.graph.costs
    widths = np.array(list(fewer.plan.widths.values()))
    step = float(costs.evaluate(widths + 1)["macs"] - costs.evaluate(widths)["macs"])
    assert step == count(more.model, IMAGE)[0] - count(fewer.model, IMAGE)[0]


def test_a_plan_that_names_some_groups_keeps_the_others_whole() -> None:
    graph = trace(net(), IMAGE)
    plan = type("Plan", (), {"masks": {"c": np.array([True] * 2 + [False] * 4)}})()
    assert graph.cost(plan) == graph.costs.cost(np.array([8, 2]))


def test_macs_of_attention_are_those_of_its_products() -> None:
    """q k^T and p v: positions x positions x features, for every head."""
    layer = nn.MultiheadAttention(24, 4, batch_first=True)
    model = Net(lambda m, x: m.out(m.attn(x, x, x, need_weights=False)[0]), attn=layer, out=nn.Linear(24, 5))
    x = torch.randn(2, 10, 24)
    per_image = 10 * 24 * 72 + 2 * 10 * 10 * 24 + 10 * 24 * 24 + 10 * 24 * 5
    assert trace(model, x).cost().macs == 2 * per_image == count(model, x)[0]


def test_a_network_without_groups_costs_what_it_costs_for_any_number_of_plans() -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 1)), (torch.zeros(2, 3),))
    assert graph.groups == ()
    assert (graph.cost().macs, graph.cost().params) == (6, 4)
    assert graph.costs.evaluate(np.zeros((4, 0)))["macs"].tolist() == [6, 6, 6, 6]
