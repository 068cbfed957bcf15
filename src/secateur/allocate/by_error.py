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

from secateur._protocols import FloatArray

K = 3.0
#: c of the logarithms, and the probability δ that the bound fails.
C, DELTA = 3.0, 1e-16
#: Between which errors one is looked for; log ε beyond them is given to the first channel, and to those without share.
LEAST, MOST = math.log(1e-300), math.log(1e150)


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
    inside = shares[shares > 0]
    if math.isinf(times):
        return float(len(inside))
    with np.errstate(divide="ignore"):
        return float(-np.expm1(times * np.log1p(-np.minimum(inside, 1.0))).sum())


def needed(shares: FloatArray, count: float) -> float:
    """The least whole number of draws that give more than `count` different channels on average; infinite if none."""
    if count >= np.count_nonzero(shares):
        return math.inf
    low, high = 0.0, 1.0
    while different(shares, high) <= count:
        low, high = high, high * 2
        if high > 1e300:
            return math.inf
    while high - low > 1 and high > np.nextafter(low, math.inf):
        middle = low + math.floor((high - low) / 2)
        if different(shares, middle) > count:
            high = middle
        else:
            low = middle
    return high


def wanted(sensitivities: FloatArray, alpha: float, error: float) -> int:
    """C'(ε): how many channels of one group this error asks for."""
    total = float(sensitivities.sum())
    if total <= 0:
        return 1
    found = different(sensitivities / total, draws(total, alpha, error))
    return max(1, min(math.ceil(found - 1e-9), int(np.count_nonzero(sensitivities))))


def asked(sensitivities: FloatArray, alpha: float) -> FloatArray:
    """log ε of every channel [width]: the largest error that still asks for so many channels, best first.

    The most sensitive channel is always asked for; those that never contribute only if there is room.
    """
    result = np.full(len(sensitivities), LEAST)
    order = np.argsort(-sensitivities, kind="stable")
    total = float(sensitivities.sum())
    shares = sensitivities / total if total > 0 else sensitivities
    for rank in range(1, int(np.count_nonzero(sensitivities))):
        result[order[rank]] = _largest(total * alpha, needed(shares, rank))
    result[order[0]] = MOST
    return result


def _largest(weight: float, times: float) -> float:
    """log of the largest ε with m(ε) >= times, for weight = α S: the root of (m - 1) ε² - 2 K w ε - 6 K w = 0."""
    if math.isinf(times):
        return LEAST
    a = K * weight
    gap = max(times - 1.0, 1e-12)
    return float(np.clip(math.log(a + math.sqrt(a * a + 6 * a * gap)) - math.log(gap), LEAST, MOST))
