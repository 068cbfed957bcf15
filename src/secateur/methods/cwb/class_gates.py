"""Gates of single samples that depend on the sample's class: D @ M, of random class weights and learnt entries.

Each group has entries of its own, M [K, C], and draws of its own; see `secateur.methods.cwb.method` for what they are
good for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.methods.kit.folded_gates import FoldedGates


def class_weights(target: torch.Tensor, classes: int) -> torch.Tensor:
    """The certain part of D, [samples, classes]: 1 for the class of a sample, or the shares of a mixed one.

    Raises:
        ConfigError: the target is neither class numbers below `classes` nor shares of at most so many that add up to 1.
    """
    numbers = target.dim() == 1 and not target.is_floating_point()
    shares = target.dim() == 2 and target.is_floating_point() and target.shape[1] <= classes
    if not (numbers or shares):
        raise ConfigError(
            f"Gates depend on classes, and a target has the shape {tuple(target.shape)} and type {target.dtype}: give "
            "class numbers, one a sample, or class probabilities."
        )
    if shares:
        if target.device.type == "cpu" and bool(((target < 0).any(1) | ((target.sum(1) - 1).abs() > 1e-2)).any()):
            raise ConfigError(
                "Gates depend on the class of a sample, and the targets are no class probabilities, which add up to 1 "
                "(several labels do not): choose another method."
            )
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


class ClassGates(FoldedGates):
    """The gates in front of all readers, and the draws they are made of."""

    def uniform(
        self, groups: int, samples: int, classes: int, key: Sequence[int], device: torch.device
    ) -> torch.Tensor:
        """Draws from U[0, 1), [groups, samples, classes]: the same whenever the key is."""
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator(device).manual_seed(seed)
        return torch.rand(groups, samples, classes, generator=generator, device=device)
