"""Making scores of different groups comparable before one threshold meets them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from secateur._hints import choose
from secateur._protocols import FloatArray


def mean(scores: FloatArray) -> FloatArray:
    """Divide by the mean magnitude."""
    return _divide(scores, lambda values: float(np.abs(values).mean()))


def largest(scores: FloatArray) -> FloatArray:
    """Divide by the largest magnitude."""
    return _divide(scores, lambda values: 1.0)


def total(scores: FloatArray) -> FloatArray:
    """Divide by the sum of magnitudes."""
    return _divide(scores, lambda values: float(np.abs(values).sum()))


def standard(scores: FloatArray) -> FloatArray:
    """Map the smallest score to 0 and the largest to 1 (equal scores all become 0)."""
    shifted = _unit(scores)
    shifted = shifted - shifted.min()
    return _divide(shifted, lambda values: 1.0)


def gauss(scores: FloatArray) -> FloatArray:
    """Subtract the mean and divide by the standard deviation (equal scores all become 0)."""
    values = _unit(scores)
    if values.min() == values.max():
        return np.zeros_like(values)
    values = values - values.mean()
    spread = float(values.std())
    return values / spread if spread > 0 else np.zeros_like(values)


def none(scores: FloatArray) -> FloatArray:
    """Leave the scores as they are."""
    return scores


def lamp_shares(scores: FloatArray) -> FloatArray:
    """Divide each score by the sum of those of its group that are not smaller (Lee et al. 2021, equation 2).

    The paper breaks ties by index; here equal scores get equal values.
    """
    values = np.abs(_unit(scores))
    unique, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    not_smaller = np.cumsum((unique * count)[::-1])[::-1]
    shares = np.divide(unique, not_smaller, out=np.zeros_like(unique), where=not_smaller > 0)
    result: FloatArray = shares[inverse.reshape(-1)]
    return result


#: Name of a normalisation -> function of one group's scores.
NORMALISATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "mean": mean,
    "max": largest,
    "sum": total,
    "standard": standard,
    "gauss": gauss,
    "none": none,
    "lamp": lamp_shares,
}


def normalisation(name: str) -> Callable[[FloatArray], FloatArray]:
    """Return the normalisation called `name`; ConfigError suggesting the nearest for an unknown one."""
    return NORMALISATIONS[choose(name, NORMALISATIONS, "normalisation")]


def _unit(scores: FloatArray) -> FloatArray:
    """Divide by the largest magnitude first, so that no sum overflows or vanishes."""
    peak = float(np.abs(scores).max(initial=0.0))
    return scores / peak if peak > 0 else scores.copy()


def _divide(scores: FloatArray, denominator: Callable[[FloatArray], float]) -> FloatArray:
    """Divide by a denominator taken over the scores scaled to [-1, 1]; all-zero scores stay zero."""
    values = _unit(scores)
    return values / denominator(values) if values.any() else values
