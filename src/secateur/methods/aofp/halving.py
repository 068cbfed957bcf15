"""One layer's search: which filters are masked in a step, and what is decided once enough damage has been seen.

Of the search space U, S filters, D is a random half in every step, and the damage t of that step is credited to each
filter in it: tbar_i = T_i / cnt_i. After B steps, with q = S // 2, K the q filters of least tbar and `worst` the q-th:

    worst < theta    prune K; U = what is alive
    else q > 1       halve:   U = K
    else             give up: U = what is alive

If damages d_i add up, E tbar_i = d_i + (g - 1) / (S - 1) sum over j ≠ i of d_j with g = |D|: the order is the true one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from secateur._protocols import FloatArray, IntArray

First = Literal["half", "power"]
Act = Literal["prune", "halve", "give up"]


@dataclass(frozen=True)
class Decision:
    """What is done, with which filters, least damage first; tbar of the worst of them."""

    act: Act
    chosen: IntArray
    worst: float


def drawn(space: torch.Tensor, count: int, key: list[int]) -> torch.Tensor:
    """D [width], `count` filters of the space [width, bool], the same whenever the key is; the device is not asked."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    chance = torch.rand(len(space), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
    order = torch.where(space, chance.to(space.device), torch.inf).argsort(stable=True)
    result = torch.zeros_like(space)
    result[order[:count]] = True
    return result


def decide(damage: FloatArray, count: FloatArray, space: IntArray, theta: float, part: int | None = None) -> Decision:
    """What follows from damages T and counts [width] of the filters in the space.

    Filters that were never drawn count as infinitely damaging. part: filters chosen in place of S // 2.
    """
    mean = np.full(len(space), np.inf)
    seen = count[space] > 0
    mean[seen] = damage[space][seen] / count[space][seen]  # tbar
    q = max(1, part if part is not None else len(space) // 2)
    order = np.argsort(mean, kind="stable")[:q]
    worst = float(mean[order[-1]])
    act: Act = "prune" if worst < theta else "halve" if q > 1 else "give up"
    return Decision(act, space[order], worst)


def first_part(size: int) -> int:
    """How many filters the first halving of a move leaves in the earlier code: the power of two nearest to half.

    S / p is nearest to 2: 3 gives 2, 20 gives 8, 100 gives 64, 300 gives 128.
    """
    powers = [1 << k for k in range(max(1, size.bit_length()))]
    return min((p for p in powers if p < size), key=lambda p: (abs(size / p - 2), -p), default=1)
