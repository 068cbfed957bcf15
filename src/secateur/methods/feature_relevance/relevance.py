"""Relevance of every channel for every class, by layer-wise relevance propagation in one pass over labelled data.

What is propagated starts as the target itself (1 at the true class), through the rules of `propagation`. Read is, for
every sample, the mean over positions of a channel's relevance where a group shows: behind the layers that make it or,
where their output is the branch of a sum, behind the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_sum
from secateur._protocols import IntArray
from secateur.errors import ConfigError, ModelError
from secateur.graph import Graph
from secateur.graph.channels import module_of
from secateur.graph.modules import call_with_copies, output_tensors, plain_kernels
from secateur.methods.feature_relevance.propagation import Call, Rule, Tape
from secateur.statistics.gather import Collector, pair, untouched


@dataclass(frozen=True, eq=False)
class Maker:
    """A layer that makes a group: output tensor `position`, dimension `dim`; channel c is at `index[c]`."""

    group: int
    module: str
    position: int
    dim: int
    index: IntArray


@dataclass(frozen=True, eq=False)
class Spot:
    """One activation in which a group is read."""

    maker: Maker
    number: int
    summed: bool
    depth: int  # layers with weights between the network's input and here


def makers(graph: Graph) -> list[Maker]:
    """The layers with weights that make each group; depthwise ones only where there is no other."""
    modules = dict(graph.model.named_modules())
    found = []
    for number, group in enumerate(graph.groups):
        names = {module_of(m.name) for m in group.producers() if len(graph.tensors()[m.name].shape) > 1}
        seen = [Maker(number, tap.module, tap.position, tap.dim, tap.index) for tap in graph.taps(group)]
        own = [maker for maker in seen if maker.module in names]
        found += [m for m in own if not _depthwise(modules[m.module])] or own
    return found


def _depthwise(module: Any) -> bool:
    return getattr(module, "groups", 1) > 1 and module.groups == getattr(module, "in_channels", 0)


class _Watched:
    """A forward pass under a tape, and which activations layers returned."""

    def __init__(self, model: nn.Module, layers: Sequence[Maker]) -> None:
        self.model, self.layers = model, layers
        self.tape = Tape()
        self.made: dict[str, list[list[int | None]]] = {}
        self._stack = ExitStack()

    def hooks(self) -> Iterable[RemovableHandle]:
        """From now on every forward pass is watched."""
        yield self.model.register_forward_pre_hook(self._enter, with_kwargs=True)
        for name in dict.fromkeys(maker.module for maker in self.layers):
            yield self.model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: self._note(name, output)
            )
        yield self.model.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.tape, self.made = Tape(), {}
        self.tape.start(output_tensors([args, kwargs]))
        self._stack = ExitStack()
        self._stack.enter_context(plain_kernels())
        self._stack.enter_context(self.tape)

    def _note(self, name: str, output: Any) -> None:
        self.made.setdefault(name, []).append([self.tape.number(t) for t in output_tensors(output)])

    def _leave(self, *_: Any) -> None:
        self._stack.close()

    def spots(self) -> list[Spot]:
        """Where groups are read: sums if a group has any, else what its makers return; none twice."""
        found: dict[tuple[int, int], Spot] = {}
        for maker in self.layers:
            for numbers in self.made.get(maker.module, []):
                number = numbers[maker.position] if maker.position < len(numbers) else None
                if number is not None:
                    end, summed = _behind(self.tape, number)
                    depth = self.tape.activations[number].depth
                    found.setdefault((maker.group, end), Spot(maker, end, summed, depth))
        with_sums = {spot.maker.group for spot in found.values() if spot.summed}
        return [spot for spot in found.values() if spot.summed or spot.maker.group not in with_sums]


def _behind(tape: Tape, number: int) -> tuple[int, bool]:
    """What a layer's output becomes: the sum it is a branch of, if nothing but norms and activations lies between."""
    at = number
    while len(tape.activations[at].readers) == 1:
        call: Call = tape.activations[at].readers[0]
        shapes = {tape.activations[n].shape for n in (*call.inputs, call.outputs[0])}
        if call.outputs[0] < 0 or len(shapes) > 1:
            break
        at = call.outputs[0]
        if call.kind == "share" and call.name.removesuffix("_") == "add":
            return at, True
        if call.kind != "pass":
            break
    return number, False


@dataclass(frozen=True)
class Layout:
    """What one pass will find: the group of every spot, in order, and the number of classes."""

    groups: tuple[int, ...]
    widths: tuple[int, ...]  # of every spot
    depths: tuple[int, ...]
    classes: int
    unknown: tuple[str, ...]  # operators without a rule of their own


@torch.no_grad()
def layout(model: nn.Module, layers: Sequence[Maker], inputs: Any) -> Layout:
    """Run once and see where groups are read; ModelError where the output is not one row of scores for every sample.

    One score is none of a class: there is no other it could be compared with.
    """
    watched = _Watched(model, layers)
    with untouched(model), ExitStack() as stack:
        for handle in watched.hooks():
            stack.callback(handle.remove)
        args, keywords = call_with_copies(pair((inputs, None), next(model.parameters()).device)[0])
        logits = output_tensors(model(*args, **keywords))[0]
    if logits.dim() != 2 or logits.shape[1] < 2 or watched.tape.number(logits) is None:
        raise ModelError(
            f"The output of {type(model).__name__} is {tuple(logits.shape)} and not [samples, two classes or more], "
            "so that relevance cannot start at a class: choose a method without labels."
        )
    spots = watched.spots()
    return Layout(
        tuple(spot.maker.group for spot in spots),
        tuple(len(spot.maker.index) for spot in spots),
        tuple(spot.depth for spot in spots),
        logits.shape[1],
        tuple(watched.tape.unknown),
    )


