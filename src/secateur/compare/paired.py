"""Which methods of a leaderboard differ by more than chance: differences to the best, paired over seeds.

Below the leaderboard. Every method is trained from the same base network of a seed, so the differences of a seed are
what is tested: by Wilcoxon's signed-rank test from six seeds on, by the paired t test below that, for no rank test of
fewer can reach 5%. Holm's correction is over all methods of a budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.05
#: From so many pairs on the exact signed-rank test can reach the level.
_RANKED = 6
T_TEST, WILCOXON, NONE = "paired t test", "Wilcoxon signed-rank test", "none: one seed"


def differences(finals: Mapping[str, Mapping[int, float]], best: str) -> dict[str, dict[str, Any]]:
    """How far each method is below the best, and whether that is more than chance.

    Args:
        finals: figures by method and seed, larger is better. best: the method all others are compared with.

    Returns:
        By method, the best left out: mean "difference" (best - method) over "n" shared seeds, its 95% interval "low"
        and "high", the "test", "p" as it is and "p_holm" corrected, and "significant".
    """
    found = {label: _pair(finals[best], own) for label, own in finals.items() if label != best}
    for label, corrected in _holm({k: each["p"] for k, each in found.items() if each["p"] is not None}).items():
        found[label] |= {"p_holm": corrected, "significant": corrected < LEVEL}
    return found


def _pair(best: Mapping[int, float], own: Mapping[int, float]) -> dict[str, Any]:
    seeds = sorted(best.keys() & own.keys())
    gaps = np.array([best[seed] - own[seed] for seed in seeds], dtype=np.float64)
    mean = float(gaps.mean()) if seeds else None
    blank = {"difference": mean, "n": len(seeds), "low": None, "high": None}
    if len(seeds) < 2:
        return {**blank, "test": NONE, "p": None, "p_holm": None, "significant": False}
    # mean ± t(0.975, n - 1) s / √n
    half = float(stats.t.ppf(1 - LEVEL / 2, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps)))
    test = WILCOXON if len(gaps) >= _RANKED else T_TEST
    bounds = {"low": float(gaps.mean()) - half, "high": float(gaps.mean()) + half}
    return {**blank, **bounds, "test": test, "p": _chance(gaps), "p_holm": None, "significant": False}


def _chance(gaps: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Two-sided p of these differences, if the methods were alike."""
    if not gaps.any():
        return 1.0
    if len(gaps) >= _RANKED:
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
