"""Nodes find their layers, by weights, by scopes and through what a runtime fuses; the rest is what is left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from secateur.runtime.engines import ENGINES, REST, copied
from secateur.runtime.engines.onnx_file import onnx_of
from secateur.runtime.engines.openvino import watch as watch_openvino
from secateur.runtime.engines.watching import layers_of_nodes, summed, with_rest


class Tokens(nn.Module):
    """Convolution, normalisations of equal weights, and linear layers over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.before, self.after = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.stem(x).flatten(2).transpose(1, 2)
        t = t + self.mix(self.before(t))
        out: torch.Tensor = self.head(self.after(t).mean(1))
        return out


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return copied(Tokens())


@pytest.fixture(scope="module")
def nodes(model: nn.Module) -> dict[str, str]:
    if (sentence := ENGINES["onnxruntime"].missing()) is not None:
        pytest.skip(sentence)
    return layers_of_nodes(onnx_of(model, torch.randn(1, 3, 12, 12)), model)


def test_every_layer_has_a_node_and_a_folded_normalisation_has_none(nodes: dict[str, str]) -> None:
    assert set(nodes.values()) == {"", "stem.0", "before", "after", "mix", "head"}


def test_the_name_after_an_activation_is_the_layers_before_it(nodes: dict[str, str]) -> None:
    assert nodes["node_silu" if "node_silu" in nodes else "node_sigmoid"] == ""  # alone, it is its own
    assert nodes["silu"] == "stem.0"


@pytest.mark.parametrize(
    "name",
    [
        "conv",
        "fused conv",
        "relu_nchwc",
        "relu_nchwc_token_3",
        "conv/WithoutBiases",
        "bn_bn_nchwc",
        "conv/MatMulAddFusion",
    ],
)
def test_names_that_runtimes_make(name: str) -> None:
    assert summed({"conv": "a", "relu": "a", "bn": "a"}, [(name, 1.0), ("Reorder_conv", 5.0), (name, 2.0)]) == {
        "a": 3.0
    }


def test_the_rest_is_never_negative() -> None:
    assert with_rest({"a": 1.0, "b": 2.0}, 4.0) == {"a": 1.0, "b": 2.0, REST: 1.0}
    assert with_rest({"a": 1.0}, 0.5)[REST] == 0.0


@pytest.mark.parametrize("name", ["pytorch", "onnxruntime", "openvino"])
def test_layers_by_runtime(name: str, model: nn.Module) -> None:
    engine = ENGINES[name]
    if (sentence := engine.missing()) is not None:
        pytest.skip(sentence)
    assert engine.watch is not None
    watch = engine.watch(model, torch.randn(1, 3, 12, 12), 1)
    for _ in range(3):
        watch.run()
    times = watch.times()
    assert len(times) == 2
    for run in times:
        assert {"stem.0", "mix", "head", REST} <= set(run)
        assert name == "openvino" or all(seconds >= 0 for seconds in run.values())  # there they are differences
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_openvino_keeps_means_and_what_a_run_took_is_their_change(monkeypatch: pytest.MonkeyPatch) -> None:
    took = [9.0, 3.0, 1.0, 2.0]  # the first is that of opening, the second warms up

    class Request:
        def __init__(self) -> None:
            self.runs = 1

        def infer(self) -> None:
            self.runs += 1

        @property
        def profiling_info(self) -> list[Any]:
            mean = sum(took[: self.runs]) / self.runs
            return [SimpleNamespace(node_name="conv", real_time=SimpleNamespace(total_seconds=lambda: mean))]

    place = "secateur.runtime.engines.openvino."
    monkeypatch.setattr(place + "onnx_of", lambda model, inputs: b"")
    monkeypatch.setattr(place + "layers_of_nodes", lambda data, model: {"conv": "a"})
    monkeypatch.setattr(place + "opened", lambda *_, **__: Request())
    watch = watch_openvino(nn.Identity(), torch.zeros(1), 1)
    for _ in range(3):
        watch.run()
    assert [round(run["a"], 9) for run in watch.times()] == [1.0, 2.0]
