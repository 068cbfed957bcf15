"""The form "offsets": worked numbers, every shape of convolution, what it costs, and that data are data."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur import runtime
from secateur.errors import PlanError, SecateurError, VerificationError
from secateur.forms import FORMS, LayerForm, build_into, cost, formed, plainly, prove
from secateur.forms.offsets import StripeConv2d
from secateur.graph import trace
from secateur.models import create
from secateur.plan import Plan, kept_fingerprint
from secateur.runs.layers import layer_rows

OFFSETS = FORMS["offsets"]


def drawn(layer: nn.Conv2d, seed: int = 0, share: float = 0.4) -> LayerForm:
    """Random stripes; filter 1 keeps none and filter 2 all."""
    generator = random.Random(seed)
    positions = layer.kernel_size[0] * layer.kernel_size[1]
    kept = [[p for p in range(positions) if generator.random() < share] for _ in range(layer.out_channels)]
    kept[1], kept[2] = [], list(range(positions))
    return LayerForm("offsets", {"kernel": list(layer.kernel_size), "kept": kept})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(12, 6, (1, 3), padding=(0, 1)),
    )  # fmt: skip


def planned(net: nn.Module, x: torch.Tensor) -> Plan:
    """One channel gone, and stripes in every convolution of what is left."""
    graph = trace(net, x)
    plan = Plan.full(graph)
    plan.masks[graph.groups[0].name][1] = False
    cut = secateur.apply(net, x, plan).model
    plan.forms = {n: drawn(m, k) for k, (n, m) in enumerate(cut.named_modules()) if isinstance(m, nn.Conv2d)}
    return plan


X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "shape",
    [
        {}, {"stride": 2}, {"padding": 0}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"kernel_size": (1, 5)},
        {"kernel_size": 4, "stride": (2, 1)}, {"padding": "same"}, {"bias": True}, {"kernel_size": 1, "padding": 0},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_stripes_compute_the_masked_convolution(shape: dict[str, Any], size: tuple[int, int]) -> None:
    layer = nn.Conv2d(4, 6, **{"kernel_size": 3, "padding": 1, "bias": False, **shape}).double()
    data = drawn(layer, 3).data
    built = OFFSETS.build(layer, data)
    for x in (torch.randn(3, 4, *size).double(), torch.randn(4, *size).double()):
        wanted = OFFSETS.reference(layer, data)(x)
        assert torch.allclose(built.eval()(x), wanted, rtol=0, atol=1e-12)
        assert torch.allclose(OFFSETS.plain(built)(x), wanted, rtol=0, atol=1e-12)
        stepwise = torch.autograd.grad(built(x).square().sum(), list(built.parameters()))
        assert torch.allclose(built.train()(x), wanted, rtol=0, atol=1e-12)
        whole = torch.autograd.grad(built(x).square().sum(), list(built.parameters()))
        assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(stepwise, whole, strict=True))


def test_training_takes_one_convolution_a_layer() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1)
    built = OFFSETS.build(layer, drawn(layer, 3).data)
    with torch.profiler.profile() as profiled:
        built.train()(torch.randn(1, 4, 8, 8))
    assert sum(row.count for row in profiled.key_averages() if row.key == "aten::convolution") == 1


def test_one_corner_shifts_the_input() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    built = OFFSETS.build(layer, {"kernel": [3, 3], "kept": [[0]]}).eval()
    x = torch.randn(1, 1, 4, 5)
    wanted = torch.zeros_like(x)
    wanted[..., 1:, 1:] = layer.weight[0, 0, 0, 0] * x[..., :-1, :-1]  # out[h, w] = W00 x[h - 1, w - 1]
    assert torch.allclose(built(x), wanted)


def test_stripes_stand_in_order_of_position_then_filter() -> None:
    layer = nn.Conv2d(2, 3, (1, 2), bias=False)
    built = OFFSETS.build(layer, {"kernel": [1, 2], "kept": [[1], [0, 1], [0]]})
    assert isinstance(built, StripeConv2d)
    assert built.rows.tolist() == [1, 2, 0, 1]
    wanted = torch.stack([layer.weight[n, :, 0, p] for n, p in ((1, 0), (2, 0), (0, 1), (1, 1))])
    assert torch.equal(built.weight[:, :, 0, 0], wanted)


def test_worked_chain() -> None:
    """3 to 4 to 6 channels at 8x8 with stripes (5, 0, 9, 2) and (9, 1, 0, 4, 9, 3): empty filters are cut."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.Conv2d(4, 6, 3, 1, 1, bias=False), nn.Conv2d(6, 10, 1))
    x = torch.randn(1, 3, 8, 8)
    graph = trace(net, x)
    plan = Plan.full(graph)
    plan.masks["0"][1] = plan.masks["1"][2] = False
    for name, counts in {"0": (5, 9, 2), "1": (9, 1, 4, 9, 3)}.items():
        plan.forms[name] = LayerForm("offsets", {"kernel": [3, 3], "kept": [list(range(n)) for n in counts]})
    result = secateur.apply(net, x, plan)
    assert plan.widths == {"0": 3, "1": 5}
    numbers = {name: sum(p.numel() for p in result.model.get_submodule(name).parameters()) for name in "01"}
    assert numbers == {"0": 48, "1": 78}
    last = 5 * 10
    assert result.after.macs == 3072 + 4992 + last * 64
    assert result.after.params == 48 + 78 + last + 10
    assert result.before.macs == 6912 + 13824 + 60 * 64


