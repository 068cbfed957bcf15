"""Scores that say nothing: where all channels of a group are worth the same, their numbers decide which stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur._hints import few
from secateur._protocols import BoolArray


def undecided(scores: Mapping[str, Any], masks: Mapping[str, BoolArray]) -> str | None:
    """A sentence on the groups that lose channels (`masks` [width]) though all scores [width] are equal; None: none do.

    A plan carries it as `provenance["undecided"]`, and `Method.finish` adds it to the notes.
    """
    cut = [name for name, mask in masks.items() if not mask.all()]
    flat = [name for name in cut if np.ptp(np.asarray(scores[name], dtype=np.float64)) == 0]
    if not flat:
        return None
    if flat == cut and len({float(scores[name][0]) for name in flat}) == 1:
        return (
            f"All channels have the same score ({float(scores[flat[0]][0]):g}), so that nothing but their numbers "
            "decides which of them stay: look at the loss, the data and the weights."
        )
    return f"All channels of {few(flat)} have the same score, so that their numbers decide which of them stay."
