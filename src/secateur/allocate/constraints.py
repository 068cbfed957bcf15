"""What no allocator may do: the widths a group can take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np

from secateur._protocols import GraphLike, IntArray
from secateur.allocate.alignment import Alignment
from secateur.allocate.patterns import matched, parse_patterns
from secateur.errors import ConfigError


@dataclass(frozen=True)
class Constraints:
    """Rules every plan keeps.

    ignore: patterns of module names whose outputs stay whole ('layer4.*', 'fc'); ':in' behind a pattern means what
        those modules read, ':both' means both sides.
    min_channels: channels that stay in every group at least (all of them in a narrower group).
    max_ratio: largest share of a group's channels that may be removed, in [0, 1].
    align: kept widths of layers are multiples of this; a layer whose width is no multiple may also stay whole.
    keep: names of groups that stay whole, because a method cannot prune them.
    """

    ignore: tuple[str, ...] = ()
    min_channels: int = 1
    max_ratio: float = 1.0
    align: int = 1
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse impossible values, naming them."""
        # one pattern alone, or a list, is what people type
        ignore: object = self.ignore
        if ignore is not None and not isinstance(ignore, (str, Iterable)):
            raise ConfigError(f"ignore={ignore!r} is not a list of patterns: write one such as ('layer4.*', 'fc').")
        patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore or ())
        object.__setattr__(self, "ignore", patterns)
        for name in ("min_channels", "align"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigError(f"{name}={value!r} is not a positive integer: give 1 or more.")
            object.__setattr__(self, name, int(value))  # a numpy integer would not go into JSON
        ratio: object = self.max_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= float(ratio) <= 1:
            raise ConfigError(f"max_ratio={ratio!r} is not a share: give a number from 0 (remove nothing) to 1.")
        object.__setattr__(self, "max_ratio", float(ratio))

    def ignored(self, graph: GraphLike) -> dict[str, list[str]]:
        """Return the names of the groups each `ignore` pattern keeps whole; ConfigError if it matches no module."""
        patterns = parse_patterns(graph, self.ignore, "ignore")
        return {
            pattern.text: [group.name for group in graph.groups if matched(pattern, group.members)]
            for pattern in patterns
        }

    def keeping(self, names: Iterable[str]) -> Constraints:
        """Return the same constraints with these groups whole."""
        return replace(self, keep=(*self.keep, *names))

    def floors(self, graph: GraphLike) -> IntArray:
        """Return the smallest width each group may take, in the order of `graph.groups`."""
        return self.grid(graph)[0]

    def steps(self, graph: GraphLike) -> dict[str, int]:
        """Return how many channels at a time each group may lose, so that the widths of its layers stay aligned."""
        names = (group.name for group in graph.groups)
        return dict(zip(names, self.grid(graph)[1].tolist(), strict=True))

    def grid(self, graph: GraphLike) -> tuple[IntArray, IntArray]:
        """Return floors and steps: a group is legal at its floor, every step above it, and as a whole."""
        whole = {name for names in self.ignored(graph).values() for name in names} | set(self.keep)
        lowest = [group.width if group.name in whole else self.floor(group.width, 1) for group in graph.groups]
        return self.alignment(graph).grid(np.array(lowest, dtype=np.int64))

    def alignment(self, graph: GraphLike) -> Alignment:
        """Return what `align` means for the layers of this graph."""
        return Alignment.of(graph, self.align)

    def floor(self, width: int, step: int | None = None) -> int:
        """Return the smallest width a group of `width` channels may take when it is not ignored.

        step: how many channels go at a time; None: `align`, one channel being one index of every layer.
        """
        # the tolerance makes 0.3 * 10 remove three channels although the product falls short of 3 in binary
        removable = min(math.floor(self.max_ratio * width + 1e-9), width)
        lowest, step = max(1, self.min_channels, width - removable), self.align if step is None else step
        return int(min(-(-lowest // step) * step, width))

    def ends(self, width: int, floor: int, step: int | None = None) -> IntArray:
        """Return the legal widths above `floor`, ascending; the last is `width`. step: as for `floor`."""
        step = self.align if step is None else step
        ends = np.arange(floor + step, width + 1, step, dtype=np.int64)
        # a width between two steps is legal only as a whole
        return ends if floor == width or (len(ends) and ends[-1] == width) else np.append(ends, width)
