"""A layer in a network of full width that computes with the channels that stay alone: the others are zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

#: The share of a layer's products from which on leaving the others out gains nothing.
_MOST = 0.8
#: How far apart what weights add may be, relative: that of quantised weights is not far.
_LINEAR = 0.05
#: Layers of PyTorch; subclasses may compute in another way (weights standardised, "same" padding).
_KINDS: tuple[Any, ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def computes_as_usual(layer: nn.Module) -> bool:
    """Whether a convolution or linear layer computes as PyTorch's own does, with its weights as they stand."""
    kind = next((each for each in _KINDS if isinstance(layer, each)), None)
    if kind is None or "forward" in layer.__dict__ or type(layer).forward is not kind.forward:
        return False
    return getattr(type(layer), "_conv_forward", None) is getattr(kind, "_conv_forward", None)


@torch.no_grad()
def uses_its_weight(layer: Any) -> bool:
    """Whether a convolution or linear layer answers linearly in its weight as it stands.

    It does not where the weight is computed from other tensors (weight norm, spectral norm), or where the layer's own
    code changes it first, as one that standardises weights does: such a weight cannot be fitted, and nothing can be
    folded into it. A layer that computes in its own way is asked: do the same weights add the same to any others?
    """
    weight = layer._parameters.get("weight")
    if weight is None:
        return False
    if computes_as_usual(layer):
        return True
    spans = () if isinstance(layer, nn.Linear) else map(_span, layer.kernel_size, layer.dilation)
    shape = (layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels, *spans)
    drawn = torch.Generator().manual_seed(0)
    x, one, two = (torch.randn(*each, generator=drawn).to(weight) for each in ((1, *shape), weight.shape, weight.shape))
    one, two = (each * (weight.square().mean().sqrt() or 1) for each in (one, two))  # as large as the layer's own
    try:
        before, after, other, both = (_answer(layer, x, w) for w in (weight, weight + one, two, two + one))
    except (RuntimeError, TypeError, ValueError):  # it takes something else than an input, so that nobody can tell
        return False
    change = after - before  # what `one` adds, to whatever weight
    return bool(change.any()) and bool((both - other - change).norm() <= _LINEAR * change.norm())


def _span(kernel: int, dilation: int) -> int:
    """Of an input on which a convolution has several places, whatever its padding."""
    return dilation * (kernel - 1) + 4


def _answer(layer: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of a layer with another weight, its hooks left out."""
    own = layer._parameters["weight"]
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    try:
        answer: torch.Tensor = layer.forward(x)
    finally:
        layer._parameters["weight"] = own
    return answer.float()


def usual_answer(layer: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What PyTorch's own layer of that kind makes of `x` with these weights and the other settings of `layer`."""
    kind = next(each for each in _KINDS if isinstance(layer, each))
    if kind is nn.Linear:
        return F.linear(x, weight, bias)
    answer: torch.Tensor = kind._conv_forward(layer, x, weight, bias)
    return answer


def narrow(
    layer: Any, inputs: Callable[[], torch.Tensor | None], outputs: torch.Tensor | None = None
) -> Callable[[], None]:
    """Let a layer that is not grouped read some inputs and make some outputs alone; returns how that ends.

    A layer that does not compute as PyTorch's own do computes with all of them, as before.

    inputs: asked at every call, a mask; outputs: a mask; None: all. What it reads otherwise must have no weight, and
    what it makes otherwise is zero. Weights may change meanwhile.
    """
    if not computes_as_usual(layer):
        return lambda: None
    layer.forward = partial(_forward, layer, inputs, outputs, layer.forward)
    return partial(delattr, layer, "forward")


def _forward(
    layer: Any,
    inputs: Callable[[], torch.Tensor | None],
    outputs: torch.Tensor | None,
    whole: Callable[[torch.Tensor], torch.Tensor],
    input: torch.Tensor,
) -> torch.Tensor:
    reads, makes = (None if mask is None or bool(mask.all()) else mask.nonzero()[:, 0] for mask in (inputs(), outputs))
    weight, bias = layer.weight, layer.bias
    left = (len(weight) if makes is None else len(makes)) * (weight.shape[1] if reads is None else len(reads))
    if not left or left > _MOST * len(weight) * weight.shape[1]:
        return whole(input)
    if makes is not None:
        weight, bias = weight[makes], None if bias is None else bias[makes]
    if reads is not None:
        weight = weight[:, reads]
    axis = -1 if isinstance(layer, nn.Linear) else input.ndim - len(layer.kernel_size) - 1
    x = input if reads is None else taken(input, axis, reads)
    out = usual_answer(layer, x, weight, bias)
    return out if makes is None else _put(out, axis, makes, len(layer.weight))


def taken(x: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """x[..., index, ...]: where channels lie together, row by row, which is several times faster."""
    last = x.movedim(axis, -1)
    if not last.is_contiguous():
        return x.index_select(axis, index)
    rows = last.reshape(-1, last.shape[-1]).index_select(1, index)
    return rows.view(*last.shape[:-1], len(index)).movedim(-1, axis)


def _put(x: torch.Tensor, axis: int, index: torch.Tensor, width: int) -> torch.Tensor:
    """The channels at these places of so many, zero elsewhere; in the order of memory that x has."""
    last = x.movedim(axis, -1)
    if last.is_contiguous():
        result = x.new_zeros(*last.shape[:-1], width)
        result[..., index] = last
        return result.movedim(-1, axis)
    shape = list(x.shape)
    shape[axis] = width
    return x.new_zeros(shape).index_copy(axis, index, x)
