"""Forms on a runtime: kept where they are faster, ordinary elsewhere, and the same function either way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from secateur import runtime
from secateur.forms import FORMS, LayerForm, build_into, formed
from secateur.runtime import deploying
from secateur.runtime.deploying import all_plain, deployment_note, for_format

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 1, 1)).eval()
    forms = {"0": 4, "2": 5}
    build_into(net, {n: LayerForm("offsets", {"kernel": [3, 3], "kept": [[0, k]] * w}) for k, (n, w) in
                     enumerate(forms.items(), 1)})  # fmt: skip
    return net


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer is faster with its form, the second is slower."""
    times = iter([[[2.0] * 5, [1.0] * 5], [[1.0] * 5, [2.0] * 5]])
    monkeypatch.setattr(deploying, "in_turns", lambda calls, *_: next(times))


@pytest.mark.usefixtures("timed")
def test_what_is_not_faster_is_computed_plainly() -> None:
    net = network()
    wanted = net(X)
    twin, rows = runtime.deployed(net, X, runtime="pytorch")
    assert [(row["name"], row["kept"]) for row in rows] == [("0", True), ("2", False)]
    assert [name for name, _, _ in formed(twin)] == ["0"]
    assert type(twin[2]) is nn.Conv2d
    assert torch.allclose(twin(X), wanted, atol=1e-6)
    assert len(list(formed(net))) == 2  # the network itself stays
    said = deployment_note("model.onnx", rows)
    assert said.startswith("In model.onnx 1 of 2 layers")
    assert "0 1e+03 against 2e+03, 2 2e+03 against 1e+03" in said


def test_a_layer_that_does_not_run_is_computed_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise deploying.RunError("It does not run.")

    def engines(_: Sequence[str]) -> list[Any]:
        return [type("Engine", (), {"name": "none", "prepared": staticmethod(refused)})()]

    monkeypatch.setattr(deploying, "engines_of", engines)
    twin, rows = runtime.deployed(network(), X)
    assert [row["said"] for row in rows] == ["It does not run."] * 2
    assert not list(formed(twin))
    assert "not run" in deployment_note("model.onnx", rows)


def test_formats_that_run_elsewhere_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = network(), []

    def noted(model: nn.Module, inputs: Any, *, runtime: str, images: Any) -> tuple[nn.Module, list[Any]]:
        asked.append(runtime)
        return model, []

    monkeypatch.setattr(deploying, "deployed", noted)
    for name in ("onnx", "openvino", "pt2"):
        for_format(name, net, X)
    assert asked == ["onnxruntime", "openvino"]
    assert for_format("onnx", all_plain(net), X).forms == {}


def test_quantisers_get_ordinary_layers() -> None:
    net = network()
    twin = all_plain(net)
    assert not list(formed(twin))
    assert torch.allclose(twin(X), net(X), atol=1e-6)
    assert all_plain(twin) is twin


# ------------------------------------------------------------------------------------- layers that look at the image


def gated() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 1, 1), nn.BatchNorm2d(5)).eval()
    widths = {"0": (3, 4, None), "2": (4, 5, "3")}
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: FORMS["gated"].drawn(
            {"inputs": a, "outputs": b, "hidden": 2, "threshold": 1.0, "norm": norm, "columns": False},
            generator,
            torch.float32,
        )
        for name, (a, b, norm) in widths.items()
    }
    build_into(net, drawn)
    return net


@pytest.mark.parametrize(("bare", "masked", "kept"), [(2.0, 2.0, True), (1.0, 2.0, False), (2.0, 1.0, False)])
def test_skipping_must_be_faster_than_the_bare_layer_and_the_masked_one(
    monkeypatch: pytest.MonkeyPatch, bare: float, masked: float, kept: bool
) -> None:
    """On the mean over the images, which are not of one batch."""
    seen = []

    def timed(calls: Any, *_: Any) -> list[list[float]]:
        seen.append(len(calls[0]()))
        return [[bare] * 5, [masked] * 5, [1.5] * 5]

    monkeypatch.setattr(deploying, "in_turns", timed)
    net, images = gated(), [X[:1], X[1:], X[:1] + 1]
    wanted = [net(x) for x in images]
    twin, rows = runtime.deployed(net, X, runtime="pytorch", images=images)
    assert seen == [3, 3]
    assert [row["kept"] for row in rows] == [kept] * 2
    assert [row["form_ms"] for row in rows] == [500.0] * 2
    assert [row["plain_ms"] for row in rows] == pytest.approx([1e3 * bare / 3] * 2, rel=1e-4)
    assert [layer.skip for _, _, layer in formed(twin)] == [kept] * 2
    for x, want in zip(images, wanted, strict=True):
        assert torch.allclose(twin(x), want, atol=1e-6)


def test_openvino_is_given_the_masked_network() -> None:
    made = for_format("openvino", gated(), X)
    assert made.fixed is None
    assert [row["said"] for row in made.forms["forms"]] == [
        "OpenVINO runs no convolution whose weight is computed."
    ] * 2
    assert not any(layer.skip for _, _, layer in formed(made.model))


def test_files_for_any_batch_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    net = gated()
    made = for_format("pt2", net, X)
    assert not any(layer.skip for _, _, layer in formed(made.model))
    assert all(layer.skip for _, _, layer in formed(net))
    assert made.forms == {}
    assert made.fixed is None
    monkeypatch.setattr(deploying, "in_turns", lambda calls, *_: [[2.0] * 5, [2.0] * 5, [1.0] * 5])
    made = for_format("onnx", net, X, [X[:1]])
    assert made.fixed == deploying.ALONE
    assert all(layer.skip for _, _, layer in formed(made.model))
