"""Thresholds: from mean saliencies and a remaining rate that falls by a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def remaining(target: float, done: float) -> float:
    """r = (1 - t) / 2 cos(pi done) + (1 + t) / 2.

    target: t, the rate in the end. done: the share of training that is over, (e + 1) / E after epoch e.
    """
    return (1 - target) / 2 * math.cos(math.pi * done) + (1 + target) / 2


def kth(means: torch.Tensor, rate: float) -> float:
    """The ceil(rate C)-th largest of C mean saliencies [C]: the threshold xi."""
    k = min(max(math.ceil(rate * len(means) - 1e-9), 1), len(means))
    return float(means.sort(descending=True).values[k - 1])


def between(means: torch.Tensor, rate: float, top: float) -> float:
    """A threshold that is `kth` where rate C is a whole number, and moves evenly between these.

    means: mean saliencies [C]. rate: from 0, the threshold `top`, to 1, the least mean saliency, and from there to 2,
    the threshold 0: more than the paper's schedule leaves. top: at least the largest saliency of any image.
    """
    ordered: list[float] = [max(top, float(means.max())), *means.sort(descending=True).values.tolist(), 0.0]
    at = rate * len(means) if rate <= 1 else len(means) + rate - 1
    k = math.ceil(at - 1e-9)
    return ordered[k] + (k - at) * (ordered[max(k - 1, 0)] - ordered[k])


def largest_rate(met: Callable[[float], bool], most: float = 1.0, steps: int = 14) -> float:
    """The largest rate in [0, most] that meets a bound which lower rates meet more easily, by bisection."""
    if met(most):
        return most
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if met(middle) else (low, middle)
    return low
