"""The form "gated": skipped equals masked, whatever the gate says; what it costs, and that data are data."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur import runtime
from secateur.errors import PlanError, SecateurError, VerificationError
from secateur.forms import FORMS, LayerForm, Parts, build_into, cost, formed, note_of, plainly, touched
from secateur.forms.gated import GatedConv2d, macs_of_images, saliency, thresholded
from secateur.forms.proof import prove
from secateur.graph import trace
from secateur.plan import Plan
from secateur.runs.layers import layer_rows

GATED = FORMS["gated"]
X = torch.randn(4, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def data_of(inputs: int, outputs: int, norm: str | None, *, columns: bool = True) -> dict[str, Any]:
    return {
        "inputs": inputs, "outputs": outputs, "hidden": 4, "threshold": 1.0, "norm": norm, "columns": columns
    }  # fmt: skip


def drawn(data: Mapping[str, Any], seed: int = 0) -> LayerForm:
    """Gates of which about half are open, others for every image."""
    form = GATED.drawn(data, torch.Generator().manual_seed(seed), torch.float32)
    return replace(form, tensors={**form.tensors, "expand": 8 * form.tensors["expand"]})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net


def planned(net: nn.Module) -> Plan:
    """One channel gone, and gates on three layers of what is left, one of them without a norm."""
    graph = trace(net, X)
    plan = Plan.full(graph)
    plan.masks["2"][1] = False
    plan.forms = {
        "2": drawn(data_of(6, 11, "3", columns=False), 0),
        "5": drawn(data_of(11, 8, "6"), 1),
        "8": drawn(data_of(8, 5, None), 2),
    }
    plan.provenance |= note_of(torch.tensor([7e3, 8e3]))
    return plan


def narrow_of(net: nn.Module | None = None) -> nn.Module:
    net = (network() if net is None else net).eval()
    return secateur.apply(net, X, planned(net)).model.eval()


def test_a_saliency() -> None:
    """One image, by hand: u = (2, -1), v = relu(F1 u) = (2, 0), pi = min(relu(F2 v + b), 1000)."""
    x = torch.tensor([[1.0, 3.0], [-1.0, -1.0]]).view(1, 2, 1, 2)
    reduce, shift = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.5, 0.0, 1.0])
    expand = torch.tensor([[1.0, 9.0], [-3.0, 0.0], [600.0, 0.0]])
    assert saliency(x, reduce, expand, shift).tolist() == [[2.5, 0.0, 1000.0]]


def test_a_mask_keeps_saliencies_and_is_not_binarised() -> None:
    pi = torch.tensor([[0.2, 0.6, 0.5, 0.0]])
    assert thresholded(pi, 0.5).tolist() == [pytest.approx([0, 0.6, 0.5, 0])]
    assert thresholded(pi, -10000.0).tolist() == [pytest.approx([0.2, 0.6, 0.5, 0])]


def test_products_of_images() -> None:
    """3x3 kernels on 3x3 maps: 81 products a pair; where nothing is active one pair is computed."""
    assert macs_of_images(81, torch.tensor([2, 3, 2, 0]), torch.tensor([1, 3, 3, 0])).tolist() == [162, 729, 486, 81]


@pytest.mark.parametrize(
    "shape",
    [
        {}, {"stride": 2}, {"padding": 0}, {"dilation": 2, "padding": 2}, {"kernel_size": (1, 5)},
        {"kernel_size": 4, "stride": (2, 1)}, {"padding": "same"}, {"bias": True}, {"kernel_size": 1, "padding": 0},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("columns", [True, False])
def test_skipped_is_masked(shape: dict[str, Any], normed: bool, columns: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, **{"kernel_size": 3, "padding": 1, "bias": False, **shape}).double()
    norm = nn.BatchNorm2d(6).double() if normed else None
    if norm is not None:
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    data = data_of(4, 6, "norm" if normed else None, columns=columns)
    tensors = GATED.drawn(data, torch.Generator().manual_seed(3), torch.float64).tensors
    parts = Parts(tensors, () if norm is None else (norm,))
    built, plain = GATED.build(layer, data, parts).eval(), GATED.reference(layer, data, parts).eval()
    x = torch.randn(5, 4, 9, 8).double()
    x[1, 2], x[2, :3], x[3] = 0, 0, 0  # inputs that are not there, up to all of them
    u = F.relu(F.linear(x.mean((2, 3)), tensors["reduce"]))
    pi = F.relu(F.linear(u, tensors["expand"], tensors["shift"]))
    mask = pi * (pi >= 1.0)
    assert 0 < (mask > 0).double().mean() < 1
    with torch.no_grad():
        wanted = layer(x) if norm is None else norm(layer(x))
        wanted = wanted * mask[:, :, None, None]
        assert torch.allclose(plain(x), wanted, rtol=0, atol=1e-12)
        assert torch.equal(built(x), plain(x))  # a batch is masked
        for at in range(5):
            assert torch.allclose(built(x[at : at + 1]), wanted[at : at + 1], rtol=0, atol=1e-12)


def test_the_proof_of_many_layers_in_a_row() -> None:
    """Sixty gates: what rounding leaves in one layer does not grow from layer to layer."""
    torch.manual_seed(0)
    block = [m for _ in range(60) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *block, nn.AdaptiveAvgPool2d(1)).eval()
    forms = {str(k): LayerForm("gated", data_of(8, 8, str(k + 1))) for k in range(2, 182, 3)}
    assert prove(net, forms, X).layers == 60


def test_an_image_with_nothing_active() -> None:
    narrow = narrow_of()
    for _, _, layer in formed(narrow):
        layer.threshold = 2000.0  # above the clamp
    wanted = narrow(X)
    for at in range(4):
        assert torch.allclose(narrow(X[at : at + 1]), wanted[at : at + 1], atol=1e-6)
    assert not wanted.any()


def test_a_channel_without_saliency_is_not_computed() -> None:
    """With a threshold of 0 the mask of pi = 0 is 0, and what is skipped does not change."""
    layer = nn.Conv2d(3, 4, 3, bias=False)
    built = GATED.build(layer, {**data_of(3, 4, None, columns=False), "threshold": 0.0}).eval()
    built.shift.data = torch.tensor([1.0, -1.0, 0.0, 2.0])
    with FlopCounterMode(display=False) as counter:
        built(X[:1])
    assert counter.get_total_flops() // 2 == 2 * 27 * 7 * 6 + 4 * (3 + 4)


def test_an_open_gate_changes_nothing() -> None:
    """F2 = 0, b = 1: pi = 1 for every image."""
    net = network().eval()
    wanted = net(X)
    build_into(net, {"5": LayerForm("gated", data_of(12, 8, "6"))})
    assert torch.allclose(net(X), wanted, atol=1e-6)
    assert torch.allclose(net(X[:1]), wanted[:1], atol=1e-5)


def test_single_images_any_order_and_costs() -> None:
    net = network().eval()
    plan = planned(net)
    result = secateur.apply(net, X, plan)
    twin = result.model.requires_grad_(False)
    whole, order = twin(X), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(twin(X[order]), whole[order], atol=1e-6)
    counts = []
    for at in range(4):
        with FlopCounterMode(display=False) as counter:
            alone = twin(X[at : at + 1])
        assert torch.allclose(alone, whole[at : at + 1], atol=1e-5 * float(whole.abs().max()))
        counts.append(counter.get_total_flops() // 2)
    with FlopCounterMode(display=False) as counter:
        twin(X)
    assert result.after == cost(result.graph, plan)
    assert result.after.macs == counter.get_total_flops() // 2
    assert result.after.params == sum(p.numel() for p in twin.parameters())
    assert len(set(counts)) > 1
    assert max(counts) < result.after.macs / 4
    rows = {row["name"]: row for row in layer_rows(result)}
    assert sum(row["macs_after"] for row in rows.values()) == result.after.macs
    assert rows["5"]["form"] == "gated"
    assert touched(plan.forms) == ["2", "5", "8", "3", "6"]
    assert not list(twin.get_submodule("3").parameters())


def test_costs_are_means_over_images() -> None:
    net = network().eval()
    result = secateur.apply(net, X, planned(net))
    assert result.expected is not None
    assert (result.expected.macs, result.expected.spread, result.expected.images) == (4 * 7500, 4 * 500, 2)
    assert result.averaged == replace(result.after, macs=30000)
    assert result.reached("flops") == 30000 / result.before.macs
    assert result.reached("params") == result.after.params / result.before.params
    assert "MACs are the mean over 2 images, with a standard deviation of 6.7%." in str(result)


@pytest.mark.parametrize(
    "note",
    [None, {}, {"macs": 0.0, "spread": 0.0, "images": 1}, {"macs": float("nan"), "spread": 0.0, "images": 1},
     {"macs": 1.0, "spread": -1.0, "images": 1}, {"macs": 1.0, "spread": 0.0, "images": 0}],
)  # fmt: skip
def test_plans_that_do_not_say_the_mean_are_refused(note: Any) -> None:
    net = network().eval()
    plan = planned(net)
    plan.provenance["expected"] = note
    with pytest.raises(PlanError, match="does not say what they cost on average"):
        secateur.apply(net, X, plan)


def test_a_wrong_form_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof runs images one at a time, with gates of which some are shut."""
    right = GatedConv2d._affine
    monkeypatch.setattr(GatedConv2d, "_affine", lambda self: (right(self)[0], right(self)[1] * 1.01))
    with pytest.raises(VerificationError, match="differ from their plain references"):
        narrow_of()


