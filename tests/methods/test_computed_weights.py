"""Layers that compute their weights anew: what would have to fit them, or fold into them, keeps them whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import secateur
from secateur.errors import ModelError

IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 1e-5), self.bias)


def weight_norm(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(inputs, outputs, kernel))


def network(convolution: type[nn.Module]) -> nn.Sequential:
    """Two such convolutions, of which the second reads the first, and a linear layer that reads the second."""
    torch.manual_seed(0)
    first, second = convolution(3, 8, 3), convolution(8, 8, 3)
    return nn.Sequential(
        first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


@pytest.mark.parametrize("convolution", [Standardised, weight_norm])
@pytest.mark.parametrize("name", ["cp", "dcp", "gdp", "cwb"])
def test_what_such_a_layer_reads_stays_whole_and_a_note_says_so(convolution: type[nn.Module], name: str) -> None:
    pruner = secateur.methods.create(name, network(convolution), IMAGES, budget="flops=0.7", steps=2)
    if secateur.methods.method(name).collects:
        pruner.collect([(IMAGES, LABELS)], F.cross_entropy)
    for _ in range(2 if secateur.methods.method(name).needs == "training" else 0):
        pruner.train()
        pruner.before_forward(LABELS)
        (F.cross_entropy(pruner(IMAGES), LABELS) + pruner.loss()).backward()
        pruner.after_backward()
        pruner.after_step()
    small = pruner.finish()
    assert (small[0].out_channels, small[3].out_channels < 8) == (8, True)  # type: ignore[index]
    assert any("stay whole: 0." in note and "weights" in note for note in pruner.notes)


@pytest.mark.parametrize("convolution", [Standardised, weight_norm])
def test_kernels_of_such_layers_are_not_selected(convolution: type[nn.Module]) -> None:
    with pytest.raises(ModelError, match=r"DKP chooses kernels of convolutions .* has none"):
        secateur.methods.create("dkp", network(convolution), IMAGES, budget="params=0.8")