def test_cost_is_what_pytorch_counts() -> None:
    net = network().eval()
    plan = planned(net, X)
    result = secateur.apply(net, X, plan)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result.model(X)
    assert result.after == cost(result.graph, plan)
    assert result.after.macs == counter.get_total_flops() // 2
    assert result.after.params == sum(p.numel() for p in result.model.parameters())
    assert result.forms is not None
    assert result.forms.layers == 3
    assert "3 layers are computed" in " ".join(result.notes)


def test_a_wrong_form_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network().eval()
    plan = planned(net, X)
    right = type(OFFSETS).build
    other = {"kept": [[0]] * 6, "kernel": [3, 3]}
    monkeypatch.setattr(type(OFFSETS), "build", lambda s, m, d, _: right(s, m, other if m.in_channels == 3 else d))
    with pytest.raises(VerificationError, match="differ from their plain references"):
        secateur.apply(net, X, plan)


def test_formed_networks_train_copy_and_go_back() -> None:
    net = network()
    narrow = secateur.apply(net, X, planned(net, X)).model.train()
    narrow(X).square().mean().backward()
    assert all(p.grad is not None for p in narrow.parameters())
    wanted = narrow.eval()(X)
    plainly(narrow, {name: kind for name, kind, _ in list(formed(narrow))})
    assert not list(formed(narrow))
    assert torch.allclose(narrow(X), wanted, atol=1e-5)


def test_a_layer_without_stripes_gives_its_bias() -> None:
    layer = nn.Conv2d(2, 3, 3, 2, 1)
    built = OFFSETS.build(layer, {"kernel": [3, 3], "kept": [[], [], []]})
    assert torch.equal(built(torch.randn(2, 2, 5, 5)), layer.bias.detach()[:, None, None].expand(2, 3, 3, 3))
    assert [name for name, _ in built.named_parameters()] == ["bias"]
    assert not OFFSETS.plain(built).weight.any()


def test_under_autocast() -> None:
    layer = nn.Conv2d(2, 3, 3, 1, 1)
    built = OFFSETS.build(layer, drawn(layer).data)
    with torch.autocast("cpu", torch.bfloat16):
        assert built(torch.randn(1, 2, 4, 4)).dtype == torch.bfloat16
        assert built.eval()(torch.randn(1, 2, 4, 4)).dtype == torch.bfloat16


def test_exported_and_read_as_data(tmp_path: Path) -> None:
    net = network().eval()
    narrow = secateur.apply(net, X, planned(net, X)).model
    found = runtime.export_pt2(narrow, X, tmp_path / "m.pt2")
    assert found["loads"]
    assert found["dynamic_batch"]


# --------------------------------------------------------------------------------------------------------------- files


def saved(folder: Path) -> tuple[nn.Module, Plan]:
    net = network().eval()
    result = secateur.apply(net, X, planned(net, X))
    runtime.save_model(folder, result.model, reference="own.py:network", inputs=X, plan=result.plan)
    return result.model, result.plan


