"""One layer's time over its two widths: measured at some of them, a staircase in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from secateur._protocols import FloatArray, IntArray

_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
_FOUR = 4  # multiples of it are better to many runtimes than odd widths are, though no multiples of their step
_LEAST = 0.5  # of the next multiple: an odd width takes no less, however noisy the times
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
class Odd:
    """What a layer takes whose outputs, or inputs, are no multiple of the step.

    Runtimes may compute such a layer in another way, which need not pad, and may change layouts in front of it:

        microseconds = a + b · outputs + c · inputs + d · outputs · inputs

    At multiples of `_FOUR` that way is not needed, and what is measured there is how many times as long they take as
    the step's next multiple.
    """

    surface: tuple[float, float, float, float] | None = None
    four: float = 1.0

    @classmethod
    def of(cls, times: Mapping[tuple[int, int], float], four: float = 1.0) -> Odd:
        """From microseconds at (outputs, inputs), none or few; sides that do not vary there have no terms."""
        if not times:
            return cls(four=four)
        out, into = np.array(list(times), dtype=np.float64).T
        terms = _terms(out, into)
        outs, ins = np.ptp(out) > 0, np.ptp(into) > 0
        kept = np.array([True, outs, ins, outs and ins])
        found = np.zeros(4)
        found[kept] = np.linalg.lstsq(terms[:, kept], np.array(list(times.values())))[0]
        a, b, c, d = found.tolist()
        return cls((a, b, c, d), four)

    def factor(self, widths: FloatArray, out: FloatArray, into: FloatArray, padded: FloatArray) -> FloatArray:
        """How many times `padded`, the microseconds of the next multiples, a layer takes; widths: of the odd side."""
        odd = padded if self.surface is None else _terms(out, into) @ np.array(self.surface)
        found: FloatArray = np.where(widths % _FOUR == 0, self.four, np.maximum(odd / padded, _LEAST))
        return found


@dataclass(frozen=True)
class Grid:
    """Microseconds [outs, ins] at these widths, rising with both.

    step: runtimes pad a width up to its next multiple. odd: outputs, and inputs, that are no multiple.
    """

    outs: FloatArray
    ins: FloatArray
    times: FloatArray
    step: int
    odd: tuple[Odd, Odd] = (Odd(), Odd())

    @classmethod
    def of(cls, times: Mapping[tuple[int, int], float], step: int, odd: tuple[Odd, Odd] = (Odd(), Odd())) -> Grid:
        """From the time at every pair of an output and an input width."""
        outs, ins = (np.array(sorted({pair[k] for pair in times}), dtype=np.float64) for k in (0, 1))
        table = np.array([[times[int(a), int(b)] for b in ins] for a in outs], dtype=np.float64)
        return cls(outs, ins, rising(table), step, odd)

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
        """Microseconds at these widths, odd ones as they are: what to expect of a plan."""
        padded = self.at(out, into)
        found = padded
        for measured, widths, odd in ((self.outs, out, self.odd[0]), (self.ins, into, self.odd[1])):
            short = _padded(measured, widths, self.step) > widths
            found = found * np.where(short, odd.factor(widths, out, into, padded), 1.0)
        return found


def rising(table: FloatArray) -> FloatArray:
    """The table made to rise along both sides: noise is shared between neighbours, then no step goes down."""
    for _ in range(3):
        for axis in (0, 1):
            up = np.maximum.accumulate(table, axis)
            down = np.flip(np.minimum.accumulate(np.flip(table, axis), axis), axis)
            table = (up + down) / 2
    return np.maximum.accumulate(np.maximum.accumulate(table, 0), 1)


def _terms(out: FloatArray, into: FloatArray) -> FloatArray:
    return np.stack([np.ones_like(out), out, into, out * into], axis=-1)


def _padded(measured: FloatArray, widths: FloatArray, step: int) -> FloatArray:
    """The widths a runtime computes: up to the next multiple, or to a width that was measured as it is."""
    following = measured[np.minimum(np.searchsorted(measured, widths), len(measured) - 1)]
    padded: FloatArray = np.minimum(np.ceil(widths / step) * step, following)
    return padded


def _place(measured: FloatArray, widths: FloatArray) -> tuple[IntArray, FloatArray]:
    """The number of the point below each width, and how far it is to the next one, from 0 to 1."""
    i = np.clip(np.searchsorted(measured, widths, side="right") - 1, 0, max(len(measured) - 2, 0))
    gap = measured[np.minimum(i + 1, len(measured) - 1)] - measured[i]
    return i, np.clip((widths - measured[i]) / np.maximum(gap, 1e-9), 0.0, 1.0)
