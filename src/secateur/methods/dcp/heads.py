"""Auxiliary classifiers inside a network, learnt on its features as they are: what they can tell, a layer must keep.

    F = mean over the image of relu(norm(O)), logits = theta F + b

norm: every channel's mean and variance over all images, without an affine. theta and b start at zero. Features are
gathered once; memory: images x channels of each head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from secateur.graph.modules import call_with_copies
from secateur.statistics.gather import untouched

#: The least variance of a channel, as a share of the mean over channels.
_LEAST = 0.01


def pivots(heads: int, blocks: int) -> list[int]:
    """After which of `blocks` blocks, counted from 1, heads stand: evenly, the last block is left to the network."""
    per = blocks // (heads + 1) + 1
    return [min(per * k, blocks - 1) for k in range(1, heads + 1)]


@dataclass(frozen=True)
class Head:
    """One classifier behind one module."""

    module: str
    mean: torch.Tensor
    deviation: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Logits [samples, classes]."""
        return F.linear(pooled(output, self.mean, self.deviation), self.weight, self.bias)


def pooled(output: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """F [samples, channels]."""
    shape = [1, -1, *[1] * (output.dim() - 2)]
    return F.relu((output - mean.view(shape)) / deviation.view(shape)).flatten(2).mean(2)


@torch.no_grad()
def _show(
    model: nn.Module,
    batches: Sequence[tuple[Any, Any]],
    modules: Sequence[str],
    note: Callable[[str, torch.Tensor], None],
) -> None:
    """Call `note` with what modules return, batch by batch; every process sees all of them, as it learns all of it."""
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        for name in modules:
            hook = model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: note(name, out))
            stack.callback(hook.remove)
        for inputs, _ in batches:
            args, keywords = call_with_copies(inputs)
            model(*args, **keywords)


def learn(
    model: nn.Module,
    batches: Sequence[tuple[Any, Any]],
    modules: Sequence[str],
    classes: int,
    loss: Callable[[Any, Any], torch.Tensor],
    *,
    epochs: int,
    rate: float = 0.05,
) -> list[Head]:
    """One head behind each of `modules`, whose outputs are [samples, channels, ...]; the model stays as it is."""
    sums: dict[str, list[torch.Tensor]] = {}

    def add(name: str, output: torch.Tensor) -> None:
        flat = output.transpose(0, 1).flatten(1).double()
        parts = [torch.full((1,), flat.shape[1], dtype=torch.float64), flat.sum(1), flat.square().sum(1)]
        sums[name] = [a + b.to(a) for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts

    _show(model, batches, modules, add)
    norms = {}
    for name, (count, total, square) in sums.items():
        mean = total / count.to(total)
        variance = (square / count.to(total) - mean.square()).clamp_min(0)
        # a channel that hardly ever moves would be blown up, and with it whatever the cut does to it
        norms[name] = (mean.float(), (variance + 1e-5 + _LEAST * variance.mean()).sqrt().float())
    features: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    _show(model, batches, modules, lambda n, x: features[n].append(pooled(x, *norms[n])))
    targets = [target for _, target in batches]
    found = []
    for name in modules:
        weight, bias = _classifier(features[name], targets, classes, loss, epochs, rate)
        found.append(Head(name, *norms[name], weight, bias))
    return found


@torch.enable_grad()
def _classifier(
    features: Sequence[torch.Tensor],
    targets: Sequence[Any],
    classes: int,
    loss: Callable[[Any, Any], torch.Tensor],
    epochs: int,
    rate: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = features[0].new_zeros(classes, features[0].shape[1], requires_grad=True)
    bias = features[0].new_zeros(classes, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], rate)
    for _ in range(epochs):
        for x, target in zip(features, targets, strict=True):
            optimiser.zero_grad()
            loss(F.linear(x, weight, bias), target).backward()
            optimiser.step()
    return weight.detach(), bias.detach()
