"""Weights that are divided by a norm of themselves: removing channels rescales what stays, which must be disclosed.

And types that change under autocast: the cut is right, so it is called right, or a reason is given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from _judge import TOLERANCE, error, image, macs, relu_conv, unique
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

import secateur


class Net(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.c = relu_conv(3, 16), wrap(nn.Conv2d(16, 16, 3, padding=1)), relu_conv(16, 16)
        self.out = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.c(self.b(self.a(x)).relu()).mean((2, 3)))


class Transposed(Net):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__(wrap)
        self.b = wrap(nn.ConvTranspose2d(16, 16, 3, padding=1))


class Flat(Net):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__(wrap)
        self.b, self.c = wrap(nn.Linear(16, 16)), nn.Sequential(nn.Linear(16, 16), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.c(self.b(self.a(x).mean((2, 3))).relu()))


NETS: dict[str, Callable[[], nn.Module]] = {
    "old form": lambda: Net(spectral_norm),
    "new form, linear": lambda: Flat(parametrizations.spectral_norm),
    "new form, transposed": lambda: Transposed(parametrizations.spectral_norm),
    "old form, linear": lambda: Flat(spectral_norm),
    "weight norm over all": lambda: Net(lambda m: parametrizations.weight_norm(m, dim=None)),
}


def times(mask: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda _module, _inputs, out: out * mask


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETS)
def test_what_stays_is_rescaled_only_with_a_word(name: str) -> None:
    torch.manual_seed(0)
    model = NETS[name]()
    with torch.no_grad():
        for _ in range(15):
            model(image(4, 3, 8, 8))
    model.eval()
    result = secateur.prune(model, image(), budget="flops=0.5")
    kept = {group: torch.from_numpy(mask) for group, mask in result.plan.masks.items()}
    with torch.no_grad():
        model(image())
    masked = copy.deepcopy(model)
    for path, group in (("a.0", "a.0"), ("b", "b"), ("c.0", "c.0")):
        mask = kept.get(group)
        if mask is not None:  # its activations are zero: what "channels set to zero" means to a reader
            shape = (1, -1, 1, 1) if "linear" not in name or path == "a.0" else (1, -1)
            masked.get_submodule(path).register_forward_hook(times(mask.view(shape)))
    with torch.no_grad():
        want, got = masked(image()), result.model(image())
    difference = float((want - got).abs().max() / want.abs().max())
    proof = result.verification
    assert proof.passed
    if difference > 1e-4:
        assert not proof.exact
        assert any("norm" in reason for reason in proof.reasons), proof.reasons


class Cast(Net):
    """Autocast inside the forward pass, around a part of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.c(self.b(self.a(x)).relu())
        return self.out(x.float().mean((2, 3)))


def plain(layer: nn.Module) -> nn.Module:
    return layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cached", [True, False])
def test_inside_autocast_a_right_cut_is_called_right(dtype: torch.dtype, cached: bool) -> None:
    model = unique(Net(plain)).eval()
    with torch.autocast("cpu", dtype=dtype, cache_enabled=cached):
        with torch.no_grad():
            model(image())
        result = secateur.prune(model, image(), budget="flops=0.5")
    assert result.verification.passed
    assert result.verification.exact or result.verification.reasons
    assert error(model, result.model, image()) <= TOLERANCE
    assert macs(result.model, image()) <= 0.5 * macs(model, image())


def test_autocast_in_the_forward_pass() -> None:
    model = unique(Cast(plain)).eval()
    result = secateur.prune(model, image(), budget="flops=0.5")
    assert result.verification.exact or result.verification.reasons
    assert error(model, result.model, image()) <= 0.03  # bfloat16
    exact = [copy.deepcopy(m) for m in (model, result.model)]
    for each in exact:
        each.__class__ = Net
    assert error(*exact, image()) <= TOLERANCE
