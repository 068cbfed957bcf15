"""Early exits: what the code would return if numbers of the data were others, and did not here."""

from __future__ import annotations

import numpy as np

from secateur.graph.labels import Ids, Ledger

_REASON = "no layer reads it, and code that goes by numbers of the data may return it"


def exits(ledger: Ledger, component: Ids) -> list[tuple[Ids, str]]:
    """What stays where the code reads numbers of the data: channels that end in a reduction and are read by no layer.

    Class scores of an early exit are such: the code looks at the largest, and goes on.
    """
    if not ledger.decides:
        return []
    read = component[np.concatenate([np.empty(0, np.int64), *ledger.consumed])]
    return [(axis[~np.isin(component[axis], read)], _REASON) for axis in ledger.reduced]
