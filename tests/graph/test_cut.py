"""The knife itself: slices, layouts, and a second cut that finds nothing more to do."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from _harness import call, halve, shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from structures._case import Net, conv, head
from torch import nn

from secateur import Plan, trace
from secateur.graph.cut import take

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.randoms())
def test_take_is_numpy_indexing(shape: list[int], dice: object) -> None:
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    kept = []
    for n in shape:
        chosen = sorted(dice.sample(range(n), dice.randint(1, n)))
        kept.append(None if len(chosen) == n else np.array(chosen))
    index = np.ix_(*[np.arange(n) if k is None else k for n, k in zip(shape, kept, strict=True)])
    assert np.array_equal(take(tensor, tuple(kept)).numpy(), tensor.numpy()[index])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_take_keeps_type_and_layout(layout: torch.memory_format, dtype: torch.dtype) -> None:
    tensor = torch.ones(4, 6, 3, 3).to(dtype).contiguous(memory_format=layout)
    narrow = take(tensor, (np.array([0, 2]), None, None, None))
    assert narrow.dtype == dtype
    assert narrow.is_contiguous(memory_format=layout)
    assert not narrow.requires_grad


def test_kept_channels_keep_their_order_and_values() -> None:
    model = Net(lambda m, x: m.head(m.c(m.stem(x))), stem=conv(3, 8), c=conv(8, 6), head=head(6))
    graph = trace(model, IMAGE)
    plan = Plan.full(graph)
    plan.masks["stem"][[1, 2, 6]] = False
    plan.masks["c"][[0]] = False
    cut = graph.cut(plan).model
    rows, columns = [0, 3, 4, 5, 7], [1, 2, 3, 4, 5]
    assert torch.equal(cut.stem.weight, model.stem.weight[rows])
    assert torch.equal(cut.stem.bias, model.stem.bias[rows])
    assert torch.equal(cut.c.weight, model.c.weight[columns][:, rows])
    assert torch.equal(cut.head[2].weight, model.head[2].weight[:, columns])


def test_members_say_what_the_cut_keeps() -> None:
    result = halve(
        Net(lambda m, x: m.head(m.c(m.stem(x))), stem=conv(3, 8), c=conv(8, 6, groups=2), head=head(6)), IMAGE
    )
    wanted: dict[tuple[str, int], set[int]] = {}
    for group in result.graph.groups:
        for member in group.members:
            gone = member.index[~result.plan.masks[group.name]].ravel().tolist()
            wanted.setdefault((member.name, member.dim), set()).update(gone)
    tensors = result.graph.tensors()
    for (name, dim), gone in wanted.items():
        kept = result.cut.slices[name][dim]
        assert set(range(tensors[name].shape[dim])) - gone == set(kept.tolist())


def test_cutting_in_two_steps_is_cutting_once() -> None:
    model = Net(lambda m, x: m.head(m.c(m.stem(x))), stem=conv(3, 8), c=conv(8, 6), head=head(6))
    once = trace(model, IMAGE)
    plan = Plan.full(once)
    plan.masks["stem"][[1, 2]] = False
    first = once.cut(plan).model
    second = trace(first, IMAGE)
    again = Plan.full(second)
    again.masks["stem"][[0]] = False
    plan.masks["stem"][[0]] = False
    two, one = second.cut(again).model, once.cut(plan).model
    assert shapes(two) == shapes(one)
    assert all(torch.equal(a, b) for a, b in zip(two.parameters(), one.parameters(), strict=True))


def test_the_graph_survives_a_cut_that_is_not_in_place() -> None:
    model = Net(lambda m, x: m.head(m.c(m.stem(x))), stem=conv(3, 8), c=conv(8, 6), head=head(6)).eval()
    graph = trace(model, IMAGE)
    want = call(model, IMAGE)
    for keep in (2, 5, 8):
        plan = Plan.full(graph)
        plan.masks["stem"][keep:] = False
        assert graph.cut(plan).model.stem.out_channels == keep
    assert torch.equal(call(model, IMAGE), want)


def test_frozen_tensors_and_ties_between_names_stay() -> None:
    model = Net(lambda m, x: m.a(m.stem(x)) + m.b(m.stem(x)), stem=conv(3, 8), a=conv(8, 4), b=conv(8, 4))
    model.b.weight = model.a.weight
    cut = halve(copy.deepcopy(model), IMAGE).model
    assert cut.b.weight is cut.a.weight
    assert cut.a.weight.shape == (4, 4, 3, 3)


def test_gradients_of_the_cut_model_are_those_of_the_masked_one() -> None:
    model = nn.Sequential(conv(3, 8), nn.Tanh(), conv(8, 6), nn.Tanh(), head(6)).double()
    result = halve(model, IMAGE.double())
    with torch.no_grad():
        for group in result.graph.groups:
            for member in group.members:
                gone = torch.from_numpy(member.index[~result.plan.masks[group.name]].ravel())
                model.get_parameter(member.name).index_fill_(member.dim, gone, 0)
    model(IMAGE.double()).square().sum().backward()
    result.model(IMAGE.double()).square().sum().backward()
    for (name, wide), narrow in zip(model.named_parameters(), result.model.parameters(), strict=True):
        kept = result.cut.slices.get(name, (None,) * wide.dim())
        torch.testing.assert_close(take(wide.grad, kept), narrow.grad, rtol=1e-10, atol=1e-12)
