"""The loss further on as a quadratic form of a layer's answers, from one pass forward and back of the whole network.

With g the gradient of a sample's loss L_S at one of the P places of a layer's answer O, and d = O - Y what O has moved:

    L_S(O) - L_S(Y) ~ sum over places g·d + 1/2 (sum over places g·d)²     F = E[g gᵀ], the empirical Fisher matrix, as
                    <= sum over places g·d + 1/2 P |g|² |d|²               curvature (Gauss-Newton); Cauchy-Schwarz

With L_M = mean of |d|² / 2C over places and C outputs, L_M + lambda L_S is least squares again, with a weight and
another target for every place, so that second moments hold all of it:

    a = 1 + lambda C P² |g|²     Y' = Y - lambda C P g / a     L = mean of a |O - Y'|² / 2C + what does not depend on O
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.graph.modules import call_with_copies
from secateur.methods.dcp.greedy import Reconstruction
from secateur.methods.dcp.heads import Head
from secateur.statistics.gather import count
from secateur.statistics.samples import PatchSums, Places, Sampler, answers, patches_at

_Blocks = Iterable[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Slopes:
    """g of one layer at the places that are looked at, batch by batch [places, outputs], in bfloat16.

    places: P of one sample. loss: L_S of the whole network, a mean over samples.
    """

    places: float = 0.0
    loss: float = 0.0
    blocks: list[torch.Tensor] = field(default_factory=list)

    def joint(self, blocks: _Blocks, weight: float, *, constant: bool, alone: bool = False) -> Reconstruction:
        """L_M + lambda L_S of a layer's weights; `alone`: without L_M.

        blocks: patches and answers at the same places, in the same order. weight: lambda.
        """
        g_all, first = torch.cat(self.blocks), 0
        found: PatchSums | None = None
        fixed = 0.0  # what completing the square has added, over all places
        for seen, wanted in blocks:
            g = g_all[first : first + len(seen)].to(wanted)
            first += len(seen)
            outputs = g.shape[1]
            a = float(not alone) + weight * outputs * self.places**2 * g.square().sum(1)
            pull = weight * outputs * self.places * g
            moved = torch.where(a[:, None] > 0, pull / a[:, None], 0.0)
            fixed += float((pull * moved).sum(dtype=torch.float64))
            if found is None:
                found = PatchSums(seen.shape[1], seen.shape[2], outputs, seen.device)
            found.add(seen, wanted - moved, a)
        assert found is not None  # there is no stop without a batch
        offset = weight * self.loss - fixed / (2 * first * found.y.numel())
        return Reconstruction(found.finite(), constant=constant, places=first, offset=0.0 if alone else offset)


def loss_slopes(
    model: nn.Module,
    batches: Sequence[tuple[Any, Any]],
    behind: Mapping[str, Head | None],
    loss: Callable[[Any, Any], torch.Tensor],
    sampler: Sampler,
    memory: float,
) -> dict[str, Slopes] | None:
    """g of all layers; None if all together would take more bytes than `memory`.

    behind: for every layer the classifier whose loss counts for it, None: the network's own.
    """
    found = {name: Slopes() for name in behind}
    images = sum(count(inputs) for inputs, _ in batches)
    for number, (inputs, target) in enumerate(batches):
        own = count(inputs)
        for name, g, places, value in _gradients(model, inputs, target, behind, loss, sampler, number):
            linear = isinstance(model.get_submodule(name), nn.Linear)
            layer = found[name]
            layer.places = g[0].numel() * len(g) / (own * g.shape[-1 if linear else 1])
            layer.loss += value * own / images
            layer.blocks.append((places.values(g, channels_last=linear) * own).bfloat16())
        if number == 0 and sum(s.blocks[0].nbytes for s in found.values()) * images / own > memory:
            return None
    return found


@torch.enable_grad()
def _gradients(
    model: nn.Module,
    inputs: Any,
    target: Any,
    behind: Mapping[str, Head | None],
    loss: Callable[[Any, Any], torch.Tensor],
    sampler: Sampler,
    number: int,
) -> Iterator[tuple[str, torch.Tensor, Places, float]]:
    """Of every layer its name, dL/dO of the batch's mean loss, the places looked at, and L."""
    probes: dict[str, torch.Tensor] = {}
    places: dict[str, Places] = {}
    losses: dict[str | None, torch.Tensor] = {}

    def probe(name: str) -> Callable[..., torch.Tensor]:
        def add(layer: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            probes[name] = torch.zeros_like(output, requires_grad=True)
            places[name] = sampler.places(layer, number, args[0])
            return output + probes[name]  # a sum, as what follows may write into an answer

        return add

    def judge(head: Head) -> Callable[..., None]:
        return lambda _, __, output: losses.__setitem__(head.module, loss(head(output), target))

    with ExitStack() as stack:
        for name in behind:
            stack.callback(model.get_submodule(name).register_forward_hook(probe(name)).remove)
        for head in {id(h): h for h in behind.values() if h is not None}.values():
            stack.callback(model.get_submodule(head.module).register_forward_hook(judge(head)).remove)
        args, keywords = call_with_copies(inputs)
        output = model(*args, **keywords)
    if any(head is None for head in behind.values()):
        losses[None] = loss(output, target)
    for end, value in losses.items():
        names = [name for name, head in behind.items() if (head.module if head else None) == end]
        found = torch.autograd.grad(value, [probes[n] for n in names], retain_graph=True, allow_unused=True)
        for name, g in zip(names, found, strict=True):
            yield name, torch.zeros_like(probes[name]) if g is None else g, places[name], float(value.detach())


@torch.no_grad()
def dense_blocks(model: nn.Module, batches: Sequence[Any], layer: str, sampler: Sampler) -> Iterator[Any]:
    """Patches and answers (without its bias) of one layer of the whole network, batch by batch."""
    module: Any = model.get_submodule(layer)
    for number, inputs in enumerate(batches):
        read: list[torch.Tensor] = []
        hook = module.register_forward_pre_hook(lambda _, args, read=read: read.append(args[0]))
        try:
            args, keywords = call_with_copies(inputs)
            model(*args, **keywords)
        finally:
            hook.remove()
        numbers = module.weight[0].numel() * getattr(module, "groups", 1)
        for part, places in sampler.places(module, number, read[0]).parts(numbers):
            seen = patches_at(module, read[0][part], places)
            yield seen, answers(module, seen, module.weight, None)
