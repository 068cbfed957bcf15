"""Passes that wait in front of layers: side by side, or one by one where that would take too much memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur.statistics import lockstep
from secateur.statistics.lockstep import Made, crowded, together

LAYERS = ["0", "2", "5"]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip


def shown() -> list[torch.Tensor]:
    return [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(5)]


def test_what_passes_hold_in_front_of_a_layer() -> None:
    """Of two images 2 * 8 * 64 floats in front of the second layer, 8 of the last; of ten five times as much."""
    model, batches = chain(), shown()
    assert crowded(model, batches[:1], LAYERS, 4096) == []
    assert crowded(model, batches[:1], LAYERS, 4095) == ["0", "2"]
    assert crowded(model, batches, LAYERS, 5 * 4096) == []
    assert crowded(model, batches, LAYERS, 5 * 4096 - 1) == ["0", "2"]
    assert crowded(model, batches, LAYERS, 5 * 32) == ["0", "2"]
    assert crowded(model, batches, LAYERS, 5 * 32 - 1) == LAYERS


@pytest.mark.parametrize("anew", [[], ["0", "2"], LAYERS])
def test_one_by_one_is_the_same_as_side_by_side(anew: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same inputs in the same order, after weights changed; one by one no two batches are under way."""
    under_way: set[int] = set()
    most = 0

    class Counted(lockstep._Pass):
        def advance(self) -> None:
            nonlocal most
            under_way.add(id(self))
            most = max(most, len(under_way))
            super().advance()

        def close(self) -> None:
            under_way.discard(id(self))
            super().close()

    monkeypatch.setattr(lockstep, "_Pass", Counted)
    dense, model = chain().eval(), chain().eval()
    stops = []
    with torch.no_grad():
        for stop in together((dense, model), shown(), LAYERS, {"5": Made(2, "aten::convolution")}, anew):
            for number, batch in enumerate(stop.batches()):
                args = shown()[number]
                for each, net, held in zip(batch.inputs, (dense, model), batch.held, strict=True):
                    torch.testing.assert_close(each, net[: int(stop.layer)](args), rtol=0, atol=0)
                    assert (held is not None) == (stop.layer == "5")
            stops.append((stop.layer, number))
            model.get_submodule(stop.layer).weight.mul_(0.5)
    assert stops == [(layer, 4) for layer in LAYERS]
    assert most == (2 if anew == LAYERS else 10)


class Gain(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


class Absolute(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(x, weight.abs(), bias)


@pytest.mark.parametrize("way", ["gain", "absolute", "hook", "forward", "usual"])
@pytest.mark.parametrize("anew", [[], ["2"]])
def test_answers_are_those_of_the_weights_alone(way: str, anew: list[str]) -> None:
    """What a layer makes of its answer beyond that, no other weights could make up for."""
    model = chain()
    layer: Any = {"gain": Gain, "absolute": Absolute}.get(way, nn.Conv2d)(8, 4, 3, padding=1)
    model[2] = layer
    if way == "hook":
        layer.register_forward_hook(lambda module, args, output: 3 * output)
    if way == "forward":
        layer.forward = lambda x: 3 * nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    with torch.no_grad():
        for stop in together((model,), shown(), ["2"], anew=anew):
            for one in stop.batches():
                wanted = nn.functional.conv2d(one.inputs[0], layer.weight, layer.bias, padding=1)
                torch.testing.assert_close(one.answer, wanted)
