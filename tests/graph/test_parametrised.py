"""Weights computed from others: a cut is proven, and said to be inexact where the surviving weights change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm, spectral_norm

import secateur

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)


class Softmax(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w.softmax(1)


class Square(nn.Module):
    """Element by element: what stays does not change."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w.square()


def by(parametrisation: nn.Module) -> Callable[[nn.Module], nn.Module]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", parametrisation)


def net(wrap: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3, padding=1), wrap(nn.Conv2d(16, 16, 3, padding=1))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


WHOLE = [
    (parametrizations.spectral_norm, "SpectralNorm"),
    (spectral_norm, "SpectralNorm"),
    (by(Standardised()), "Standardised"),
    (by(Softmax()), "Softmax"),
]


@pytest.mark.parametrize(("wrap", "name"), WHOLE)
def test_a_weight_that_depends_on_the_whole_tensor_is_disclosed(wrap: Callable[..., nn.Module], name: str) -> None:
    result = secateur.prune(net(wrap).eval(), IMAGE, budget="flops=0.5")
    proof = result.verification
    assert proof is not None
    assert proof.passed
    assert not proof.exact
    assert any(f"{name} computes 2.weight from the whole tensor" in reason for reason in proof.reasons)
    assert "remove_parametrizations" in proof.reasons[-1]


@pytest.mark.parametrize(
    "plain",
    [
        lambda: net(by(Square())),
        lambda: folded(parametrizations.spectral_norm, lambda m: parametrize.remove_parametrizations(m, "weight")),
        lambda: folded(spectral_norm, remove_spectral_norm),
    ],
)
def test_plain_weights_and_those_computed_one_by_one_stay_exact(plain: Callable[[], nn.Module]) -> None:
    proof = secateur.prune(plain().eval(), IMAGE, budget="flops=0.5").verification
    assert proof is not None
    assert proof.exact
    assert proof.reasons == ()


def folded(wrap: Callable[..., nn.Module], fold: Callable[[nn.Module], object]) -> nn.Module:
    """As the sentence advises."""
    model = net(wrap)
    fold(model[2])
    return model


class WithIdentity(nn.Module):
    """A residual connection inside the weight; the side of the square is an attribute of the parametrisation."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w + torch.eye(self.side)[:, :, None, None]


class Hollow(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w * (1 - torch.eye(len(w)))[..., None, None]


class Fading(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w / torch.arange(1, w.shape[-1] + 1)


@pytest.mark.parametrize("made", [lambda: WithIdentity(16), Hollow, Fading])
def test_a_weight_computed_with_constants_made_in_code_is_pruned(made: Callable[[], nn.Module]) -> None:
    result = secateur.prune(net(by(made())).eval(), IMAGE, budget="flops=0.6")
    layer = result.model[2]  # type: ignore[index]
    rows, columns = layer.weight.shape[:2]
    assert (layer.out_channels, layer.in_channels) == (rows, columns)
    assert result.model[0].out_channels == columns < 16  # type: ignore[index]
    assert result.verification is not None
    assert result.verification.passed
