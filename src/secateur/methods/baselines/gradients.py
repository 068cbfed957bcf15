"""Gradients of a loss over data, without leaving a trace in the user's model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from secateur._defaults import own_defaults
from secateur.errors import ConfigError
from secateur.graph.modules import call_with_copies
from secateur.statistics.gather import pair


@own_defaults
def accumulate_gradients(
    model: nn.Module, data: Iterable[Any], loss: Callable[[Any, Any], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return dL/dw by parameter name, the mean over the batches of `data`.

    data: batches (inputs, target); inputs is what the model takes: a tensor, a tuple of arguments or a dict of
        keywords.
    loss: loss(output, target) -> scalar tensor.

    The model runs in eval mode: in training mode a filter in front of a batch norm has a gradient orthogonal to
    itself, so that first-order importances of filters vanish. Parameters, `.grad`, buffers and training modes are
    left as they were; parameters that require no gradient get one here all the same. A parameter the loss does not
    reach has no entry.
    """
    modes = [(module, module.training) for module in model.modules()]
    # leaves of our own that share the memory of the parameters; in-place updates of buffers hit copies
    leaves = {
        name: value.detach().requires_grad_() for name, value in model.named_parameters() if _differentiable(value)
    }
    sums: dict[str, torch.Tensor] = {}
    batches = 0
    try:
        model.eval()
        for batch in data:
            _add(sums, leaves, _gradients(model, leaves, batch, loss))
            batches += 1
    finally:
        for module, mode in modes:
            module.training = mode
    if not batches:
        raise ConfigError("The data for the gradients are empty: give at least one batch of (inputs, target).")
    result = {name: total.div_(batches) for name, total in sums.items()}
    # a tied parameter is one leaf; its other names get the same gradient
    first = {id(value): name for name, value in model.named_parameters()}
    names = model.named_parameters(remove_duplicate=False)
    return {name: result[first[id(value)]] for name, value in names if first[id(value)] in result}


def _gradients(
    model: nn.Module, leaves: Mapping[str, torch.Tensor], batch: Any, loss: Callable[[Any, Any], torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of one batch in the order of the leaves, None where the loss does not reach."""
    inputs, target = pair(batch, next(iter(leaves.values())).device if leaves else torch.device("cpu"))
    args, keywords = call_with_copies(inputs)
    state = dict(leaves) | {name: value.detach().clone() for name, value in model.named_buffers()}
    with torch.enable_grad():
        value = loss(torch.func.functional_call(model, state, args, keywords), target)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ConfigError(
                "The loss does not give one number that depends on the model's parameters: return a scalar tensor."
            )
        if not torch.isfinite(value):
            raise ConfigError(f"The loss is {value.item()}: check the data and the loss.")
        return torch.autograd.grad(value.reshape(()), list(leaves.values()), allow_unused=True)


def _add(
    sums: dict[str, torch.Tensor], leaves: Mapping[str, torch.Tensor], gradients: Iterable[torch.Tensor | None]
) -> None:
    """Add gradients to the running sums, in float32 at least."""
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            sums[name] = sums[name].add_(wide) if name in sums else wide.clone()


def _differentiable(value: torch.Tensor) -> bool:
    """Say whether a gradient can exist for this dtype."""
    return value.is_floating_point() or value.is_complex()
