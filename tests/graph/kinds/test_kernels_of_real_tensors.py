"""Networks that ask numbers of the data run on real tensors, where PyTorch has kernels of its own: all is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _judge import cut_rightly, image, relu_conv, unique
from torch import nn

import secateur

LAYERS: dict[str, nn.Module] = {
    "LSTM": nn.LSTM(16, 16, batch_first=True),
    "LSTM of two layers and ways": nn.LSTM(16, 8, num_layers=2, bidirectional=True, batch_first=True),
    "LSTM without biases": nn.LSTM(16, 16, bias=False, batch_first=True),
    "LSTM with projection": nn.LSTM(16, 20, proj_size=16, batch_first=True),
    "GRU": nn.GRU(16, 16, batch_first=True),
    "attention": nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0, norm_first=True),
}


class Sequence(nn.Module):
    """A layer over the pixels; `asks` makes the trace take real tensors."""

    def __init__(self, layer: nn.Module, asks: bool) -> None:
        super().__init__()
        self.asks, self.into, self.layer, self.out = asks, relu_conv(3, 16), layer, nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.into(x).flatten(2).mT
        if self.asks:
            assert bool(x.isfinite().sum())
        x = self.layer(x)
        return self.out((x[0] if isinstance(x, tuple) else x).mean(1))


def found(graph: secateur.Graph) -> tuple[Any, ...]:
    return [(group.name, group.width) for group in graph.groups], graph.cost().macs, graph.unsupported


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_groups_and_costs_as_without_values(name: str) -> None:
    plain, asking = (secateur.trace(Sequence(LAYERS[name], asks), image(2, 3, 4, 4)) for asks in (False, True))
    assert plain.recording.on_meta
    assert not asking.recording.on_meta
    assert found(plain) == found(asking)
    assert len(asking.groups) > 1


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "attention"])
def test_and_cut_rightly(name: str) -> None:
    cut_rightly(unique(Sequence(LAYERS[name], asks=True)).eval(), image(2, 3, 4, 4), 1.0)


def test_a_state_that_is_a_parameter_goes_with_the_units() -> None:
    class Started(Sequence):
        def __init__(self) -> None:
            super().__init__(nn.LSTM(16, 16, batch_first=True), asks=True)
            self.state = nn.Parameter(torch.empty(2, 1, 1, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.into(x).flatten(2).mT
            h, c = self.state.expand(-1, -1, x.shape[0], -1).contiguous()
            assert bool(x.isfinite().sum())
            return self.out(self.layer(x, (h, c))[0].mean(1))

    result = cut_rightly(unique(Started()).eval(), image(2, 3, 4, 4), 1.0)
    assert result.model.state.shape == (2, 1, 1, 8)
