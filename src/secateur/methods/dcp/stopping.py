"""When a greedy choice stops: the rules of discrimination-aware pruning, for one layer and for a budget.

After round t the loss is L_t; L_0 is that with nothing chosen. With a tolerance the choice stops when
|L_t - L_{t-1}| / L_0 <= epsilon; what the last round added stays. Over a network, one tolerance for all layers is
found from a budget: what round t adds is there for every tolerance below the smallest decrease of the rounds before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur._protocols import FloatArray, IntArray

#: How far channels of one round are apart, as a share of their score.
_APART = 1e-9


def decreases(losses: Sequence[float]) -> FloatArray:
    """|L_t - L_{t-1}| / L_0 of every round; a first loss of zero leaves nothing to gain."""
    values = np.asarray(losses, dtype=np.float64)
    return np.asarray(np.abs(np.diff(values)) / values[0] if values[0] > 0 else np.zeros(len(values) - 1))


def rounds(losses: Sequence[float], epsilon: float) -> int:
    """After how many rounds the choice stops, one at least; all of them if no decrease is small enough."""
    found = np.flatnonzero(decreases(losses) <= epsilon)
    return int(found[0]) + 1 if len(found) else len(losses) - 1


def survival(losses: Sequence[float], added: IntArray, order: Sequence[int]) -> FloatArray:
    """Up to which tolerance every channel stays: a score.

    The first round is there whatever the tolerance. Among channels of one round, those that joined first are ahead, by
    less than any tolerance tells apart.

    Args:
        losses: before and after every round. added: the round, from 1, in which each channel was chosen. order: all
            channels as they were chosen.
    """
    gains = decreases(losses)
    least = np.concatenate([[2.0 * max(1.0, float(gains.max(initial=0.0)))], np.minimum.accumulate(gains)])
    scores = least[np.asarray(added) - 1]
    place = np.empty(len(scores))
    place[np.asarray(order)] = np.arange(len(scores))
    return np.asarray(scores - _APART * np.maximum(scores, _APART) * place / len(scores))
