"""What all layers that read a channel ask for: it stays for the one that wants it most, as a filter in the paper does.

Every layer has an order of its own and an error of its own for each place in it (`by_error.asked`). A 1x1 convolution
with strides has outputs to which one channel alone contributes, so that in many images every channel has the share 1
there: equal shares say nothing, and what other layers and the flow through this one say decides, never a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from secateur._protocols import FloatArray, IntArray
from secateur.methods.pfp.by_error import LEAST, asked

#: Shares from here on are 1 but for rounding.
SATURATED = 1.0 - 1e-5


@dataclass(frozen=True)
class Asking:
    """One layer. channels: which it reads, [n], each once. shares: their s_j there; flow: their shares of all that the
    layer sums up. alpha: of the layer."""

    channels: IntArray
    shares: FloatArray
    flow: FloatArray
    alpha: float

    @property
    def sensitivities(self) -> FloatArray:
        """s_j, with rounding taken away where they are 1."""
        return np.where(self.shares >= SATURATED, 1.0, self.shares)


def errors(readers: Sequence[Asking], widths: Sequence[int]) -> list[FloatArray]:
    """log ε of every channel of groups that are so wide: the largest error with which some layer still asks for it.

    In each layer equal shares stand in the order of the largest that another layer gives, then of the mean flow. In a
    group equal errors stand in the order of the second largest, then of the mean flow; they are told apart in the last
    digit.
    """
    count = sum(widths)
    flow = _mean(readers, count)
    best, second = _two_largest(((each.channels, each.sensitivities) for each in readers), count, -1.0)
    said = []
    for each in readers:
        own, at = each.sensitivities, each.channels
        others = np.where(own == best[at], second[at], best[at])
        said.append((at, asked(own, each.alpha, np.lexsort((-flow[at], -others, -own)))))
    most, next_most = _two_largest(said, count, LEAST)
    order = np.lexsort((-flow, -next_most, -most))
    found, ends = [], np.cumsum(widths)
    for end, width in zip(ends, widths, strict=True):
        mine = order[(order >= end - width) & (order < end)]
        found.append(_falling(most[mine])[np.argsort(mine)])
    return found


def _mean(readers: Iterable[Asking], count: int) -> FloatArray:
    """A channel's flow, the mean over all who read it."""
    total, number = np.zeros(count), np.zeros(count)
    for each in readers:
        total[each.channels] += each.flow
        number[each.channels] += 1
    return total / np.maximum(number, 1)


def _two_largest(
    said: Iterable[tuple[IntArray, FloatArray]], count: int, least: float
) -> tuple[FloatArray, FloatArray]:
    """The largest and the second largest value that is said of every channel; `least` where there is none."""
    best, second = np.full(count, least), np.full(count, least)
    for at, values in said:
        second[at] = np.maximum(second[at], np.minimum(best[at], values))
        best[at] = np.maximum(best[at], values)
    return best, second


def _falling(values: FloatArray) -> FloatArray:
    """Values that fall but for equal ones, each at least a digit below the one before."""
    result = values.copy()
    for k in range(1, len(result)):
        result[k] = min(result[k], np.nextafter(result[k - 1], -np.inf))
    return result
