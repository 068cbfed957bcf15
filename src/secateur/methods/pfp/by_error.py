"""One relative error for all layers: how many channels each group needs so that no output is further off than that.

Channels j of a group with sensitivities s_j, S = Σ s_j and q_j = s_j / S, are drawn m times with probabilities q. For a
relative error ε it takes, with a number α of the layer,

    m(ε) = ⌈K (6 + 2ε) α S / ε²⌉ draws, of which on average u(m) = ⌈Σ_j 1 - (1 - q_j)^m⌉ are different channels.

u(m(ε)) falls as ε grows, so channel number w of a group (best first) is asked for up to some largest ε(w). One
threshold on these is one ε for the whole network: `asked` gives them as scores, and any cost can be the bound.

Source: Liebenwein, Baykal, Lang, Feldman, Rus, arXiv:1911.07412, with the constants of the authors' code.
"""

from __future__ import annotations

import math

import numpy as np

from secateur._protocols import FloatArray, IntArray

K = 3.0
#: c of the logarithms, and the probability δ that the bound fails.
C, DELTA = 3.0, 1e-16
#: Between which errors one is looked for; log ε beyond them is given to the first channel, and to those without share.
LEAST, MOST = math.log(1e-300), math.log(1e150)
#: Numbers of channels looked at together, and steps in which their draws are found: far more than it takes.
_ROWS, _NEWTON = 256, 60


def difficulty(positions: int, kernel: int, delta: float = DELTA) -> float:
    """α = 2c ln(8 (P + 1) k² / δ) of a layer with P output positions and k² weights from one channel to one output."""
    return 2 * C * math.log(8 * (positions + 1) * kernel / delta)


def draws(total: float, alpha: float, error: float) -> float:
    """m(ε) of sensitivities that add up to `total`; infinite where ε is too small for floating point."""
    if total <= 0:
        return 1.0
    with np.errstate(over="ignore", divide="ignore"):
        ratio = np.float64(6.0) / error / error + np.float64(2.0) / error
        return float(max(1.0, np.ceil(K * ratio * alpha * total)))


def different(shares: FloatArray, times: float) -> float:
    """How many different channels `times` draws give on average; q of shares adds up to 1."""
    return float(_different(_rates(shares), np.array([times]))[0])


def needed(shares: FloatArray, counts: FloatArray) -> FloatArray:
    """The least whole numbers of draws that give more than `counts` different channels on average; infinite if none."""
    rates = _rates(shares)
    result = np.full(len(counts), np.inf)
    order = np.flatnonzero(counts < len(rates))
    grid = np.append(0.0, np.geomspace(1.0, 40.0 / max(-rates.max(initial=-1.0), 1e-290), 512))
    known = _different(rates, grid)
    for some in np.split(order, range(_ROWS, len(order), _ROWS)):
        times = grid[np.maximum(np.searchsorted(known, counts[some], side="right") - 1, 0)]
        for _ in range(_NEWTON):  # from the left, where a concave function lies below its tangents, never beyond
            not_yet = np.exp(times[:, None] * rates)  # probabilities that a channel is not among those drawn
            missing = counts[some] - len(rates) + not_yet.sum(1)
            step = np.where(missing > 0, missing / np.maximum(-not_yet @ rates, 1e-300), 0.0)
            times = times + step
            if (step <= 1e-6 + 1e-9 * times).all():
                break
        whole = np.maximum(np.floor(times * (1 - 1e-9) - 1e-6), 0.0)
        for _ in range(2):  # rounding
            whole = np.where(_different(rates, whole) <= counts[some] + 1e-12, np.floor(whole + 1.0), whole)
        result[some] = whole
    return result


def _rates(shares: FloatArray) -> FloatArray:
    """log(1 - q) of the channels that can be drawn; finite."""
    with np.errstate(divide="ignore"):
        rates = np.log1p(-np.minimum(shares[shares > 0], 1.0))
    return np.asarray(np.maximum(rates, -1e3))


def _different(rates: FloatArray, times: FloatArray) -> FloatArray:
    return np.asarray(-np.expm1(times[:, None] * rates).sum(1))


def wanted(sensitivities: FloatArray, alpha: float, error: float) -> int:
    """C'(ε): how many channels of one group this error asks for."""
    total = float(sensitivities.sum())
    if total <= 0:
        return 1
    found = different(sensitivities / total, draws(total, alpha, error))
    return max(1, min(math.ceil(found - 1e-9), int(np.count_nonzero(sensitivities))))


def asked(sensitivities: FloatArray, alpha: float, order: IntArray | None = None) -> FloatArray:
    """log ε of every channel [width]: the largest error that still asks for so many channels, best first.

    The most sensitive channel is always asked for; those that never contribute only if there is room.

    order: the channels by falling sensitivity, where there is more to say of equal ones than their numbers.
    """
    result = np.full(len(sensitivities), LEAST)
    order = np.argsort(-sensitivities, kind="stable") if order is None else order
    total = float(sensitivities.sum())
    shares = sensitivities / total if total > 0 else sensitivities
    able = int(np.count_nonzero(sensitivities))
    result[order[1:able]] = _largest(total * alpha, needed(shares, np.arange(1.0, max(able, 1.0))))
    result[order[0]] = MOST
    return result


def _largest(weight: float, times: FloatArray) -> FloatArray:
    """log of the largest ε with m(ε) >= times, for weight = α S: the root of (m - 1) ε² - 2 K w ε - 6 K w = 0."""
    a, gap = K * weight, np.maximum(times - 1.0, 1e-12)
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.log(a + np.sqrt(a * a + 6 * a * gap)) - np.log(gap)
    return np.asarray(np.where(np.isfinite(found), np.clip(found, LEAST, MOST), LEAST))
