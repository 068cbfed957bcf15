"""Weights whose values meet across channels: a norm, a mean, a product of a weight with itself, written in forward.

Setting slices of such a weight to zero changes those that stay, as removing them does. So that the masked original is
the original with channels set to zero, and no more, these slices keep their values in it.
"""

from __future__ import annotations

import numpy as np

from secateur.graph.labels import Ids
from secateur.graph.recorder import Recording

Mixed = dict[str, dict[int, str]]  # of a parameter: its dimension -> why


def mixed_weights(recording: Recording) -> Mixed:
    """The dimensions of parameters over which an operator mixes weights, before they meet what they are weights of.

    Of what no input had a part in, all dimensions count; else those of weights alone, that is, what they read.
    """
    ledger = recording.ledger
    if not ledger.mixed:
        return {}
    reason_of = np.full((2, ledger.size), -1, dtype=np.int64)
    for number, (axis, _, constant) in enumerate(ledger.mixed):
        reason_of[int(constant), axis] = number
    for product in reversed(ledger.products):  # what is flattened into a dimension is mixed with it
        for row in reason_of:
            number = int(row[product.slots].max())
            if number >= 0:
                for axis in product.axes:
                    row[axis] = np.maximum(row[axis], number)
    reads = np.zeros(ledger.size, dtype=bool)
    for axis in ledger.consumed:
        reads[axis] = True
    found: Mixed = {}
    for name, label in recording.places.items():
        for dim, own in enumerate(label):
            if own is not None and own.size:
                number = max(int(reason_of[1, own].max()), _all_read(reason_of[0], reads, own))
                if number >= 0:
                    found.setdefault(name, {})[dim] = ledger.mixed[number][1]
    return found


def _all_read(reason_of: Ids, reads: np.ndarray, own: Ids) -> int:
    return int(reason_of[own].max()) if bool(reads[own].all()) else -1
