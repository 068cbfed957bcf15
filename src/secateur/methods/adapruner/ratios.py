"""The share of every block that stays: its importance, the mean scale of its norms, over one number tau.

    I_b        = sum over norms of |gamma_c| / sum of their channels        (a mean over channels, not over norms)
    rho_b(tau) = min(1, I_b / tau)                                          (linear)
                 min(1, (I_b / tau)^a)                                      (power)
                 the share of the block's |gamma| above tau                 (threshold)
    c'_l(tau)  = clip(floor(c_l rho_b + 1/2), c_min_l, c_l)

The widths are those of the smallest tau whose network is within the budget, the widest one on this path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from secateur._protocols import FloatArray, IntArray
from secateur.graph import Graph, Group
from secateur.graph.channels import module_of
from secateur.graph.norms import Sources, places
from secateur.graph.readers import summed

Shape = Literal["linear", "power", "threshold"]

#: Halvings of the interval of tau.
_HALVINGS = 60


def scales(graph: Graph, known: Sources) -> dict[str, list[FloatArray]]:
    """The scales |gamma| [width] of the norms that count for each group; none where there are none. known: of `graph`.

    Norms count that follow a layer which makes the group. Where there is none, as behind a concatenation or in front of
    an activation that comes first, the first norm that the group passes through does. A norm whose scales are all zero,
    as the last of a residual branch often begins, says nothing.
    """
    tensors = graph.tensors()
    makers = {group.name: makers_of(graph, group) for group in graph.groups}
    found: dict[str, list[tuple[bool, FloatArray]]] = {group.name: [] for group in graph.groups}
    for place in places(graph, known):
        gamma = tensors[f"{place.norm}.weight"].detach().abs().double().cpu().numpy()[place.index].mean(1)
        made = known.of[place.norm] in makers[place.group]
        if gamma.any() and (made or place.owner):
            found[place.group].append((made, gamma))
    return {
        name: [gamma for made, gamma in rows if made] or [gamma for _, gamma in rows[:1]]
        for name, rows in found.items()
    }


def makers_of(graph: Graph, group: Group) -> set[str]:
    """The layers with weights that make a group, depthwise ones among them."""
    tensors = graph.tensors()
    return {module_of(member.name) for member in group.producers() if tensors[member.name].ndim > 1}


def branches(graph: Graph) -> list[int]:
    """The number of each group's block where the groups inside one residual branch are one.

    A branch is the innermost module that makes the group and a part of a residual stream, too; groups that are in none,
    and streams themselves, are blocks of their own.
    """
    names = [makers_of(graph, group) for group in graph.groups]
    streams = {name for several, group in zip(summed(graph), names, strict=True) if several for name in group}
    numbers: dict[str, int] = {}
    found = []
    for number, (several, own) in enumerate(zip(summed(graph), names, strict=True)):
        branch = "" if several else _branch(min(own, default=""), streams)
        found.append(numbers.setdefault(branch, number) if branch else number)
    return found


def _branch(layer: str, streams: set[str]) -> str:
    """The innermost module above a layer in which a layer of a stream is, too; "" where only the whole network is."""
    while layer := layer.rpartition(".")[0]:
        if any(name.startswith(f"{layer}.") for name in streams):
            return layer
    return ""


@dataclass(frozen=True)
class Path:
    """All widths that one tau after the other gives.

    importance [groups]: I of the block each is in. above: share of each block's scales above a tau, for "threshold".
    """

    importance: FloatArray
    full: IntArray
    floors: IntArray
    shape: Shape = "linear"
    power: float = 1.0
    scales: Sequence[FloatArray] = ()

    def shares(self, tau: float) -> FloatArray:
        """rho [groups], not yet bounded by 1: in proportion to it widths grow together as tau falls."""
        if self.shape == "threshold":
            return np.array([float((values > tau).mean()) for values in self.scales])
        power = self.power if self.shape == "power" else 1.0
        return np.asarray((self.importance / tau) ** power)

    def widths(self, tau: float) -> IntArray:
        """c' [groups]."""
        wanted = np.floor(self.full * np.minimum(self.shares(tau), 1.0) + 0.5).astype(np.int64)
        return np.asarray(np.clip(wanted, self.floors, self.full))

    def smallest(self, fits: Callable[[IntArray], bool]) -> float:
        """The smallest tau whose widths fit, by bisection; the least I where nothing need go.

        Not stopped early, close to the budget: other widths could come out. The floors must fit.
        """
        values = np.concatenate(self.scales) if self.shape == "threshold" else self.importance
        positive = values[values > 0]
        low, high = float(positive.min(initial=1.0)), float(positive.max(initial=1e-300))
        low = low / 2 if self.shape == "threshold" else min(low, high)
        if fits(self.widths(low)):
            return low
        while not fits(self.widths(high)):
            high *= 2
        for _ in range(_HALVINGS):
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if fits(self.widths(middle)) else (middle, high)
        return high


def importance(found: Mapping[str, Sequence[FloatArray]], blocks: Sequence[int]) -> tuple[FloatArray, list[str]]:
    """I [groups] of the block each group is in, and groups whose block has no norm: they get their neighbours' mean.

    found: of `scales`. blocks: the number of each group's block.
    """
    sums = np.zeros((2, max(blocks, default=0) + 1))
    for block, rows in zip(blocks, found.values(), strict=True):
        sums[:, block] += [sum(float(row.sum()) for row in rows), sum(len(row) for row in rows)]
    known = sums[1] > 0
    means = np.where(known, sums[0] / np.maximum(sums[1], 1), 0.0)
    each = np.array([means[block] if known[block] else np.nan for block in blocks])
    bare = [name for name, value in zip(found, each, strict=True) if np.isnan(value)]
    return _filled(each), bare


def _filled(values: FloatArray) -> FloatArray:
    """Gaps become the mean of the nearest values on both sides; ones if there is none at all."""
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return np.ones_like(values)
    result = values.copy()
    for gap in np.flatnonzero(np.isnan(values)):
        sides = [*known[known < gap][-1:], *known[known > gap][:1]]
        result[gap] = values[sides].mean()
    return result


def path_of(
    found: Mapping[str, Sequence[FloatArray]],
    blocks: Sequence[int],
    full: IntArray,
    floors: IntArray,
    shape: Shape = "linear",
    power: float = 1.0,
) -> tuple[Path, list[str]]:
    """The path of groups of these scales, blocks, whole and least widths, and the groups whose block has no norm."""
    values, bare = importance(found, blocks)
    inside: dict[int, list[FloatArray]] = {}
    for block, rows in zip(blocks, found.values(), strict=True):
        inside.setdefault(block, []).extend(rows)
    each = [np.concatenate(inside[block] or [values[k : k + 1]]) for k, block in enumerate(blocks)]
    return Path(values, full, floors, shape, power, each), bare
