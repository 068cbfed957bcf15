"""How far chance moves a share of images that are right: intervals of one share, and of the difference of two.

Beside the tasks, for all who quote an accuracy: the report, the leaderboard, `compress`.
"""

from __future__ import annotations

import math
from statistics import NormalDist

LEVEL = 0.95
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share; never empty, also where none or all are right.

    Args:
        share: of the images that are right, 0 to 1. images: how many there are, 1 at least.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927).
    """
    # (p + z²/2n ± z √(p (1 - p) / n + z²/4n²)) / (1 + z²/n)
    scale = 1 + _Z**2 / images
    middle = share + _Z**2 / (2 * images)
    half = _Z * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def newcombe(before: float, after: float, images: int) -> tuple[float, float]:
    """Newcombe's 95% interval of `after` - `before`, two shares of as many images each.

    The same images under both networks are taken as if they were others, which makes the interval rather too wide.

    Args:
        before, after: shares, 0 to 1. images: how many each is a share of, 1 at least.

    Source: Newcombe, Interval Estimation for the Difference Between Independent Proportions, Statistics in Medicine 17
    (1998), method 10.
    """
    (l1, u1), (l2, u2) = wilson(before, images), wilson(after, images)
    difference = after - before
    # d - √((p2 - l2)² + (u1 - p1)²) to d + √((u2 - p2)² + (p1 - l1)²)
    low = difference - math.hypot(after - l2, u1 - before)
    return low, difference + math.hypot(u2 - after, before - l1)


def beyond(interval: tuple[float, float], value: float = 0.0) -> bool:
    """Whether an interval leaves out a value: what is then claimed is more than chance."""
    low, high = interval
    return not low <= value <= high
