"""One pass over the data for all that is to be learnt from it: collectors watch a model, `gather` shows it batches.

A collector keeps sums (or maxima) over samples, never the samples themselves unless it says how many, so that any batch
size and any number of processes come to the same. Memory is what its own docstring states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur._distributed import rank, world
from secateur._progress import follow
from secateur.batches import listed
from secateur.errors import ConfigError, InputError
from secateur.graph.modules import as_call, call_with_copies, map_tensors

Loss = Callable[[Any, Any], torch.Tensor]


class Collector:
    """What is learnt by watching a model in evaluation, batch by batch; a subclass overrides the hooks it needs."""

    #: Whether gradients of the loss with respect to activations are needed: then a backward pass follows each forward.
    gradients: ClassVar[bool] = False

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hook into `model`; the handles are removed when the pass ends."""
        return ()

    def see(self, output: Any, target: Any) -> None:
        """Follow one batch, after forward and backward; sums over samples."""

    def total(self) -> None:
        """Add up over processes, once, at the end: `secateur._distributed.global_sum` or `global_max`."""


def gather(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    collectors: Sequence[Collector],
    loss: Loss | None = None,
) -> int:
    """Show all batches to all collectors in one pass and return the number of samples.

    Args:
        model: runs in evaluation mode; parameters, gradients, buffers and modes are left as they were.
        batches: (inputs, target). Of several processes each takes its share of the batches.
        loss: loss(output, target), the mean over samples; needed if a collector wants gradients. What is
            differentiated is the sum over samples, so that the gradient at an activation is each sample's own.

    Raises:
        ConfigError: there is no batch, no loss, or the loss is not one finite number. InputError: no pair.
    """
    backward = any(collector.gradients for collector in collectors)
    if backward and loss is None:
        raise ConfigError("The gradients of a loss are needed and no loss is given: pass loss(output, target).")
    device, samples, shown = _device(model), 0, 0
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        for collector in collectors:
            for handle in collector.watch(model):
                stack.callback(handle.remove)
        for number, batch in enumerate(follow("batches", batches)):
            shown += 1
            inputs, target = pair(batch, device)
            samples += count(inputs)
            if number % world() != rank():
                continue
            output = _forward(model, inputs, target, loss if backward else None)
            for collector in collectors:
                collector.see(output, target)
    if not shown:
        raise ConfigError("The data are empty: give at least one batch of (inputs, target).")
    for collector in collectors:
        collector.total()
    return samples


def _forward(model: nn.Module, inputs: Any, target: Any, loss: Loss | None) -> Any:
    args, keywords = call_with_copies(inputs)
    if loss is None:
        with torch.no_grad():
            return model(*args, **keywords)
    with torch.enable_grad():
        # parameters are left out of the graph; what flows from the inputs makes all activations part of it
        args, keywords = map_tensors((args, keywords), _flowing)
        output = model(*args, **keywords)
        value = loss(output, target)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ConfigError(
                "The loss does not give one number that depends on the model's output: return a scalar tensor."
            )
        if not torch.isfinite(value):
            raise ConfigError(f"The loss is {value.item()}: check the data and the loss.")
        (value.reshape(()) * count(inputs)).backward()
    return output


def _flowing(tensor: torch.Tensor) -> torch.Tensor:
    """An input through which gradients flow; no leaf, so that a model may change it in place."""
    return tensor.requires_grad_().clone() if tensor.is_floating_point() else tensor


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, the model evaluates and its parameters need no gradients; modes, flags and buffers come back after."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def replayable(batches: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
    """Batches that can be gone through several times.

    batches: returned as they are, or kept in a list if they come once only.
    """
    return list(batches) if isinstance(batches, Iterator) else batches


def pair(batch: Any, device: torch.device) -> tuple[Any, Any]:
    """Inputs and target of one batch, detached, on `device`; InputError if it is no pair.

    Inputs are a copy: a model may change them in place, and others look at the batch again.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(f"A batch is {type(batch).__name__}: every batch must be a pair (inputs, target).")
    inputs = map_tensors(batch[0], lambda tensor: tensor.detach().to(device, copy=True))
    return inputs, map_tensors(batch[1], lambda tensor: tensor.detach().to(device))


def count(inputs: Any) -> int:
    """Samples in one batch of inputs: the length of the first tensor, or of the first list of tensors (detectors)."""
    args, keywords = as_call(inputs)
    values = (*args, *keywords.values())
    tensors = (value for value in values if isinstance(value, torch.Tensor) and value.ndim)
    for value in (*tensors, *filter(listed, values)):
        return len(value)
    raise InputError("A batch has no tensor among its inputs: give pairs (inputs, target).")


def rows(inputs: Any) -> int:
    """Samples in one batch, for those that take it apart; InputError if they are a list of tensors."""
    samples = count(inputs)
    args, keywords = as_call(inputs)
    if not any(isinstance(value, torch.Tensor) and value.ndim for value in (*args, *keywords.values())):
        raise InputError(
            "Samples are followed one by one here, along the first dimension of a tensor, and these inputs are a list "
            "of tensors: choose another method, or the repairs compensation and batchnorm."
        )
    return samples


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
