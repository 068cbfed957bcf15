"""Forms on a runtime: kept where they are faster, ordinary elsewhere, and the same function either way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from secateur import runtime
from secateur.forms import LayerForm, build_into, formed
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
        return [type("Engine", (), {"prepare": staticmethod(refused)})()]

    monkeypatch.setattr(deploying, "engines_of", engines)
    twin, rows = runtime.deployed(network(), X)
    assert [row["said"] for row in rows] == ["It does not run."] * 2
    assert not list(formed(twin))
    assert "not run" in deployment_note("model.onnx", rows)


def test_formats_that_run_elsewhere_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = network(), []

    def noted(model: nn.Module, inputs: Any, *, runtime: str) -> tuple[nn.Module, list[Any]]:
        asked.append(runtime)
        return model, []

    monkeypatch.setattr(deploying, "deployed", noted)
    for name in ("onnx", "openvino", "pt2"):
        for_format(name, net, X)
    assert asked == ["onnxruntime", "openvino"]
    assert for_format("onnx", all_plain(net), X)[1] == {}


def test_quantisers_get_ordinary_layers() -> None:
    net = network()
    twin = all_plain(net)
    assert not list(formed(twin))
    assert torch.allclose(twin(X), net(X), atol=1e-6)
    assert all_plain(twin) is twin
