"""Constants made in forward whose values depend on the position of a channel: what they tie or keep, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _harness import halve, masked_error, randomise
from torch import nn

import secateur

WIDTH = 8


class Between(nn.Module):
    """A stem, a layer `a` whose output `step` works on with further weights, a layer that reads it, a head."""

    def __init__(
        self, step: Callable[..., torch.Tensor], shapes: dict[str, tuple[int, ...]], **modules: nn.Module
    ) -> None:
        super().__init__()
        self.step, self.n = step, WIDTH
        self.stem, self.a = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, WIDTH, 3, padding=1)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        for name, module in modules.items():
            setattr(self, name, module)
        self.o, self.head = nn.Conv2d(WIDTH, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(self.stem(x).relu()).relu()
        return self.head(self.o(self.step(self, x)).relu())


def mixed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight[:, :, None, None])


def written(m: Any, values: Any, *where: Any) -> torch.Tensor:
    """Zeros with something written into them."""
    kernel = torch.zeros(m.n, m.n, dtype=m.w.dtype)
    kernel[where] = values
    return kernel


def centre(m: Any, x: torch.Tensor) -> torch.Tensor:
    kernel, places = torch.zeros(m.n, m.n, 3, 3, dtype=x.dtype), torch.arange(m.n)
    kernel[places, places, 1, 1] = 1.0
    return F.conv2d(x, m.k + kernel, padding=1)


def padded(kernel: torch.Tensor) -> torch.Tensor:
    return F.pad(kernel[..., None, None], (1, 1, 1, 1))


def places(m: Any) -> torch.Tensor:
    return torch.arange(m.n)


def grid(m: Any) -> tuple[torch.Tensor, ...]:
    return torch.meshgrid(places(m), places(m), indexing="ij")


def in_view(m: Any, x: torch.Tensor) -> torch.Tensor:
    weight = m.w.clone()
    weight.diagonal().add_(1.0)
    return mixed(x, weight)


SQUARE, VECTOR, KERNEL = {"w": (WIDTH, WIDTH)}, {"v": (WIDTH,)}, {"k": (WIDTH, WIDTH, 3, 3)}
BOTH = {**SQUARE, **VECTOR}

TIED: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
    "eye of a shape": (lambda m, x: mixed(x, m.w + torch.eye(*m.w.shape, dtype=x.dtype)), SQUARE),
    "eye as a kernel": (lambda m, x: F.conv2d(x, m.k + padded(torch.eye(m.n)), padding=1), KERNEL),
    "eye as a mask": (lambda m, x: mixed(x, m.w.masked_fill(torch.eye(x.shape[1], dtype=torch.bool), 0.0)), SQUARE),
    "all but the diagonal": (lambda m, x: mixed(x, m.w * (1 - torch.eye(m.n, dtype=x.dtype))), SQUARE),
    "ones written by index": (centre, KERNEL),
    "a vector written by index": (lambda m, x: mixed(x, m.w + written(m, m.v, places(m), places(m))), BOTH),
    "scatter": (lambda m, x: mixed(x, m.w + torch.zeros_like(m.w).scatter_(1, places(m).unsqueeze(1), 1.0)), SQUARE),
    "scatter in rows": (lambda m, x: mixed(x, m.w.scatter(0, places(m)[None], 2.0)), SQUARE),
    "fill_diagonal": (lambda m, x: mixed(x, m.w.clone().fill_diagonal_(1.0)), SQUARE),
    "diag": (lambda m, x: mixed(x, m.w + torch.diag(m.v)), BOTH),
    "diag_embed": (lambda m, x: mixed(x, m.w + torch.diag_embed(m.v)), BOTH),
    "diag of ones": (lambda m, x: mixed(x, m.w + torch.ones(m.n, dtype=x.dtype).diag()), SQUARE),
    "a diagonal in a view": (in_view, SQUARE),
    "diagonal_scatter": (lambda m, x: mixed(x, torch.diagonal_scatter(m.w, m.v)), BOTH),
    "the diagonal read": (lambda m, x: mixed(x, m.w) * m.w.diagonal()[:, None, None], SQUARE),
    "the diagonal read by index": (lambda m, x: mixed(x, m.w) * m.w[places(m), places(m)][:, None, None], SQUARE),
    "one-hot": (lambda m, x: mixed(x, m.w + F.one_hot(places(m), m.n).to(x.dtype)), SQUARE),
    "counts compared": (lambda m, x: mixed(x, m.w * (places(m)[:, None] != places(m))), SQUARE),
    "counts of a grid compared": (lambda m, x: mixed(x, m.w + (grid(m)[0] == grid(m)[1])), SQUARE),
    "a triangle by comparison": (lambda m, x: mixed(x, m.w * (places(m)[:, None] >= places(m)[None])), SQUARE),
    "a lower triangle": (lambda m, x: mixed(x, m.w.tril()), SQUARE),
    "a strict upper triangle": (lambda m, x: mixed(x, m.w * torch.ones_like(m.w).triu(1)), SQUARE),
    "a table read in order": (lambda m, x: x * m.t(places(m))[..., None], {}),
    "channels by their numbers": (lambda m, x: x[:, torch.arange(x.shape[1])] + x.index_select(1, places(m)), {}),
    "noise for all channels": (lambda m, x: x + m.v[:, None, None] * torch.randn(x.shape[-2:], dtype=x.dtype), VECTOR),
    "coordinates in space": (lambda m, x: x * torch.linspace(0.5, 1, x.shape[-1], dtype=x.dtype), {}),
}  # fmt: skip

KEPT: dict[str, tuple[Any, dict[str, tuple[int, ...]], str]] = {
    "arange": (lambda m, x: x * (1 + torch.arange(x.shape[1]))[:, None, None], {}, "arange"),
    "arange from one": (lambda m, x: x * torch.arange(1, m.n + 1, dtype=x.dtype).view(1, -1, 1, 1), {}, "arange"),
    "sine of a count": (lambda m, x: x + (places(m) * 0.3).sin().to(x.dtype)[:, None, None], {}, "arange"),
    "a count below a number": (lambda m, x: x * (places(m) < 3)[:, None, None], {}, "arange"),
    "distances": (lambda m, x: mixed(x, m.w * (grid(m)[0] - grid(m)[1]).abs()), SQUARE, "arange"),
    "linspace": (lambda m, x: x * torch.linspace(0.5, 2, m.n, dtype=x.dtype)[:, None, None], {}, "linspace"),
    "logspace": (lambda m, x: x + torch.logspace(-1, 0, m.n, dtype=x.dtype)[:, None, None], {}, "logspace"),
    "hann": (lambda m, x: x * torch.hann_window(m.n, dtype=x.dtype)[:, None, None], {}, "hann_window"),
    "bartlett": (lambda m, x: x * torch.bartlett_window(m.n, dtype=x.dtype)[:, None, None], {}, "bartlett_window"),
    "a running sum of ones": (lambda m, x: x * torch.ones(m.n, dtype=x.dtype).cumsum(0)[:, None, None], {}, "cumsum"),
    "a running sum of ones like x": (lambda m, x: x / torch.ones_like(x).cumsum(1), {}, "cumsum"),
    "eye that is not square": (lambda m, x: mixed(x, m.w @ torch.eye(m.n, m.n + 1)[:, 1:].to(x.dtype)), SQUARE, "eye"),
    "two above the diagonal": (lambda m, x: mixed(x, m.w.triu(2)), SQUARE, "triu"),
    "tril_indices": (lambda m, x: mixed(x, written(m, 1.0, *torch.tril_indices(m.n, m.n))), SQUARE, "index_put_"),
    "a permutation drawn": (lambda m, x: x * torch.randperm(x.shape[1])[:, None, None], {}, "randperm"),
    "noise": (lambda m, x: x + torch.randn_like(x), {}, "randn_like"),
    "a scale drawn": (lambda m, x: x * torch.empty(m.n, 1, 1, dtype=x.dtype).uniform_(), {}, "uniform_"),
    "dropout always on": (lambda m, x: F.dropout2d(x, 0.3, training=True), {}, "bernoulli_"),
    "a matrix function": (lambda m, x: mixed(x, torch.linalg.matrix_exp(0.1 * m.w)), SQUARE, "linalg_matrix_exp"),
}  # fmt: skip


def make(step: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return randomise(Between(step, shapes, t=nn.Embedding(WIDTH, 1))).eval(), torch.randn(2, 3, 6, 6)


@pytest.mark.parametrize("name", TIED)
def test_same_places_are_tied(name: str) -> None:
    model, inputs = make(*TIED[name])
    result = halve(model, inputs, seed=1)
    assert {g.name: g.width for g in result.graph.groups} == {"stem": 6, "a": WIDTH, "o": 6}
    assert result.verification.exact
    assert result.graph.unsupported == ()
    if "noise" not in name:
        assert masked_error(result, inputs) <= 1e-5


@pytest.mark.parametrize("name", KEPT)
def test_values_by_position_keep_what_they_meet(name: str) -> None:
    step, shapes, operator = KEPT[name]
    model, inputs = make(step, shapes)
    result = halve(model, inputs, seed=1)
    assert {g.name: g.width for g in result.graph.groups if g.name != "w"} == {"stem": 6, "o": 6}
    assert result.verification.exact
    assert [f"({operator} in the model)" in f.reason for f in result.graph.frozen if f.name == "a"] == [True]


def test_the_random_stream_of_the_caller_is_left_alone() -> None:
    model, inputs = make(*KEPT["noise"][:2])
    torch.manual_seed(5)
    want = torch.rand(3)
    graph = secateur.trace(model, inputs)
    plan = secateur.prune(model, inputs, budget="flops=0.6", verify=False).plan
    made = graph.cut(plan)
    torch.manual_seed(5)
    graph.verify(made, plan)
    assert torch.equal(torch.rand(3), want)


def test_what_only_training_draws_keeps_nothing() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.o = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
            self.aux = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> Any:
            x = F.dropout(self.stem(x), 0.5, self.training)
            return (self.o(x), self.aux(x)) if self.training else self.o(x)

    graph = secateur.trace(Head().eval(), torch.randn(1, 3, 6, 6))
    assert [(g.name, g.width) for g in graph.groups] == [("stem", 8)]


def test_positions_numbered_in_forward_stay_and_the_reason_says_so() -> None:
    """An expected value over bins: only the layer that makes the bins stays."""

    class Bins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bins = 5
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4 * self.bins, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.b(self.a(x).relu()).unflatten(1, (4, self.bins)).softmax(2)
            return (x * torch.arange(self.bins, dtype=x.dtype)[:, None, None]).sum(2)

    torch.manual_seed(0)
    result = halve(randomise(Bins()).eval(), torch.randn(1, 3, 6, 6))
    assert [g.name for g in result.graph.groups] == ["a"]
    assert result.verification.exact
    assert "arange" in next(f.reason for f in result.graph.frozen if f.name == "b")