class Relevance(Collector):
    """Sums over the samples of every class of r[n, k], the mean over positions of channel k's relevance.

    sums: [classes, channels of all spots]; counts: [classes, 3], samples summed, samples seen, samples answered right.
    Both are added to in place; memory is theirs and, for one batch at a time, the activations of the network.
    """

    def __init__(self, layers: Sequence[Maker], sums: torch.Tensor, counts: torch.Tensor, rule: Rule) -> None:
        self.layers, self.sums, self.counts, self.rule = layers, sums, counts, rule

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Write down every forward pass."""
        self._watched = _Watched(model, self.layers)
        yield from self._watched.hooks()

    def see(self, output: Any, target: Any) -> None:
        """Propagate one batch back; samples whose relevance is not finite are left out of the sums."""
        logits, tape = output_tensors(output)[0].detach(), self._watched.tape
        shares = shares_of(target, logits)
        number, spots = tape.number(output_tensors(output)[0]), self._watched.spots()
        assert number is not None
        found = tape.walk(number, shares.to(logits), [spot.number for spot in spots], self.rule)
        rows = [_rows(found.get(spot.number), spot, len(logits)) for spot in spots]
        every = torch.cat([row.to(self.sums) for row in rows], 1) if rows else self.sums.new_zeros(len(logits), 0)
        if every.shape[1] != self.sums.shape[1]:
            raise ModelError("The network runs other layers on these data than on the example inputs: give it those.")
        sound = torch.isfinite(every).all(1)
        wide = shares.to(self.sums)
        self.sums += wide[sound].T @ every[sound]
        right = wide * F.one_hot(logits.argmax(1), logits.shape[1]).to(wide)
        self.counts += torch.stack([wide[sound].sum(0), wide.sum(0), right.sum(0)], 1).to(self.counts)
        self._watched.tape = Tape()  # activations are not kept any longer

    def total(self) -> None:
        """Add up over processes."""
        self.sums.copy_(global_sum(self.sums))
        self.counts.copy_(global_sum(self.counts))


def _rows(relevance: torch.Tensor | None, spot: Spot, samples: int) -> torch.Tensor:
    """[samples, width]: the mean over positions, summed over the places that a channel owns."""
    width = len(spot.maker.index)
    if relevance is None:
        return torch.zeros(samples, width)
    if len(relevance) % samples:
        raise ModelError(
            f"{spot.maker.module} makes {len(relevance)} rows where the batch has {samples} samples, so that its "
            "relevance cannot be told by sample: put the samples into the first dimension."
        )
    last = relevance.movedim(spot.maker.dim, -1)
    values = last.reshape(samples, -1, last.shape[-1]).mean(1)
    index = torch.from_numpy(np.ascontiguousarray(spot.maker.index)).to(relevance.device)
    return values[:, index].sum(2)


def shares_of(target: Any, logits: torch.Tensor) -> torch.Tensor:
    """[samples, classes]: 1 at the true class, or the probabilities of mixed images; ConfigError for anything else."""
    if isinstance(target, torch.Tensor) and target.device == logits.device:
        if target.shape == logits.shape and target.is_floating_point():
            one = bool((target >= 0).all()) and bool(((target.sum(1) - 1).abs() < 1e-2).all())
            if one:
                return target.to(logits)
        whole = target.shape == logits.shape[:1] and not target.is_floating_point()
        if whole and int(target.min()) >= 0 and int(target.max()) < logits.shape[1]:
            return F.one_hot(target.long(), logits.shape[1]).to(logits)
    raise ConfigError(
        "Relevance starts at the true class and the targets do not tell it: give one class number for every sample, "
        f"from 0 to {logits.shape[1] - 1}, or class probabilities that add up to 1 (several labels do not)."
    )


def class_factors(counts: torch.Tensor) -> torch.Tensor:
    """s_c = sigmoid(max a / a_c), a_c the share of class c answered right: 0.731 for the best class, 1 at a_c = 0."""
    accuracy = counts[:, 2] / counts[:, 1].clamp(min=1)
    best = accuracy.max()
    if best == 0:
        return torch.ones_like(accuracy)
    return torch.sigmoid(best / accuracy)


def channel_relevance(
    sums: torch.Tensor, counts: torch.Tensor, factors: torch.Tensor, found: Layout
) -> Mapping[int, torch.Tensor]:
    """v of every channel by number of group: |mean over classes of s_c times the class mean|, summed over spots."""
    seen = counts[:, 0] > 0
    means = sums[seen] / counts[seen, :1]
    flat = (factors[seen, None] * means).mean(0).abs()
    result: dict[int, torch.Tensor] = {}
    for group, part in zip(found.groups, flat.split(list(found.widths)), strict=True):
        result[group] = result[group] + part if group in result else part
    return result
