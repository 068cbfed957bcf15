"""When a greedy choice stops: the rules of discrimination-aware pruning, for one layer and for a budget.

After round t the loss is L_t; L_0 is that with nothing chosen. With a tolerance the choice stops when
|L_t - L_{t-1}| / L_0 <= epsilon; what the last round added stays. Over a network, one tolerance for all layers is
found from a budget: what round t adds is there for every tolerance below the smallest decrease of the rounds before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur._protocols import FloatArray, IntArray


def decreases(losses: Sequence[float]) -> FloatArray:
    """|L_t - L_{t-1}| / L_0 of every round; a first loss of zero leaves nothing to gain."""
    values = np.asarray(losses, dtype=np.float64)
    return np.asarray(np.abs(np.diff(values)) / values[0] if values[0] > 0 else np.zeros(len(values) - 1))


def rounds(losses: Sequence[float], epsilon: float) -> int:
    """After how many rounds the choice stops, one at least; all of them if no decrease is small enough."""
    found = np.flatnonzero(decreases(losses) <= epsilon)
    return int(found[0]) + 1 if len(found) else len(losses) - 1


def survival(losses: Sequence[float], added: IntArray) -> FloatArray:
    """Up to which tolerance every channel stays: a score. added: the round, from 1, in which each was chosen.

    The first round is there whatever the tolerance; among channels of one round there is no difference.
    """
    gains = decreases(losses)
    least = np.concatenate([[2.0 * max(1.0, float(gains.max(initial=0.0)))], np.minimum.accumulate(gains)])
    return np.asarray(least[np.asarray(added) - 1])
