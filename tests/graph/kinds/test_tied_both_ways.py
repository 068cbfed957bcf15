"""One weight there and back again, as tied autoencoders and sparse codes have it: its rows are a width of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _judge import cut_rightly, image, relu_conv, unique
from torch import nn
from torch.nn import functional as F

There = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: How a map is coded by a weight [codes, channels, 1, 1], and how the codes are read by the same.
WAYS: dict[str, tuple[There, There]] = {
    "convolutions": (F.conv2d, F.conv_transpose2d),
    "in groups": (lambda x, w: F.conv2d(x, w, groups=2), lambda z, w: F.conv_transpose2d(z, w, groups=2)),
    "linear": (
        lambda x, w: F.linear(x.movedim(1, -1), w[:, :, 0, 0]),
        lambda z, w: F.linear(z, w[:, :, 0, 0].t()).movedim(-1, 1),
    ),
    "products": (
        lambda x, w: x.flatten(2).mT @ w[:, :, 0, 0].T,
        lambda z, w: (z @ w[:, :, 0, 0]).mT.unflatten(2, (8, 8)),
    ),
    "einsum": (
        lambda x, w: torch.einsum("bchw,dc->bdhw", x, w[:, :, 0, 0]),
        lambda z, w: torch.einsum("bdhw,dc->bchw", z, w[:, :, 0, 0]),
    ),
}


class Tied(nn.Module):
    def __init__(self, there: There, back: There, groups: int, bias: bool) -> None:
        super().__init__()
        self.there, self.back = there, back
        self.into, self.out = relu_conv(3, 16), nn.Conv2d(16, 5, 1)
        self.code = nn.Parameter(torch.empty(24, 16 // groups, 1, 1))
        self.shift = nn.Parameter(torch.empty(24, 1, 1)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = self.there(self.into(x), self.code)
        codes = codes if self.shift is None else codes + self.shift
        return self.out(self.back(codes.relu(), self.code))


@pytest.mark.parametrize("method", ["random", "l1"])
@pytest.mark.parametrize("how", WAYS)
def test_codes_go_though_one_weight_is_all_they_have(how: str, method: str) -> None:
    groups = 2 if how == "in groups" else 1
    model = unique(Tied(*WAYS[how], groups, bias=False)).eval()
    result = cut_rightly(model, image(), 0.6, method=method)
    assert result.model.code.shape[0] == 12


def test_rows_that_are_written_and_read_count_as_written() -> None:
    """A criterion scores what makes a channel; the bias alone would say nothing of it."""
    result = cut_rightly(unique(Tied(*WAYS["convolutions"], 1, bias=True)).eval(), image())
    codes = next(group for group in result.graph.groups if group.name == "code")
    assert {(m.name, m.dim) for m in codes.producers()} == {("code", 0), ("shift", 0)}


def test_a_module_and_its_transpose() -> None:
    model = nn.Sequential(relu_conv(3, 16), nn.Conv2d(16, 24, 1, bias=False), nn.ReLU())
    back = nn.ConvTranspose2d(24, 16, 1, bias=False)
    back.weight = model[1].weight
    model.extend([back, nn.Conv2d(16, 5, 1)])
    result = cut_rightly(unique(model).eval(), image())
    assert result.model[1].weight is result.model[3].weight
    assert (result.model[1].out_channels, result.model[3].in_channels) == (12, 12)
