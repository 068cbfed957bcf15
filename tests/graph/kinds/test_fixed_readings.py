"""Fixed numbers read channels, or are made by code that goes another way on tensors without storage.

A weight without parameters sums what a removed channel would have held, zero or not: removed rightly, and said.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _judge import Carrier, cut_rightly, error, image, unique
from torch import nn
from torch.nn import functional as F

import secateur

C = 16


class Fixed(nn.Module):
    """Gates of all channels, one half where nothing comes in, summed by a weight that nothing trains."""

    def __init__(self, how: str, gate: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.how, self.gate = how, gate
        self.register_buffer("row", torch.randn(C, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = self.gate(x)
        if self.how == "convolution":
            return x * F.conv2d(gates, self.row.view(1, -1, 1, 1))
        if self.how == "einsum":
            return x * torch.einsum("bchw,c->bhw", gates, self.row)[:, None]
        if self.how == "matrix product":
            return x * (gates.flatten(2).transpose(1, 2) @ self.row[:, None]).view(x.shape[0], 1, *x.shape[2:])
        return x * F.linear(gates.movedim(1, -1), self.row[None]).movedim(-1, 1)


@pytest.mark.parametrize("how", ["convolution", "einsum", "matrix product", "linear"])
def test_a_fixed_weight_over_gates_is_cut_and_said(how: str) -> None:
    model = unique(Carrier(Fixed(how, torch.sigmoid))).eval()
    result = secateur.prune(model, image(), allocator="ratios", ratios={"*": 0.5})
    assert result.model.into[0].out_channels == C // 2
    assert not result.verification.exact
    assert any("fixed weight" in reason for reason in result.verification.reasons)
    kept = torch.from_numpy(result.plan.masks["into.0"])
    model.special.gate = lambda x: x.sigmoid() * kept[:, None, None]  # what "removed" means to a reader
    assert error(model, result.model, image()) <= 1e-5


@pytest.mark.parametrize("how", ["convolution", "einsum"])
def test_a_fixed_weight_over_zeros_is_exact(how: str) -> None:
    assert cut_rightly(unique(Carrier(Fixed(how, torch.tanh))).eval(), image()).verification.exact


def written_out(x: torch.Tensor) -> torch.Tensor:
    odds = (x - x.amax(2, keepdim=True)).exp()
    return odds / odds.sum(2, keepdim=True)


SOFTMAXES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "written out": written_out,
    "logarithm first": lambda x: F.log_softmax(x, 2).exp(),
    "by a difference": lambda x: (x - x.logsumexp(2, keepdim=True)).exp(),
}


class Bins(nn.Module):
    """Four distances as expected values over bins."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.softmax, self.trunk = SOFTMAXES[how], nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3))
        self.logits = nn.Conv2d(24, 32, 1)
        self.register_buffer("values", torch.arange(8.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = self.softmax(self.logits(self.trunk(x)).unflatten(1, (4, 8)))
        return torch.einsum("bsnhw,n->bshw", share, self.values)


@pytest.mark.parametrize("how", SOFTMAXES)
def test_bins_stay_whole_however_their_shares_are_computed(how: str) -> None:
    assert cut_rightly(unique(Bins(how)).eval(), image()).model.logits.out_channels == 32


class OnStorage(nn.Module):
    """An identity that is not written into a tensor without storage."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(C, C, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight
        if self.how == "dirac, like the weight":
            kernel = nn.init.dirac_(torch.empty_like(weight))
        else:
            kernel = torch.zeros_like(weight)
            if not kernel.is_meta:
                for k in range(kernel.shape[0]):
                    kernel[k, k, 1, 1] = 1
        return F.conv2d(x, weight + kernel, padding=1)


@pytest.mark.parametrize("how", ["dirac, like the weight", "asked for"])
@pytest.mark.parametrize("verify", [True, False])
def test_code_that_goes_another_way_without_storage_is_traced_with_it(how: str, verify: bool) -> None:
    cut_rightly(unique(Carrier(OnStorage(how))).eval(), image(), 0.6, verify=verify)
