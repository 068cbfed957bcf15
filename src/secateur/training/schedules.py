"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from functools import lru_cache

from secateur.errors import ConfigError
from secateur.recipe import Training, steps

_ONE_CYCLE_RISE = 0.3  # share of the stage, where no warm-up is given
_ONE_CYCLE_START, _ONE_CYCLE_END = 25.0, 1e4  # the rate begins at lr / 25 and ends at a 1e4th of that, as in PyTorch


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step number `step` (from 0) of a stage.

    training: the stage's section of the recipe. steps_per_epoch: optimiser steps of one epoch.

    The warm-up rises linearly and reaches the full rate with its last step; a schedule's milestones and end count from
    the start of the stage. For one-cycle the warm-up is the length of the rise (0: three tenths of the stage). That of
    a schedule of PyTorch's or timm's rises to what the schedule says.

    Raises:
        ConfigError: such a schedule gives no rate for a stage of this length.
    """
    total, rise = training.epochs * steps_per_epoch, training.warmup * steps_per_epoch
    if isinstance(training.schedule, steps.Chosen):
        rates, each = _rates(training.schedule, training.lr, training.epochs, steps_per_epoch)
        return rates[step // each] * min((step + 1) / rise if rise else 1.0, 1.0)
    if training.schedule == "onecycle":
        return _one_cycle(training.lr, step, total, rise or _ONE_CYCLE_RISE * total)
    if step + 1 < rise:
        return training.lr * (step + 1) / rise
    if training.schedule == "cosine":
        return training.lr * 0.5 * (1 + math.cos(math.pi * max(step - rise, 0) / max(total - rise, 1)))
    if training.schedule == "step":
        return training.lr * training.gamma ** sum(step >= milestone * total for milestone in training.milestones)
    return training.lr


@lru_cache(maxsize=8)
def _rates(chosen: steps.Chosen, lr: float, epochs: int, steps_per_epoch: int) -> tuple[tuple[float, ...], int]:
    """See `secateur.recipe.steps.rates`."""
    try:
        return steps.rates(chosen, lr, epochs, steps_per_epoch)
    except ValueError as error:
        raise ConfigError(f"The schedule of {epochs} epochs of {steps_per_epoch} steps: {error}.") from error


def _one_cycle(lr: float, step: int, total: int, rise: float) -> float:
    """Half a cosine up to `lr`, half a cosine down to almost nothing (Smith and Topin, arXiv 1708.07120)."""
    start, top = lr / _ONE_CYCLE_START, rise - 1
    if step <= top:
        return _between(start, lr, step / top if top > 0 else 1.0)
    return _between(lr, start / _ONE_CYCLE_END, (step - top) / max(total - 1 - top, 1))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
