"""The widths of layers, made of groups: what a runtime computes in blocks of, and what alignment therefore counts.

One width may be several groups (a concatenation, a layer whose output is split), and one channel of a group several of
its indices (heads, groups of a convolution or a norm).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.graph.channels import Bools, Solution
from secateur.graph.labels import Ids
from secateur.graph.recorder import Recording


@dataclass(frozen=True, eq=False)
class Sides:
    """Inputs and outputs of all layers any group has a part in.

    names: such as 'conv1' for its outputs and 'conv1 (inputs)'. owned [sides, groups]: how many indices one channel of
    each group has there. sizes [sides]: indices of the original. reads [sides]: whether it is what a layer reads.
    """

    names: tuple[str, ...]
    owned: Ids
    sizes: Ids
    reads: Bools

    def kept(self, widths: Ids, whole: Ids) -> Ids:
        """Indices [sides] that stay at these widths [groups]; `whole` are those of the original."""
        result: Ids = self.sizes - self.owned @ (whole - widths)
        return result


def sides_of(recording: Recording, solution: Solution) -> Sides:
    """The sides of all convolutions and linear layers; those with the same numbers are told once."""
    consumed = {id(axis) for axis in recording.ledger.consumed}
    group_of = np.full(int(solution.channel.max(initial=-1)) + 2, len(solution.groups), dtype=np.int64)
    for number, group in enumerate(solution.groups):
        group_of[group.channels] = number  # the last entry stands for frozen (-1)
    widths = np.array([group.width for group in solution.groups], dtype=np.int64)
    found: dict[bytes, tuple[str, NDArray[np.int64], int, bool]] = {}
    for call in recording.calls:
        for k, axis in enumerate(call.weight or ()):
            if axis is None or not len(solution.groups):
                continue
            counts = np.bincount(group_of[solution.channels_of(axis)], minlength=len(widths) + 1)[:-1]
            if not counts.any():
                continue
            times = call.repeats if k else 1  # a grouped convolution reads (or, transposed, gives) each column so often
            owned, reads = counts // widths * times, id(axis) in consumed
            name = (call.module or "the model") + (" (inputs)" if reads else "")
            size = len(axis) * times
            found.setdefault(owned.tobytes() + repr((size, reads)).encode(), (name, owned, size, reads))
    rows: list[tuple[str, NDArray[np.int64], int, bool]] = list(found.values())
    return Sides(
        tuple(name for name, *_ in rows),
        np.array([owned for _, owned, _, _ in rows], dtype=np.int64).reshape(-1, len(widths)),
        np.array([size for _, _, size, _ in rows], dtype=np.int64),
        np.array([reads for *_, reads in rows], dtype=np.bool_),
    )
