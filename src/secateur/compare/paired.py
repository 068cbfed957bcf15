"""Which methods of a leaderboard differ by more than chance: differences to the best, paired over seeds.

Below the leaderboard. Every method is trained from the same base network of a seed, so the differences of a seed are
what is tested: by Wilcoxon's signed-rank test where its smallest p, 2 / 2^n of n seeds, is below 5% over the number of
methods, so that Holm's correction over all of them leaves it something to find; by the paired t test below that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from secateur._protocols import FloatArray

LEVEL = 0.05
T_TEST, WILCOXON, NONE = "paired t test", "Wilcoxon signed-rank test", "none: one seed"


def differences(finals: Mapping[str, Mapping[int, float]], best: str) -> dict[str, dict[str, Any]]:
    """How far each method is below the best, and whether that is more than chance.

    Args:
        finals: figures by method and seed, larger is better. best: the method all others are compared with.

    Returns:
        By method, the best left out: mean "difference" (best - method) over "n" shared seeds, its 95% interval "low"
        and "high", the "test", "p" as it is and "p_holm" corrected, and "significant".
    """
    gaps = {label: _gaps(finals[best], own) for label, own in finals.items() if label != best}
    tests = sum(len(each) > 1 for each in gaps.values())
    found = {label: _pair(each, tests) for label, each in gaps.items()}
    for label, corrected in _holm({k: each["p"] for k, each in found.items() if each["p"] is not None}).items():
        found[label] |= {"p_holm": corrected, "significant": corrected < LEVEL}
    return found


def _gaps(best: Mapping[int, float], own: Mapping[int, float]) -> FloatArray:
    return np.array([best[seed] - own[seed] for seed in sorted(best.keys() & own.keys())], dtype=np.float64)


def _pair(gaps: FloatArray, tests: int) -> dict[str, Any]:
    blank = {"difference": float(gaps.mean()) if len(gaps) else None, "n": len(gaps), "low": None, "high": None}
    if len(gaps) < 2:
        return {**blank, "test": NONE, "p": None, "p_holm": None, "significant": False}
    # mean ± t(0.975, n - 1) s / √n
    half = float(stats.t.ppf(1 - LEVEL / 2, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps)))
    test = WILCOXON if tests * 2.0 ** (1 - len(gaps)) < LEVEL else T_TEST
    bounds = {"low": float(gaps.mean()) - half, "high": float(gaps.mean()) + half}
    return {**blank, **bounds, "test": test, "p": _chance(gaps, test), "p_holm": None, "significant": False}


def _chance(gaps: FloatArray, test: str) -> float:
    """Two-sided p of these differences, if the methods were alike."""
    if not gaps.any():
        return 1.0
    if test == WILCOXON:
        return float(stats.wilcoxon(gaps).pvalue)
    spread = gaps.std(ddof=1)
    if spread <= 1e-12:
        return 0.0
    t = gaps.mean() / (spread / math.sqrt(len(gaps)))
    return float(2 * stats.t.sf(abs(t), len(gaps) - 1))


def _holm(chances: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down: the k-th smallest of m times (m - k + 1), never falling, at most 1."""
    corrected, least = {}, 0.0
    order: Sequence[str] = sorted(chances, key=lambda label: chances[label])
    for place, label in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * chances[label]))
        corrected[label] = least
    return corrected
