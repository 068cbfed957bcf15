"""Operators of detectors and of quantisation-aware training; and what an operator without a rule leads to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.ao.quantization as quantization
import torch.nn.functional as F
from _harness import assert_sound, call, halve, masked_error, outputs, randomise
from structures._case import Net, conv, head
from torch import nn

import secateur
from secateur.errors import ModelError

IMAGE = (2, 3, 8, 8)
DEFORM = (
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor"
)


def deformed(x: Any, weight: Any, offset: Any, mask: Any, bias: Any, *rest: Any) -> torch.Tensor:
    """A stand-in with the operator's dependences for odd kernels at stride 1: every tap is scaled by its offsets."""
    groups, blocks, use_mask = rest[-3:]
    taps, (batch, _, *size) = weight.shape[2] * weight.shape[3], x.shape
    scale = offset.view(batch, blocks, taps, 2, *size).sum(3)
    scale = scale * mask.view(scale.shape) if use_mask else scale
    columns = F.unfold(x, weight.shape[2:], padding=weight.shape[2] // 2).view(batch, blocks, -1, taps, *size)
    columns = (columns * scale[:, :, None]).reshape(batch, groups, -1, *size)
    kernel = weight.reshape(groups, weight.shape[0] // groups, -1)
    return torch.einsum("bgkhw,gok->bgohw", columns, kernel).reshape(batch, -1, *size) + bias[:, None, None]


@pytest.fixture(scope="module")
def deform() -> torch.library.Library:
    """torchvision's operator, or a stand-in where its compiled part is missing."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "deform_conv2d"):
        library.define(DEFORM)
        library.impl("deform_conv2d", deformed, "CPU")
        library.impl("deform_conv2d", lambda x, w, o, *_: x.new_empty(x.shape[0], w.shape[0], *o.shape[2:]), "Meta")
    return library


class Deformable(nn.Module):
    """A deformable convolution with the layers that make its offsets and masks."""

    def __init__(self, inputs: int, outputs: int, groups: int, blocks: int, masked: bool) -> None:
        super().__init__()
        self.groups, self.blocks, self.masked = groups, blocks, masked
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, 3, 3))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.offset, self.mask = conv(inputs, 18 * blocks), conv(inputs, 9 * blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = self.mask(x).sigmoid() if self.masked else x.new_zeros(x.shape[0], 0)
        numbers = (1, 1, 1, 1, 1, 1, self.groups, self.blocks, self.masked)
        return torch.ops.torchvision.deform_conv2d(x, self.weight, self.offset(x), mask, self.bias, *numbers)


@pytest.mark.parametrize(
    ("groups", "blocks", "masked", "widths"),
    [
        (1, 1, True, {"stem": 12, "d": 6}),
        (1, 2, False, {"stem": 6, "d": 6}),  # blocks of inputs that share offsets stay equal
        (2, 1, True, {"stem": 6, "d": 3}),
        (12, 1, False, {"stem": 12}),
    ],
)
def test_deformable_convolution(
    deform: torch.library.Library, groups: int, blocks: int, masked: bool, widths: dict[str, int]
) -> None:
    torch.manual_seed(0)
    width = 12 if groups == 12 else 6
    model = randomise(
        Net(
            lambda m, x: m.head(m.d(m.stem(x).relu()).relu()), stem=conv(3, 12),
            d=Deformable(12, width, groups, blocks, masked), head=head(width),
        )
    ).eval()  # fmt: skip
    inputs = torch.randn(IMAGE)
    result = halve(model, inputs)
    assert {g.name: g.width for g in result.graph.groups} == widths
    assert result.verification.exact
    assert masked_error(result, inputs) <= 1e-5
    reasons = {f.name: f.reason for f in result.graph.frozen}
    assert "deform_conv2d" in reasons["d.offset"]


def test_encoder_and_decoder_with_the_places_of_maxima() -> None:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        x, first = m.pool(m.a(x).relu())
        x, second = m.pool(m.b(x).relu())
        return m.e(m.unpool(m.d(m.unpool(m.c(x).relu(), second)).relu(), first))

    model = randomise(
        Net(run, a=conv(3, 8), b=conv(8, 12), c=conv(12, 12), d=conv(12, 8), e=conv(8, 2),
            pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2))
    ).eval()  # fmt: skip
    inputs = torch.randn(IMAGE)
    result = halve(model, inputs)
    assert {g.name: g.width for g in result.graph.groups} == {"a": 8, "b": 12}
    assert_sound(result, inputs)
    assert result.verification.exact


def prepared(kind: str) -> nn.Module:
    """A small network ready for quantisation-aware training, its ranges seen."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
            self.b = nn.Sequential(conv(8, 6), nn.ReLU())
            self.quant, self.dequant, self.fc = quantization.QuantStub(), quantization.DeQuantStub(), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dequant(self.fc(self.b(self.a(self.quant(x))).mean((2, 3))))

    torch.manual_seed(0)
    model = Plain().train()
    if kind == "per tensor":
        fake = quantization.FakeQuantize.with_args(observer=quantization.MovingAverageMinMaxObserver)
        model.qconfig = quantization.QConfig(activation=fake, weight=fake)
    elif kind == "per channel":
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm", version=0)
    else:
        model.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.fuse_modules_qat(model, [["a.0", "a.1", "a.2"], ["b.0", "b.1"]], inplace=True)
    quantization.prepare_qat(model, inplace=True)
    for _ in range(2):
        model(torch.randn(4, 3, 8, 8))
    return model.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["per tensor", "per channel", "fused"])
def test_prepared_for_quantisation_aware_training(kind: str) -> None:
    model, inputs = prepared(kind), torch.randn(IMAGE)
    before = copy.deepcopy(model.state_dict())
    result = secateur.prune(model, inputs, budget="flops=0.6")
    assert {g.name: g.width for g in result.graph.groups} == {"a.0": 8, "b.0": 6}
    assert result.graph.unsupported == ()
    assert result.verification.passed
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    width = result.model.a[0].weight.shape[0]
    assert width < 8
    result.model.train()(inputs).sum().backward()
    if kind != "per tensor":
        assert result.model.a[0].weight_fake_quant.scale.shape == (width,)


@pytest.fixture
def unknown() -> Iterator[None]:
    library = torch.library.Library("secateur_unknown", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CPU")
    library.impl("twice", torch.empty_like, "Meta")
    yield
    library._destroy()


@pytest.mark.parametrize("where", ["activation", "weight"])
def test_the_reason_is_the_unknown_operator(unknown: None, where: str) -> None:
    twice = torch.ops.secateur_unknown.twice

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        if where == "activation":
            return m.c(twice(m.a(x)).relu())
        return m.c(F.conv2d(x, twice(m.a.weight), m.a.bias).relu())

    model = Net(run, a=nn.Conv2d(3, 8, 3), c=nn.Conv2d(8, 2, 1))
    with pytest.raises(ModelError, match=r"operator secateur_unknown::twice has no rule \(in the model\)"):
        secateur.prune(model, torch.randn(IMAGE), budget="flops=0.5")


def test_an_unknown_operator_keeps_only_what_it_touches(unknown: None) -> None:
    model = randomise(
        Net(
            lambda m, x: m.c(m.b(torch.ops.secateur_unknown.twice(m.a(x)).relu()).relu()), a=conv(3, 8), b=conv(8, 6),
            c=conv(6, 2)
        )
    ).eval()  # fmt: skip
    inputs = torch.randn(IMAGE)
    result = halve(model, inputs)
    assert [g.name for g in result.graph.groups] == ["b"]
    assert [f.reason for f in result.graph.frozen if f.name == "a"] == [
        "operator secateur_unknown::twice has no rule (in the model)"
    ]
    assert outputs(call(result.model, inputs))[0].shape == (2, 2, 8, 8)
