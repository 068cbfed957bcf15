"""Weights that are normalised in forward: what stays is rescaled by what goes, which is said; others are exact.

"Channels set to zero" is taken at its word here: what the layers of the original give out is multiplied by zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _judge import Carrier, image, macs
from torch import nn
from torch.nn import functional as F

import secateur

C = 16


class Conv(nn.Conv2d):
    """A convolution whose weight a function computes from what is trained."""

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(C, C, 3, padding=1)
        self.compute = compute
        self.register_buffer("u", torch.randn(C, generator=torch.Generator().manual_seed(1)))
        self.down, self.up = nn.Parameter(torch.zeros(4, C)), nn.Parameter(torch.zeros(C, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.compute(self, self.weight), self.bias, padding=1)


class Modulated(Conv):
    """Weights scaled by a style of every image, then divided by their norm, a group of a convolution for each image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        weight = self.weight[None] * (1 + x.mean((2, 3)))[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        return F.conv2d(x.reshape(1, -1, h, w), weight.reshape(-1, c, 3, 3), padding=1, groups=b).view(b, -1, h, w)


def spectral(conv: Conv, weight: torch.Tensor) -> torch.Tensor:
    flat = weight.flatten(1)
    v = F.normalize(flat.t() @ conv.u, dim=0)
    u = F.normalize(flat @ v, dim=0)
    return weight / (u @ (flat @ v))


def low_rank(conv: Conv, weight: torch.Tensor) -> torch.Tensor:
    return weight + (conv.up @ conv.down)[..., None, None]


RESCALED: dict[str, Callable[[Conv, torch.Tensor], torch.Tensor]] = {
    "spectral norm by hand": spectral,
    "norm of all": lambda _, w: w / w.norm(),
    "rows of length one": lambda _, w: F.normalize(w.flatten(1), dim=1).view_as(w),
    "columns of length one": lambda _, w: F.normalize(w, dim=1),
    "root of a sum": lambda _, w: w * (w.pow(2).sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt(),
}
PLAIN: dict[str, Callable[[Conv, torch.Tensor], torch.Tensor]] = {
    "scaled": lambda _, w: w * 0.1,
    "kernels of length one": lambda _, w: F.normalize(w.flatten(2) + 1e-3, dim=2).view_as(w),
    "low rank beside it": low_rank,
}


def pruned(special: nn.Module) -> tuple[secateur.Result, float]:
    """The result, and how far the network is from the original with channels set to zero."""
    torch.manual_seed(0)
    model = Carrier(special).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 1.0)
    result = secateur.prune(model, image(), method="random", allocator="ratios", ratios={"*": 0.5})
    modules = dict(model.named_modules())
    for name, mask in result.plan.masks.items():
        if modules[name.partition("#")[0]].out_channels == mask.size:  # or it is a rank inside a weight
            kept = torch.from_numpy(mask).view(1, -1, 1, 1)
            modules[name.partition("#")[0]].register_forward_hook(lambda _module, _inputs, out, kept=kept: out * kept)
    with torch.no_grad():
        want, got = model(image()), result.model(image())
    assert result.verification.passed
    assert macs(result.model, image()) <= 0.4 * macs(model, image())
    return result, float((want - got).abs().max() / want.abs().max())


@pytest.mark.parametrize("name", [*RESCALED, "modulated"])
def test_weights_that_are_rescaled_are_told(name: str) -> None:
    result, difference = pruned(Conv(RESCALED[name]) if name in RESCALED else Modulated(lambda _, w: w))
    assert difference > 1e-3
    assert not result.verification.exact
    assert any("weights that stay change" in reason for reason in result.verification.reasons)


@pytest.mark.parametrize("name", ["scaled", "kernels of length one"])
def test_weights_that_stay_what_they_are_are_exact(name: str) -> None:
    result, difference = pruned(Conv(PLAIN[name]))
    assert difference < 1e-5
    assert result.verification.exact


def test_a_rank_inside_a_weight_is_as_exact_as_a_channel() -> None:
    result, _ = pruned(Conv(low_rank))
    assert result.verification.exact
    assert result.model.special.up.shape[1] < 4
