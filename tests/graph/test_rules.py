"""Every rule against the numbers: an index that is not tied to another, fixed or called inexact must not touch it.

Each operator runs once on labelled tensors. Then one index of an input after the other is disturbed, and every element
of the output that changes must carry that index in its label. What must stay prunable is counted, so that freezing
everything cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from secateur.graph import rule
from secateur.graph.components import components
from secateur.graph.labels import Ledger
from secateur.graph.recorder import Recorder, Recording
from secateur.graph.rules import RULES, label_of


@dataclass(frozen=True)
class Flow:
    """A call, the shapes of its arguments, which dimensions are labelled, and how many indices stay prunable (before
    products of widths are resolved)."""

    name: str
    call: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    labelled: tuple[tuple[int, ...], ...]
    free: int
    constant: tuple[int, ...] = ()  # arguments that are weights
    inexact: bool = False

    def __str__(self) -> str:
        return self.name


def flow(
    name: str, free: int, call: Callable[..., Any], *shapes: tuple[int, ...], dims: Any = (1,), **options: Any
) -> Flow:
    """A row: by default dimension 1 of every argument is labelled."""
    labelled = tuple(dims) if dims and isinstance(dims[0], tuple) else tuple(tuple(dims) for _ in shapes)
    return Flow(name, call, shapes, labelled, free, **options)


def up(groups: int) -> Callable[..., torch.Tensor]:
    return lambda a, w: F.conv_transpose2d(a, w, groups=groups)


def unpooled(a: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    return F.max_unpool2d(small, F.max_pool2d(a, 2, return_indices=True)[1], 2)


def written(a: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return a.index_put((torch.arange(6), torch.arange(6)), values)


def quantised(a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(6, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(a, scale.abs() / 9, zeros, 1, -128, 127)


def learnt(a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch._fake_quantize_learnable_per_channel_affine(a, scale.abs() / 9, torch.zeros(6), 1, -128, 127)


def observed(weight: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    ones, zeros = torch.ones(6), torch.zeros(6, dtype=torch.int32)
    on, off = torch.tensor([1]), torch.tensor([0])
    arguments = (off, on, low.clone(), high.clone(), ones / 20, zeros, 0.01, -128, 127, 0, True, False)
    return torch.ops.aten._fused_moving_avg_obs_fq_helper(weight, *arguments)[0]


X = (2, 6, 4, 4)
ALL = (0, 1, 2, 3)
WEIGHTS = ((1,), (0, 1))
ROWS = ((1,), (0,))

FLOWS = [
    flow("relu", 6, torch.relu, X),
    flow("add", 6, torch.add, X, X),
    flow("add, broadcast", 6, torch.add, X, (6, 1, 1), dims=((1,), (0,))),
    flow("multiply by one channel", 6, torch.mul, X, (2, 1, 4, 4), dims=((1,), ())),
    flow("where", 6, lambda a, b: torch.where(a > 0, a, b), X, X),
    flow("lerp", 6, lambda a, b: torch.lerp(a, b, 0.3), X, X),
    flow("addcmul", 6, lambda a, b, c: torch.addcmul(a, b, c), X, X, X),
    flow("cast", 6, lambda a: a.double(), X),
    flow("glu", 3, lambda a: F.glu(a, 1), X),
    flow("prelu", 6, F.prelu, X, (6,), dims=((1,), (0,))),
    flow("permute", 16, lambda a: a.permute(3, 0, 2, 1), X, dims=ALL),
    flow("transpose", 16, lambda a: a.transpose(1, 2), X, dims=ALL),
    flow("t", 10, lambda a: a.t(), (4, 6), dims=(0, 1)),
    flow("movedim", 16, lambda a: a.movedim(1, -1), X, dims=ALL),
    flow("flatten channels and one more", 6, lambda a: a.flatten(1, 2), X),
    flow("flatten two labelled", 10, lambda a: a.flatten(1), (2, 6, 4), dims=(1, 2)),
    flow("unflatten", 6, lambda a: a.unflatten(1, (2, 3)), X),
    flow("unflatten and select", 6, lambda a: a.unflatten(1, (2, 3))[:, 0], X),
    flow("shuffle", 6, lambda a: a.view(2, 2, 3, 4, 4).transpose(1, 2).reshape(2, 6, 4, 4), X),
    flow("view to one", 6, lambda a: a.reshape(-1), (1, 6, 1, 1)),
    flow("squeeze", 6, lambda a: a.squeeze(), (1, 6, 1, 4)),
    flow("squeeze one", 6, lambda a: a.squeeze(2), (1, 6, 1, 4)),
    flow("unsqueeze", 6, lambda a: a.unsqueeze(1).unsqueeze(-1), X),
    flow("expand", 6, lambda a: a.expand(3, 2, 6, 4, 4), X),
    flow("repeat", 6, lambda a: a.repeat(1, 2, 1, 1), X),
    flow("repeat_interleave", 6, lambda a: a.repeat_interleave(2, 1), X),
    flow("slice", 6, lambda a: a[:, 1:4], X),
    flow("slice from the end", 6, lambda a: a[:, -2:], X),
    flow("the last one", 5, lambda a: a[:, -1:], X),
    flow("the last but one by a count from the front", 1, lambda a: a[:, 4:5], X),
    flow("every second", 3, lambda a: a[:, ::2], X),
    flow("select", 0, lambda a: a[:, 2], X),
    flow("unbind", 0, lambda a: a.unbind(1), X),
    flow("split", 3, lambda a: a.split(3, 1), X),
    flow("split, uneven", 0, lambda a: a.split(4, 1), X),
    flow("split with sizes", 6, lambda a: a.split([1, 5], 1), X),
    flow("chunk", 2, lambda a: a.chunk(3, 1), X),
    flow("cat", 10, lambda a, b: torch.cat([a, b], 1), X, (2, 4, 4, 4)),
    flow("cat elsewhere", 6, lambda a, b: torch.cat([a, b], 2), X, X),
    flow("cat with what is not labelled", 6, lambda a, b: torch.cat([a, b], 1), X, (2, 4, 4, 4), dims=((1,), ())),
    flow("stack", 6, lambda a, b: torch.stack([a, b], 1), X, X),
    flow("flip", 6, lambda a: a.flip(1), X),
    flow("roll", 0, lambda a: a.roll(1, 1), X),
    flow("roll in space", 6, lambda a: a.roll(1, 2), X),
    flow("pad channels", 6, lambda a: F.pad(a, (0, 0, 0, 0, 1, 2)), X),
    flow("pad space", 6, lambda a: F.pad(a, (1, 1, 0, 2)), X),
    flow("pad by reflection", 6, lambda a: F.pad(a, (1, 1, 1, 1), mode="reflect"), X),
    flow("crop channels", 0, lambda a: F.pad(a, (0, 0, 0, 0, -1, 0)), X),
    flow("pixel shuffle", 8, lambda a: F.pixel_shuffle(a, 2), (2, 8, 4, 4)),
    flow("pixel unshuffle", 6, lambda a: F.pixel_unshuffle(a, 2), X),
    flow("channel shuffle", 6, lambda a: F.channel_shuffle(a, 2), X),
    flow("unfold", 6, lambda a: F.unfold(a, 2), X),
    flow("fold", 24, lambda a: F.fold(a, (4, 4), 2, stride=2), (2, 24, 4)),
    flow("windows", 6, lambda a: a.unfold(2, 2, 1), X),
    flow("windows over channels", 0, lambda a: a.unfold(1, 2, 1), X),
    flow("tril", 6, lambda a: a.tril(), X),
    flow("max pooling", 6, lambda a: F.max_pool2d(a, 2), X),
    flow("adaptive pooling", 6, lambda a: F.adaptive_avg_pool2d(a, 1), X),
    flow("interpolation", 6, lambda a: F.interpolate(a, scale_factor=2, mode="bilinear"), X),
    flow("pooling over a labelled dimension", 6, lambda a: F.avg_pool2d(a, 2), X, dims=(1, 2)),
    flow("grid sample", 6, lambda a, g: F.grid_sample(a, g, align_corners=False), X, (2, 3, 3, 2), dims=((1,), ())),
    flow("mean in space", 6, lambda a: a.mean((2, 3)), X),
    flow("mean over channels", 6, lambda a: a.mean(1), X, inexact=True),
    flow("maximum over channels", 6, lambda a: a.amax(1, keepdim=True), X, inexact=True),
    flow("max with positions", 6, lambda a: a.max(1), X, inexact=True),
    flow("norm over channels", 6, lambda a: a.norm(dim=1), X, inexact=True),
    flow("var_mean in space", 6, lambda a: torch.var_mean(a, (2, 3)), X),
    flow("argmax", 0, lambda a: a.argmax(1), X),
    flow("softmax in space", 6, lambda a: a.softmax(-1), X),
    flow("softmax over channels", 6, lambda a: a.softmax(1), X, inexact=True),
    flow("cumsum over channels", 6, lambda a: a.cumsum(1), X, inexact=True),
    flow("sort over channels", 0, lambda a: a.sort(1), X),
    flow("topk in space", 6, lambda a: a.topk(2, -1)[0], X),
    flow("batch norm", 6, lambda a, m, v: F.batch_norm(a, m, v.abs()), X, (6,), (6,), dims=((1,), (0,), (0,))),
    flow("instance norm", 6, lambda a: F.instance_norm(a), X),
    flow("group norm, two groups", 3, lambda a: F.group_norm(a, 2), X, inexact=True),
    flow("group norm, a group each", 6, lambda a: F.group_norm(a, 6), X),
    flow("layer norm", 6, lambda a, w: F.layer_norm(a, (6,), w), (2, 3, 6), (6,), dims=((2,), (0,)), inexact=True),
    flow("rms norm", 6, lambda a, w: F.rms_norm(a, (6,), w), (2, 3, 6), (6,), dims=((2,), (0,)), inexact=True),
    flow("convolution", 14, F.conv2d, X, (8, 6, 3, 3), dims=WEIGHTS, constant=(1,)),
    flow("convolution with bias", 14, F.conv2d, X, (8, 6, 3, 3), (8,), dims=((1,), (0, 1), (0,)), constant=(1, 2)),
    flow("grouped", 7, lambda a, w: F.conv2d(a, w, groups=2), X, (8, 3, 1, 1), dims=WEIGHTS, constant=(1,)),
    flow("depthwise", 6, lambda a, w: F.conv2d(a, w, groups=6), X, (6, 1, 3, 3), dims=ROWS, constant=(1,)),
    flow("depthwise, twice", 6, lambda a, w: F.conv2d(a, w, groups=6), X, (12, 1, 3, 3), dims=ROWS, constant=(1,)),
    flow("pairs to one", 3, lambda a, w: F.conv2d(a, w, groups=3), X, (3, 2, 1, 1), dims=WEIGHTS, constant=(1,)),
    flow("transposed", 14, F.conv_transpose2d, X, (6, 8, 2, 2), dims=WEIGHTS, constant=(1,)),
    flow("transposed, grouped", 7, up(2), X, (6, 4, 2, 2), dims=WEIGHTS, constant=(1,)),
    flow("transposed, depthwise", 6, up(6), X, (6, 1, 2, 2), dims=ROWS, constant=(1,)),
    flow("one dimension", 14, F.conv1d, (2, 6, 5), (8, 6, 3), dims=WEIGHTS, constant=(1,)),
    flow("three dimensions", 14, F.conv3d, (1, 6, 3, 3, 3), (8, 6, 2, 2, 2), dims=WEIGHTS, constant=(1,)),
    flow("linear", 14, F.linear, (2, 3, 6), (8, 6), dims=((2,), (0, 1)), constant=(1,)),
    flow("matrix product of activations", 9, torch.bmm, (2, 3, 4), (2, 4, 6), dims=((1,), (2,))),
    flow("product summed over channels", 6, torch.bmm, (2, 3, 6), (2, 6, 3), dims=((2,), (1,))),
    flow("einsum", 10, lambda a, b: torch.einsum("bcn,bdn->bcd", a, b), (2, 6, 5), (2, 4, 5)),
    flow("embedding", 6, lambda w: F.embedding(torch.tensor([1, 3, 1]), w), (5, 6), dims=(0, 1), constant=(0,)),
    flow("index of rows", 6, lambda a: a[torch.tensor([1, 0, 1])], X),
    flow("index of channels", 0, lambda a: a[:, torch.tensor([1, 0])], X),
    flow("index in space", 6, lambda a: a[:, :, torch.tensor([1, 0]), torch.tensor([0, 0])], X),
    flow("index_select in space", 6, lambda a: a.index_select(2, torch.tensor([1, 0])), X),
    flow("gather in space", 6, lambda a: a.gather(2, torch.zeros(2, 6, 1, 4, dtype=torch.int64)), X),
    flow("gather of channels", 0, lambda a: a.gather(1, torch.zeros(2, 6, 4, 4, dtype=torch.int64)), X),
    flow("scatter", 0, lambda a: torch.zeros(2, 6, 4, 4).scatter(1, torch.zeros(2, 6, 4, 4, dtype=torch.int64), a), X),
    flow("Fourier in space", 6, lambda a: torch.fft.rfft2(a).abs(), X),
    flow("Fourier over channels", 0, lambda a: torch.fft.fft(a, dim=1).abs(), X),
    flow("written into a canvas", 6, lambda a: torch.zeros(2, 6, 4, 4).add_(a), X),
    flow("max unpooling", 6, unpooled, X, (2, 6, 2, 2)),
    flow(
        "convolution, time first", 14, torch.conv_tbc, (4, 2, 6), (3, 6, 8), (8,), dims=((2,), (1, 2), (0,)),
        constant=(1, 2),
    ),
    flow("bilinear", 20, F.bilinear, (2, 6), (2, 6), (8, 6, 6), dims=((1,), (1,), ALL[:3]), constant=(2,)),
    flow("outer product added", 10, torch.addr, (6, 4), (6,), (4,), dims=((0, 1), (0,), (0,))),
    flow("block_diag", 18, torch.block_diag, (6, 4), (3, 5), dims=(0, 1)),
    flow("tril of channels", 6, lambda a: a.tril(), (6, 6), dims=(0, 1)),
    flow("triu above the diagonal", 6, lambda a: a.triu(1), (2, 6, 6), dims=(1, 2)),
    flow("triu far above", 0, lambda a: a.triu(2), (6, 6), dims=(0, 1)),
    flow("diagonal", 6, lambda a: a.diagonal(), (6, 6), dims=(0, 1)),
    flow("diagonal of inner dimensions", 8, lambda a: a.diagonal(0, 0, 2), (6, 2, 6), dims=ALL[:3]),
    flow("another diagonal", 2, lambda a: a.diagonal(1, 0, 2), (6, 2, 6), dims=ALL[:3]),
    flow("diag_embed", 8, torch.diag_embed, (2, 6), dims=(0, 1)),
    flow("diag_embed elsewhere", 8, lambda a: torch.diag_embed(a, 0, 0, 2), (2, 6), dims=(0, 1)),
    flow("diagonal_scatter", 6, torch.diagonal_scatter, (6, 6), (6,), dims=((0, 1), (0,))),
    flow("trace", 6, torch.trace, (6, 6), dims=(0, 1), inexact=True),
    flow("slice_scatter", 6, lambda a, b: a.slice_scatter(b, 1, 2, 5), X, (2, 3, 4, 4)),
    flow("slice_scatter of every second", 0, lambda a, b: a.slice_scatter(b, 1, 0, 6, 2), X, (2, 3, 4, 4)),
    flow("select_scatter", 0, lambda a, b: a.select_scatter(b, 1, 2), X, (2, 4, 4), dims=((1,), ())),
    flow("select_scatter in space", 6, lambda a, b: a.select_scatter(b, 2, 1), X, (2, 6, 4)),
    flow("index_add in space", 6, lambda a, b: a.index_add(2, torch.tensor([1, 0]), b), X, (2, 6, 2, 4)),
    flow("index_add of channels", 0, lambda a, b: a.index_add(1, torch.tensor([1, 0]), b), X, (2, 2, 4, 4)),
    flow("index_reduce", 6, lambda a, b: a.index_reduce(2, torch.tensor([1, 0]), b, "amax"), X, (2, 6, 2, 4)),
    flow("index by a count", 6, lambda a: a[:, torch.arange(6)], X),
    flow("index_copy by a count", 6, lambda a, b: a.index_copy(1, torch.arange(6), b), X, X),
    flow("a count of another length", 0, lambda a: a[:, torch.arange(4)], X),
    flow("written by two counts", 6, written, (6, 6), (6,), dims=((0, 1), (0,))),
    flow("scattered along a diagonal", 6, lambda a: a.scatter(1, torch.arange(6)[:, None], 2.0), (6, 6), dims=(0, 1)),
    flow(
        "scattered in order", 10, lambda a, b: a.scatter(1, torch.arange(6).expand(4, 6), b), (4, 6), (4, 6),
        dims=(0, 1),
    ),
    flow("matrix exponential", 0, torch.linalg.matrix_exp, (6, 6), dims=(0, 1)),
    flow("inverse", 0, lambda a: torch.linalg.inv(a + 9 * torch.eye(6)), (6, 6), dims=(0, 1)),
    flow("quarter turn in space", 6, lambda a: a.rot90(1, (2, 3)), X),
    flow("absolute value in place", 6, lambda a: a.clone().abs_(), X),
    flow("loss summed", 6, F.mse_loss, (2, 6), (2, 6), inexact=True),
    flow("loss each", 6, lambda a, b: F.huber_loss(a, b, reduction="none"), (2, 6), (2, 6)),
    flow("quantised by one scale", 6, lambda a: torch.fake_quantize_per_tensor_affine(a, 0.01, 0, -128, 127), X),
    flow("quantised by scales", 6, quantised, X, (6,), dims=((1,), (0,))),
    flow("quantised by learned scales", 6, learnt, X, (6,), dims=((1,), (0,))),
    flow("quantised by ranges", 14, observed, (6, 8), (6,), (6,), dims=((0, 1), (0,), (0,)), inexact=True),
    flow("distance", 0, lambda a, b: torch.cdist(a, b), (2, 3, 6), (2, 3, 6), dims=((2,), (2,))),
]  # fmt: skip


def tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for item in value for t in tensors(item)]


def together(ledger: Ledger) -> tuple[np.ndarray, dict[int, set[int]]]:
    """Components of all ids, and for every component those it makes a product with, or that its product is made of."""
    component = components(ledger.size, ledger.ties)
    related: dict[int, set[int]] = {}
    for product in ledger.products:
        for place in np.ndindex(product.slots.shape):
            slot = int(component[product.slots[place]])
            for k, index in enumerate(place):
                part = int(component[product.axes[k][index]])
                related.setdefault(slot, set()).add(part)
                related.setdefault(part, set()).add(slot)
    return component, related


@pytest.mark.parametrize("row", FLOWS, ids=str)
def test_a_rule_tells_what_an_index_touches(row: Flow) -> None:
    torch.manual_seed(0)
    recording = Recording(Ledger(), on_meta=False)
    inputs: list[Any] = [torch.randn(shape) for shape in row.shapes]
    axes: list[tuple[int, int, np.ndarray]] = []
    for number, (tensor, dims) in enumerate(zip(inputs, row.labelled, strict=True)):
        label = [None] * tensor.dim()
        for d in dims:
            label[d] = recording.ledger.fresh(tensor.shape[d])
            axes.append((number, d, label[d]))
        tensor._secateur_label, tensor._secateur_constant = tuple(label), number in row.constant
        tensor._secateur_fixed = False  # constants here are parameters
    with torch.no_grad(), Recorder(recording, meta=False):
        out = tensors(row.call(*inputs))
    assert recording.unsupported == []
    ledger = recording.ledger
    component, related = together(ledger)
    fixed = {int(c) for ids, _ in ledger.fixes for c in component[ids]}
    inexact = {int(c) for ids, _ in ledger.inexacts for c in component[ids]}
    free = {int(c) for *_, a in axes for c in component[a]} - fixed
    assert len(free) == row.free
    assert bool(inexact - fixed) == row.inexact
    consumed = {int(c) for ids in ledger.consumed for c in component[ids]}
    summed = any(call.mixes for call in recording.calls)  # between activations: nothing of the index is left to label
    plain = [tensors(row.call(*[t.detach().clone() for t in inputs]))]
    labels = [[component[a] if a is not None else None for a in label_of(o)] for o in out]
    for number, d, axis in axes:
        for index, slot in enumerate(component[axis].tolist()):
            if slot in fixed or slot in inexact or slot in consumed:
                continue
            disturbed = [t.detach().clone() for t in inputs]
            disturbed[number].select(d, index).add_(3 * torch.randn(()).abs() + 1)
            for was, now, label in zip(plain[0], tensors(row.call(*disturbed)), labels, strict=True):
                changed = (was != now).nonzero().numpy()
                parts = related.get(slot, set())
                for element in changed:
                    seen = {int(ids[e]) for ids, e in zip(label, element, strict=True) if ids is not None}
                    seen |= {r for s in seen for r in related.get(s, ())}
                    carried = slot in seen or (parts and parts <= seen)
                    gone = summed and not label_has(label, parts | {slot})
                    assert carried or gone, (slot, element.tolist(), label)


def label_has(label: list[Any], wanted: set[int]) -> bool:
    return any(ids is not None and wanted & set(ids.tolist()) for ids in label)


def test_every_aten_name_in_the_table_exists() -> None:
    """A rule for an operator that PyTorch does not have is a typing error."""
    unknown = []
    for name in RULES:
        space, _, short = name.partition("::")
        if space == "aten" and not hasattr(torch.ops.aten, short) and not hasattr(torch.Tensor, short):
            unknown.append(name)
    old = {"aten::numpy_T", "aten::mT"}
    assert len(set(unknown) - old) <= 12, unknown


def test_registering_twice_replaces() -> None:
    names = set(RULES)
    try:
        rule("secateur_test::never")(lambda op: "first")
        rule("secateur_test::never")(lambda op: "second")
        assert RULES["secateur_test::never"](None) == "second"
    finally:
        RULES.pop("secateur_test::never", None)
    assert set(RULES) == names


def test_short_names_are_aten() -> None:
    try:
        rule("secateur_short")(lambda op: ())
        assert "aten::secateur_short" in RULES
    finally:
        RULES.pop("aten::secateur_short", None)