def test_it_trains_and_goes_back() -> None:
    narrow = narrow_of().train()
    before = narrow.get_submodule("5.norm").running_mean.clone()
    narrow(X).square().mean().backward()
    assert all(p.grad is not None for p in narrow.parameters())
    assert narrow.get_submodule("5").reduce.grad.any()
    assert not torch.equal(before, narrow.get_submodule("5.norm").running_mean)
    wanted = narrow.eval()(X[:1])
    plainly(narrow, {name: kind for name, kind, _ in list(formed(narrow))})
    with FlopCounterMode(display=False) as counter:
        assert torch.allclose(narrow(X[:1]), wanted, atol=1e-5)
    assert counter.get_total_flops() // 2 == secateur.apply(network(), X, planned(network())).after.macs // 4


def test_in_training_one_image_is_a_batch() -> None:
    """Its norm takes statistics of all channels, and follows them."""
    narrow = narrow_of()
    other = narrow_of()
    plainly(other, {name: kind for name, kind, _ in list(formed(other))})
    before = narrow.get_submodule("5.norm").running_mean.clone()
    assert torch.allclose(narrow.train()(X[:1]), other.train()(X[:1]), atol=1e-5)
    assert not torch.equal(narrow.get_submodule("5.norm").running_mean, before)


def test_rivals_are_the_bare_layer_and_the_masked_one() -> None:
    built = narrow_of().get_submodule("5")
    bare, masked = GATED.rivals(built)
    x = torch.randn(1, 11, 5, 4)
    assert torch.allclose(bare.eval()(x), built.norm(F.conv2d(x, built.weight, built.bias, 1, 1)), atol=1e-6)
    assert torch.allclose(masked.eval()(x), built(x), atol=1e-5)
    assert not masked.skip
    assert built.skip


