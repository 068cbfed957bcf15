"""Shortcuts of operators on the meta device give what PyTorch's own kernels give: shapes, strides and types."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from secateur.graph.shapes import run_on_meta

ATEN = torch.ops.aten
DRAWS = 60


class Draw:
    """Random tensors on the meta device, in the layouts networks make, and some they do not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shape = [self.size() for _ in range(self.random.choice([1, 2, 3, 4, 4, 5]))]

    def size(self) -> int:
        return self.random.choice([1, 1, 2, 3, 4, 6])

    def dim(self) -> int:
        return self.random.randrange(-len(self.shape), len(self.shape))

    def tensor(self, shape: list[int] | None = None) -> torch.Tensor:
        shape = self.shape if shape is None else shape
        kind = self.random.randrange(5)
        if kind == 1 and len(shape) == 4:
            return torch.empty(shape, device="meta").to(memory_format=torch.channels_last)
        if kind == 2:
            order = self.random.sample(range(len(shape)), len(shape))
            back = [order.index(d) for d in range(len(shape))]
            return torch.empty([shape[d] for d in order], device="meta").permute(back)
        if kind == 3:
            ones = [self.random.choice([1, n, n]) for n in shape]
            return torch.empty(ones, device="meta").expand(shape)
        if kind == 4:
            return torch.empty([n + 1 for n in shape], device="meta")[tuple(slice(0, n) for n in shape)]
        return torch.empty(shape, device="meta")

    def partner(self) -> torch.Tensor:
        first = self.random.choice([0, 0, 1]) if len(self.shape) > 1 else 0
        return self.tensor([self.random.choice([1, n, n]) for n in self.shape][first:])


def two(draw: Draw) -> tuple[Any, ...]:
    pair = (draw.tensor(), draw.partner())
    return pair if draw.random.random() < 0.6 else pair[::-1]


def number(draw: Draw) -> tuple[Any, ...]:
    zero = torch.empty((), device="meta", dtype=draw.random.choice([torch.float64, torch.int64]))
    return draw.tensor(), draw.random.choice([2, 0.5, zero])


def mean(draw: Draw) -> tuple[Any, ...]:
    dims = draw.random.sample(range(-len(draw.shape), 0), draw.random.randint(1, len(draw.shape)))
    return draw.random.choice([(draw.tensor(), dims), (draw.tensor(), dims, True)])


def layer_norm(draw: Draw) -> tuple[Any, ...]:
    own = draw.shape[-draw.random.randint(1, len(draw.shape)) :]
    affine = [draw.random.choice([torch.empty(own, device="meta"), None]) for _ in range(2)]
    return draw.tensor(), own, *affine, 1e-6


def addmm(draw: Draw) -> tuple[Any, ...]:
    n, k, m = draw.size(), draw.size(), draw.size()
    return torch.empty(m, device="meta"), draw.tensor([n, k]), draw.tensor([k, m])


def cat(draw: Draw) -> tuple[Any, ...]:
    dim, shapes = draw.dim(), [list(draw.shape) for _ in range(draw.random.randint(1, 3))]
    for shape in shapes:
        shape[dim] = draw.size()
    return [draw.tensor(shape) for shape in shapes], dim


def batch_norm(draw: Draw) -> tuple[Any, ...]:
    draw.shape = [*draw.shape, 3][: max(len(draw.shape), 2)]
    own = [torch.empty(draw.shape[1], device="meta")] * 4
    return draw.tensor(), *own, False, 0.1, 1e-5


def convolution(draw: Draw) -> tuple[Any, ...]:
    groups = draw.random.choice([1, 1, 2])
    x, weight = draw.tensor([draw.size(), 4, 8, 9]), draw.tensor([4, 4 // groups, draw.random.choice([1, 3]), 3])
    return x, weight, None, [1, 2], [1, 1], [1, 1], False, [0, 0], groups


CASES: dict[str, tuple[Any, Callable[[Draw], tuple[Any, ...]]]] = {
    "relu": (ATEN.relu.default, lambda draw: (draw.tensor(),)),
    "gelu": (ATEN.gelu.default, lambda draw: (draw.tensor(),)),
    "add": (ATEN.add.Tensor, two),
    "mul": (ATEN.mul.Tensor, two),
    "mul by a number": (ATEN.mul.Tensor, number),
    "div by a number": (ATEN.div.Tensor, number),
    "mul in place": (ATEN.mul_.Tensor, lambda draw: (torch.empty(draw.shape, device="meta"), draw.partner())),
    "mean": (ATEN.mean.dim, mean),
    "layer norm": (ATEN.native_layer_norm.default, layer_norm),
    "softmax": (ATEN._softmax.default, lambda draw: (draw.tensor(), draw.dim(), False)),
    "safe softmax": (ATEN._safe_softmax.default, lambda draw: (draw.tensor(), draw.dim())),
    "addmm": (ATEN.addmm.default, addmm),
    "cat": (ATEN.cat.default, cat),
    "batch norm": (ATEN.native_batch_norm.default, batch_norm),
    "convolution": (ATEN.convolution.default, convolution),
}


@pytest.mark.parametrize("name", CASES)
def test_a_shortcut_gives_what_pytorch_gives(name: str) -> None:
    func, make = CASES[name]
    short = 0
    for seed in range(DRAWS):
        args = make(Draw(seed))
        asked = []

        def own(*given: Any, asked: list[bool] = asked) -> Any:
            asked.append(True)
            return func(*given)

        got, want = run_on_meta(func._schema.name, own, args, {}), func(*args)
        short += not asked
        first = slice(0, 1 if name == "batch norm" else None)  # statistics of the batch are nothing in evaluation
        assert described(got)[first] == described(want)[first], [described(a) for a in args]
    assert short > DRAWS / 5


def described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [(tuple(value.shape), value.stride(), value.dtype)]
    return [each for item in value for each in described(item)] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (ATEN.add.Tensor, ([2, 3], [2, 4])),
        (ATEN.addmm.default, ([3], [2, 4], [5, 3])),
        (ATEN.mul_.Tensor, ([3], [2, 3])),
    ],
)
def test_what_does_not_fit_is_left_to_pytorch_which_refuses_it(func: Any, args: Any) -> None:
    with pytest.raises(RuntimeError):
        run_on_meta(func._schema.name, func, tuple(torch.empty(shape, device="meta") for shape in args), {})


def test_numbers_of_other_kinds_change_the_type() -> None:
    whole = torch.empty(2, 3, device="meta", dtype=torch.int64)
    out = run_on_meta("aten::mul", ATEN.mul.Tensor, (whole, 0.5), {})
    assert out.dtype == torch.float32
