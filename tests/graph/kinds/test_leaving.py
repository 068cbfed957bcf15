"""What leaves PyTorch's operators in forward stays whole, and the rest is pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _judge import Carrier, cut_rightly, image, relu_conv, unique
from torch import nn
from torch.nn import functional as F

import secateur
from secateur import ModelError


class Own(torch.Tensor):
    """A class of tensor."""


class Run(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "numpy": lambda x: torch.from_numpy(np.tanh(x.detach().numpy())),
    "asarray": lambda x: x * torch.as_tensor(np.asarray(x.detach()).max(axis=(0, 2, 3)))[:, None, None],
    "tolist": lambda x: x * torch.tensor(x.mean((0, 2, 3)).tolist()).view(1, -1, 1, 1),
}


@pytest.mark.parametrize("way", WAYS)
def test_channels_whose_values_leave_stay_with_the_reason(way: str) -> None:
    result = cut_rightly(unique(Carrier(Run(WAYS[way]))).eval(), image(), 0.5)
    assert result.model.special.function is not None
    reasons = [f.reason for f in result.graph.frozen if f.name == "into.0"]
    assert len(reasons) == 1
    assert "leave PyTorch" in reasons[0]


class Head(nn.Module):
    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.classes, self.wrap = relu_conv(3, 16), relu_conv(16, 16), nn.Linear(16, 10), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return x.sum(), self.wrap(self.classes(self.b(self.a(x)).mean((2, 3))))


@pytest.mark.parametrize("wrap", [lambda y: y.detach().numpy(), lambda y: y.tolist(), lambda y: {"y": np.asarray(y)}])
def test_an_output_that_is_no_tensor_any_more_stays_whole(wrap: Callable[[torch.Tensor], Any]) -> None:
    result = secateur.prune(unique(Head(wrap)).eval(), image(), allocator="ratios", ratios={"*": 0.5})
    assert (result.model.b[0].out_channels, result.model.classes.out_features) == (8, 10)


def test_an_output_of_another_class_is_refused_with_the_cause() -> None:
    model = unique(Head(lambda y: y.as_subclass(Own))).eval()
    with pytest.raises(ModelError, match="a tensor of class Own that its forward made"):
        secateur.prune(model, image(), budget="flops=0.5", verify=False)


class Wavelets(nn.Module):
    """Two fixed filters for every channel, as many as come in."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.mix = how, nn.Conv2d(32, 16, 1)
        self.register_buffer("filters", torch.tensor([[[[0.5, 0.4], [0.6, 0.5]]], [[[0.5, -0.4], [0.3, -0.5]]]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c = x.shape[1]
        bank = self.filters.tile(c, 1, 1, 1) if self.how == "tile" else self.filters.repeat(c, 1, 1, 1)
        if self.how == "made in forward":
            bank = torch.tensor([[[[0.5, 0.4], [0.6, 0.5]]], [[[0.5, -0.4], [0.3, -0.5]]]]).repeat(c, 1, 1, 1)
        return F.interpolate(self.mix(F.conv2d(x, bank, stride=2, groups=c)), scale_factor=2)


@pytest.mark.parametrize("how", ["tile", "repeat", "made in forward"])
def test_fixed_filters_repeated_for_every_channel_follow_the_channels(how: str) -> None:
    cut_rightly(unique(Carrier(Wavelets(how))).eval(), image(), 0.3)


class Hooked(nn.Module):
    """A hook, which a copy of the network shares, leaves features with the network it was made for."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)
        self.found: Any = [] if way == "a list" else {}
        self.last: Any = None

        def keep(_module: nn.Module, _given: Any, out: torch.Tensor) -> None:
            if way == "a list":
                self.found[:] = [out]
            elif way == "a dict":
                self.found["b"] = out
            else:
                self.last = out

        self.b.register_forward_hook(keep)

    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.b(self.a(x).relu()).relu())


@pytest.mark.parametrize("way", ["a list", "a dict", "an attribute"])
def test_features_that_a_hook_leaves_with_the_network_stop_nothing(way: str) -> None:
    result = secateur.prune(Hooked(way).eval(), image(), budget="flops=0.5")
    assert result.verification is not None
    assert result.verification.exact


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc])
def test_a_sparse_weight_is_refused_in_a_sentence(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model[2].weight = nn.Parameter(make(model[2].weight.detach()))
    with pytest.raises(secateur.SecateurError, match=r"2\.weight is a sparse tensor"):
        secateur.prune(model, torch.randn(2, 8), budget="flops=0.5")