@pytest.mark.parametrize("fixed", ["one image at a time", None])
def test_exported(tmp_path: Path, fixed: str | None) -> None:
    """Skipping for single images, masked where the batch size is open; it answers as the network does."""
    from secateur.runtime.export import Subject, export_subject

    narrow = narrow_of()
    for name in ("onnx", "pt2"):
        found = export_subject(name, Subject.of(narrow, X[:1], fixed=fixed), tmp_path / f"m.{name}")
        assert found["dynamic_batch"] is (fixed is None)
    run = runtime.open_exported(tmp_path / "m.onnx", batch_size=1)
    for at in range(4):  # other images open other gates
        assert torch.allclose(run(X[at : at + 1]), narrow(X[at : at + 1]), atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- files


def saved(folder: Path) -> tuple[nn.Module, Plan]:
    net = network().eval()
    result = secateur.apply(net, X, planned(net))
    runtime.save_model(folder, result.model, reference="own.py:network", inputs=X, plan=result.plan)
    return result.model, result.plan


def test_saved_and_loaded(tmp_path: Path) -> None:
    narrow, plan = saved(tmp_path)
    assert Plan.load(tmp_path / "plan.json") == plan
    assert "reduce" not in (tmp_path / "plan.json").read_text()  # weights are where weights are
    again = runtime.load(tmp_path, model=network())
    assert torch.equal(again(X), narrow(X))
    assert torch.equal(again(X[:1]), narrow(X[:1]))
    assert [k for _, k, _ in formed(again)] == ["gated"] * 3


SOUND = data_of(6, 11, "3")
FORGED: dict[str, Any] = {
    "more data": {**SOUND, "code": "x"},
    "less data": {key: value for key, value in SOUND.items() if key != "norm"},
    "no width": {**SOUND, "hidden": 0},
    "true for a width": {**SOUND, "hidden": True},
    "huge": {**SOUND, "hidden": 1 << 40},
    "text for a threshold": {**SOUND, "threshold": "1"},
    "whole threshold": {**SOUND, "threshold": 1},
    "norm of no name": {**SOUND, "norm": 3},
    "columns": {**SOUND, "columns": 1},
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_forged_forms_are_refused(tmp_path: Path, data: Any) -> None:
    saved(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    content["forms"]["2"]["data"] = data
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(PlanError, match=r"layer '2'.*\.$"):
        Plan.load(tmp_path / "plan.json")


def test_a_threshold_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold"):
        GATED.check({**SOUND, "threshold": float("inf")})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("2", data_of(6, 12, "nowhere")), ("2", data_of(6, 12, "6")), ("2", data_of(6, 12, "4")),
        ("2", data_of(5, 12, "3")), ("2", data_of(6, 11, "3")), ("2", data_of(6, 12, "2")), ("2", data_of(6, 12, "5")),
        ("3", data_of(12, 12, None)), ("", data_of(3, 5, None)), ("nowhere", data_of(6, 12, None)),
    ],
)  # fmt: skip
def test_forms_of_other_layers_are_refused(name: str, data: dict[str, Any]) -> None:
    net = network()
    forms = {name: LayerForm("gated", data), "5": LayerForm("gated", data_of(12, 8, "6"))}
    with pytest.raises(PlanError, match="layer"):
        build_into(net, forms)
    assert not list(formed(net))


def test_tensors_of_another_shape_are_refused() -> None:
    with pytest.raises(PlanError, match="shift is of another shape"):
        build_into(network(), {"5": LayerForm("gated", data_of(12, 8, "6"), {"shift": torch.ones(7)})})


def test_damaged_plans_never_end_in_a_traceback(tmp_path: Path) -> None:
    saved(tmp_path)
    path, generator = tmp_path / "plan.json", random.Random(0)
    text = path.read_text()
    start = text.index('"expected"')
    for _ in range(120):
        place = generator.randrange(start, len(text) - 1)
        changed = text[:place] + generator.choice('0129[]{},"-e\n') + text[place + generator.choice((0, 1, 2)) :]
        path.write_text(changed)
        with suppress(SecateurError):  # a sentence; anything else fails here
            runtime.load(tmp_path, model=network())
