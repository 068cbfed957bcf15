"""One layer's time over its two widths: measured at some of them, a staircase in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from secateur._protocols import BoolArray, FloatArray, IntArray

_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
_MOST_WHOLE = 6  # widths that are measured as they are, along one side


def points(widths: Iterable[int], step: int, *, prunable: bool) -> tuple[int, ...]:
    """Where to measure a side that is as wide as `widths`, ascending: those, and multiples of `step` below."""
    wide = sorted(set(widths))
    if not prunable:
        return tuple(wide)
    whole = wide if len(wide) <= _MOST_WHOLE else [wide[0], wide[-1]]
    steps = {step, *(max(step, round(share * wide[-1] / step) * step) for share in _SHARES)}
    return tuple(sorted({width for width in steps if width <= wide[-1]} | set(whole)))


@dataclass(frozen=True)
class Grid:
    """Microseconds [outs, ins] at these widths, rising with both.

    step: runtimes pad a width up to its next multiple. penalty: how much longer a layer takes whose outputs, or inputs,
    are no multiple, beyond what the padding costs; 1 at the widths that were measured.
    """

    outs: FloatArray
    ins: FloatArray
    times: FloatArray
    step: int
    penalty: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of(cls, times: Mapping[tuple[int, int], float], step: int, penalty: tuple[float, float]) -> Grid:
        """From the time at every pair of an output and an input width."""
        outs, ins = (np.array(sorted({pair[k] for pair in times}), dtype=np.float64) for k in (0, 1))
        table = np.array([[times[int(a), int(b)] for b in ins] for a in outs], dtype=np.float64)
        return cls(outs, ins, rising(table), step, penalty)

    def at(self, out: FloatArray, into: FloatArray) -> FloatArray:
        """Microseconds at these widths [...], never less where a layer is wider: what an allocator may count on."""
        i, s = _place(self.outs, _padded(self.outs, out, self.step))
        j, t = _place(self.ins, _padded(self.ins, into, self.step))
        above, beside = np.minimum(i + 1, len(self.outs) - 1), np.minimum(j + 1, len(self.ins) - 1)
        low = self.times[i, j] * (1 - s) + self.times[above, j] * s
        high = self.times[i, beside] * (1 - s) + self.times[above, beside] * s
        found: FloatArray = low * (1 - t) + high * t
        return found

    def expected(self, out: FloatArray, into: FloatArray) -> FloatArray:
        """Microseconds at these widths, with the penalty for odd ones: what to expect of a plan."""
        odd = [_odd(self.outs, out, self.step), _odd(self.ins, into, self.step)]
        factor = np.where(odd[0], self.penalty[0], 1.0) * np.where(odd[1], self.penalty[1], 1.0)
        found: FloatArray = self.at(out, into) * factor
        return found


def rising(table: FloatArray) -> FloatArray:
    """The table made to rise along both sides: noise is shared between neighbours, then no step goes down."""
    for _ in range(3):
        for axis in (0, 1):
            up = np.maximum.accumulate(table, axis)
            down = np.flip(np.minimum.accumulate(np.flip(table, axis), axis), axis)
            table = (up + down) / 2
    return np.maximum.accumulate(np.maximum.accumulate(table, 0), 1)


def _padded(measured: FloatArray, widths: FloatArray, step: int) -> FloatArray:
    """The widths a runtime computes: up to the next multiple, or to a width that was measured as it is."""
    following = measured[np.minimum(np.searchsorted(measured, widths), len(measured) - 1)]
    padded: FloatArray = np.minimum(np.ceil(widths / step) * step, following)
    return padded


def _odd(measured: FloatArray, widths: FloatArray, step: int) -> BoolArray:
    odd: BoolArray = (widths % step != 0) & ~np.isin(widths, measured)
    return odd


def _place(measured: FloatArray, widths: FloatArray) -> tuple[IntArray, FloatArray]:
    """The number of the point below each width, and how far it is to the next one, from 0 to 1."""
    i = np.clip(np.searchsorted(measured, widths, side="right") - 1, 0, max(len(measured) - 2, 0))
    gap = measured[np.minimum(i + 1, len(measured) - 1)] - measured[i]
    return i, np.clip((widths - measured[i]) / np.maximum(gap, 1e-9), 0.0, 1.0)