def test_saved_and_loaded(tmp_path: Path) -> None:
    narrow, plan = saved(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["version"] == 2
    assert Plan.load(tmp_path / "plan.json") == plan
    again = runtime.load(tmp_path, model=network())
    assert torch.equal(again(X), narrow(X))
    assert [k for _, k, _ in formed(again)] == ["offsets"] * 3


def test_saved_by_a_reference_and_loaded_without_code_of_ones_own(tmp_path: Path) -> None:
    """Which channel a stripe belongs to is in the plan; it is not taken for a buffer that others' tools left."""
    net = create("resnet8")
    x = torch.randn(1, 3, 32, 32)
    plan = Plan.full(trace(net, x))
    name = next(n for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    plan.forms[name] = drawn(net.get_submodule(name))
    result = secateur.apply(net.eval(), x, plan)
    header = runtime.save_model(tmp_path, result.model, reference="zoo:resnet8", inputs=x, plan=plan)
    assert "left_out" not in header
    again = runtime.load(tmp_path)
    assert torch.equal(again(x), result.model.eval()(x))
    row = next(row for row in layer_rows(result) if row["name"] == name)
    assert (row["form"], row["out_after"]) == ("offsets", 16)
    assert sum(row["macs_after"] for row in layer_rows(result)) == result.after.macs < result.before.macs


def test_a_plan_without_forms_is_as_ever(tmp_path: Path) -> None:
    plan = Plan.full(trace(network(), X))
    before = kept_fingerprint(plan)
    plan.save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()).keys() == {
        "format", "version", "architecture", "groups", "provenance"
    }  # fmt: skip
    plan.forms["0"] = LayerForm("offsets", {"kernel": [3, 3], "kept": [[0]] * 8})
    assert kept_fingerprint(plan) != before
    assert plan != Plan.load(tmp_path / "p.json")


FORGED: dict[str, Any] = {
    "no object": [1],
    "no such kind": {"kind": "pickle", "data": {}},
    "more keys": {"kind": "offsets", "data": {"kernel": [3, 3], "kept": [[0]]}, "code": "x"},
    "other data": {"kind": "offsets", "data": {"kernel": [3, 3]}},
    "kernel": {"kind": "offsets", "data": {"kernel": [3, True], "kept": [[0]]}},
    "huge kernel": {"kind": "offsets", "data": {"kernel": [1 << 40, 1 << 40], "kept": [[0]]}},
    "outside": {"kind": "offsets", "data": {"kernel": [3, 3], "kept": [[9]]}},
    "negative": {"kind": "offsets", "data": {"kernel": [3, 3], "kept": [[-1]]}},
    "twice": {"kind": "offsets", "data": {"kernel": [3, 3], "kept": [[1, 1]]}},
    "no numbers": {"kind": "offsets", "data": {"kernel": [3, 3], "kept": [[1.0]]}},
    "no rows": {"kind": "offsets", "data": {"kernel": [3, 3], "kept": [None]}},
    "none": {"kind": "offsets", "data": {"kernel": [3, 3], "kept": []}},
}


@pytest.mark.parametrize("row", FORGED.values(), ids=FORGED)
def test_forged_forms_are_refused(tmp_path: Path, row: Any) -> None:
    saved(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    content["forms"]["0"] = row
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(PlanError, match=r"layer '0'.*\.$"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("name", ["nowhere", "", "1", "0"])
def test_forms_of_other_layers_are_refused(name: str) -> None:
    net = network()
    plan = Plan.full(trace(net, X))
    plan.forms[name] = LayerForm("offsets", {"kernel": [3, 3], "kept": [[0]] * 5})
    with pytest.raises(PlanError, match="layer"):
        secateur.apply(net, X, plan)
    with pytest.raises(PlanError):
        prove(net, plan.forms, X)
    with pytest.raises(PlanError):
        build_into(net, plan.forms)
    assert not list(formed(net))


def test_damaged_plans_never_end_in_a_traceback(tmp_path: Path) -> None:
    saved(tmp_path)
    path, generator = tmp_path / "plan.json", random.Random(0)
    text = path.read_text()
    start = text.index('"forms"')
    for _ in range(150):
        place = generator.randrange(start, len(text) - 1)
        changed = text[:place] + generator.choice('0129[]{},"-e\n') + text[place + generator.choice((0, 1, 2)) :]
        path.write_text(changed)
        with suppress(SecateurError):  # a sentence; anything else fails here
            runtime.load(tmp_path, model=network())
