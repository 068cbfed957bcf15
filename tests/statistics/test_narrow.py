"""Layers that compute with the channels that stay alone answer as those that compute with zeros."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from secateur.statistics.narrow import narrow, uses_its_weight

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "padded": (nn.Conv2d(12, 10, 3, padding=1), (12, 7, 6)),
    "reflected, strided": (nn.Conv2d(12, 10, 3, 2, padding=1, padding_mode="reflect", bias=False), (12, 6, 6)),
    "one axis": (nn.Conv1d(12, 10, 5, stride=2, padding=1), (12, 11)),
    "linear": (nn.Linear(12, 10), (12,)),
    "tokens": (nn.Linear(12, 10, bias=False), (6, 12)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("cut", ["inputs", "outputs", "both"])
@torch.no_grad()
def test_it_is_what_zeros_are(name: str, together: bool, cut: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    x = torch.randn(4, *shape)
    if together and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    inputs, outputs = torch.arange(12) % 3 != 1, torch.arange(10) % 2 == 0
    if cut == "inputs":
        outputs[:] = True
    if cut == "outputs":
        inputs[:] = True
    layer.weight[~outputs] = layer.weight[:, ~inputs] = 0
    if layer.bias is not None:
        layer.bias[~outputs] = 0
    wanted = layer(x)
    end = narrow(layer, lambda: inputs, outputs)
    assert "forward" in layer.__dict__
    torch.testing.assert_close(layer(x), wanted)
    layer.weight.mul_(2)  # it may change meanwhile
    if layer.bias is not None:
        layer.bias.mul_(2)
    torch.testing.assert_close(layer(x), 2 * wanted)
    end()
    assert "forward" not in layer.__dict__


def _same(mask: torch.Tensor | None) -> torch.Tensor | None:
    return mask


@torch.no_grad()
def test_where_there_is_nothing_to_gain_nothing_is_done() -> None:
    layer, x = nn.Linear(10, 10), torch.randn(3, 10)
    wanted = layer(x)
    every, most = torch.ones(10, dtype=torch.bool), torch.arange(10) > 0
    for inputs, outputs in ((every, None), (most, None), (most, every), (~every, None), (every, ~every), (None, None)):
        end = narrow(layer, partial(_same, inputs), outputs)
        assert torch.equal(layer(x), wanted)
        end()


@torch.no_grad()
def test_inputs_are_asked_at_every_call() -> None:
    layer, x, inputs = nn.Linear(10, 10), torch.randn(3, 10), torch.arange(10) < 4
    asked: list[torch.Tensor | None] = [None]
    wanted, without = layer(x), nn.functional.linear(x * inputs, layer.weight, layer.bias)
    end = narrow(layer, lambda: asked[0])
    assert torch.equal(layer(x), wanted)
    asked[0] = inputs
    torch.testing.assert_close(layer(x), without)
    end()


class Standardised(nn.Conv2d):
    """Weights are divided by their deviation in every pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


class Shifted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Deep(nn.Conv2d):
    """Another way at the place that PyTorch's forward calls."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(x, weight.abs(), bias)


def own_forward() -> nn.Module:
    layer: Any = nn.Linear(10, 10)
    layer.forward = torch.sin
    return cast("nn.Module", layer)


@pytest.mark.parametrize(
    "make", [lambda: Standardised(10, 10, 3), lambda: Shifted(10, 10), lambda: Deep(10, 10, 1), own_forward]
)
@torch.no_grad()
def test_what_computes_in_a_way_of_its_own_is_left_to_it(make: Callable[[], Any]) -> None:
    layer = make()
    x = torch.randn(2, 10, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(2, 10)
    wanted, before = layer(x), dict(layer.__dict__)
    end = narrow(layer, lambda: torch.arange(10) < 3, torch.arange(10) < 2)
    assert torch.equal(layer(x), wanted)
    end()
    assert layer.__dict__ == before


class Same(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (1, 0, 1, 0)))


class Rounded(nn.Linear):
    """Weights in 8 bits, as training for them has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight.abs().amax(1, keepdim=True) / 127
        return F.linear(x, (self.weight / scale).round() * scale, self.bias)


class Signs(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.sign(), self.bias)


class Told(nn.Linear):
    def forward(self, x: torch.Tensor, share: float) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) * share


def double(layer: nn.Module) -> nn.Module:
    return layer.double()


@pytest.mark.parametrize(
    ("layer", "used"),
    [
        (nn.Conv2d(6, 4, 3, groups=2), True),
        (Same(6, 4, 2, groups=2, dilation=2), True),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), True),
        (double(Same(3, 4, 7, stride=4)), True),
        (Shifted(5, 3), True),
        (Rounded(50, 30), True),
        (Standardised(6, 4, 3), False),
        (Deep(6, 4, 3), False),
        (Signs(5, 3, bias=False), False),
        (Told(5, 3), False),
        (own_forward(), False),
        (parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), False),
        (nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), False),
        (parametrizations.spectral_norm(nn.Linear(5, 3)), False),
        (parametrizations.orthogonal(nn.Linear(5, 3)), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_a_weight_that_the_layer_changes_first_is_told_from_one_that_it_uses(layer: nn.Module, used: bool) -> None:
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    drawn = torch.get_rng_state()
    assert uses_its_weight(layer) is used
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_layer_of_zeros_uses_its_weight() -> None:
    layer = Same(3, 2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    assert uses_its_weight(layer)
