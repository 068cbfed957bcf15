"""Gates of single samples that depend on the sample's class: D @ M, of random class weights and learnt entries.

Each group has entries of its own, M [K, C], and draws of its own; see `secateur.methods.cwb.method` for what they are
good for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from secateur._protocols import BoolArray, IntArray
from secateur.errors import ConfigError
from secateur.methods.kit.sample_gates import SampleGates


def class_weights(target: torch.Tensor, classes: int) -> torch.Tensor:
    """The certain part of D, [samples, classes]: 1 for the class of a sample, or the shares of a mixed one.

    Raises:
        ConfigError: the target is neither class numbers below `classes` nor shares of at most so many.
    """
    numbers = target.dim() == 1 and not target.is_floating_point()
    shares = target.dim() == 2 and target.is_floating_point() and target.shape[1] <= classes
    if not (numbers or shares):
        raise ConfigError(
            f"Gates depend on classes, and a target has the shape {tuple(target.shape)} and type {target.dtype}: give "
            "class numbers, one a sample, or class probabilities."
        )
    if shares:
        return F.pad(target.float(), (0, classes - target.shape[1]))
    if target.device.type == "cpu" and len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ConfigError(
            f"Class numbers go from {int(target.min())} to {int(target.max())}, and the network tells {classes} apart: "
            f"they must go from 0 to {classes - 1}."
        )
    return F.one_hot(target.long(), classes).float()


def gate(entries: torch.Tensor, weights: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
    """g = D @ M [samples, channels], from M [K, channels], the certain part of D [samples, K], and draws for the rest.

    uniform: in [0, 1), for the other classes; None: 0.
    """
    if uniform is not None:
        weights = weights + (1 - weights) * uniform
    return weights @ entries


def expected(entries: torch.Tensor, *, noise: bool) -> torch.Tensor:
    """The mean gate [channels] over draws and (equally frequent) classes.

    E[g | t] = S / 2 + M[t] / 2 with S = sum_k M[k], so that the mean over t is S / 2 (1 + 1 / K); without noise S / K.
    """
    total, classes = entries.sum(0), len(entries)
    return total * ((classes + 1) / (2 * classes)) if noise else total / classes


class ClassGates(SampleGates):
    """The gates in front of all readers; what they let through is set from outside, before the forward pass."""

    def __init__(self, model: nn.Module, tables: Mapping[str, IntArray], gated: BoolArray) -> None:
        """Insert hooks for the channels that are `gated`."""
        super().__init__(model, tables, torch.zeros(len(gated)), gated)

    def let(self, factors: torch.Tensor) -> None:
        """Multiply channels by these from now on, [samples or 1, live]."""
        self._set(factors)

    def uniform(
        self, groups: int, samples: int, classes: int, key: Sequence[int], device: torch.device
    ) -> torch.Tensor:
        """Draws from U[0, 1), [groups, samples, classes]: the same whenever the key is."""
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator(device).manual_seed(seed)
        return torch.rand(groups, samples, classes, generator=generator, device=device)

    def fold(self, twin: nn.Module, factors: torch.Tensor) -> None:
        """Take the gates out of a copy of the model, and multiply the weights behind them by `factors` [live]."""
        whole, done = torch.cat([factors, factors.new_ones(1)]), set()
        for name, index in self._index.items():
            layer = twin.get_submodule(name)
            for number, hook in list(layer._forward_pre_hooks.items()):
                if isinstance(hook, partial) and getattr(hook.func, "__self__", None) is self:
                    del layer._forward_pre_hooks[number]
                    layer._forward_pre_hooks_with_kwargs.pop(number, None)
            weight = layer.get_parameter("weight")
            if id(weight) not in done:  # two layers may share it, and read the same channels then
                done.add(id(weight))
                weight.mul_(_behind(layer, whole[index.to(whole.device)]).to(weight))


def _behind(layer: nn.Module, factors: torch.Tensor) -> torch.Tensor:
    """Factors of a layer's inputs as factors of its weight."""
    if not isinstance(layer, _ConvNd):
        return factors
    inner = [1] * len(layer.kernel_size)
    if layer.transposed:
        return factors.view(-1, 1, *inner)
    each = factors.view(layer.groups, -1).repeat_interleave(layer.out_channels // layer.groups, 0)
    return each.view(*each.shape, *inner)
