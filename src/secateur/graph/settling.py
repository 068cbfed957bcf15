"""Settle: a size in a model's code cannot follow a cut, so channels move together, or stay, until it can.

Remedies are tried from the least to the most: what one call states is tied, then widths of the same size in its module,
then widths in proportion (a fraction of a width follows it if runs of channels go), and only then something is frozen.
Each is tried on cuts of the network without storage; the first that helps and loses nothing is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from torch import nn

from secateur.graph.channels import Bools, Solution
from secateur.graph.labels import Ids
from secateur.graph.recorder import Call, Recording
from secateur.graph.resize import like_calls
from secateur.graph.sizes import EXCHANGED, OTHERWISE

Pairs = list[tuple[Ids, Ids]]
Fixes = list[tuple[Ids, str]]

#: Operators that are told the sizes of their result.
_SIZED = frozenset(
    f"aten::{name}"
    for name in "view _unsafe_view reshape expand repeat zeros ones empty full rand randn new_zeros new_ones new_empty "
    "new_full slice narrow".split()
)
#: Partners of one width that are tried in proportion.
_PARTNERS = 8


@dataclass(frozen=True)
class Remedy:
    """What may be done about a size in code.

    name: in a few words. of: for each call concerned, further ties and fixes for `solve`. about: the axes that ties are
    for; where nothing of one could be pruned any more, it had better be frozen, with the reason.
    """

    name: str
    of: dict[int, tuple[Pairs, Fixes]]
    about: list[Ids] = field(default_factory=list)

    @property
    def ties(self) -> Pairs:
        """Those for all calls."""
        return [pair for ties, _ in self.of.values() for pair in ties]

    @property
    def fixes(self) -> Fixes:
        """Those for all calls."""
        return [fix for _, fixes in self.of.values() for fix in fixes]

    def without(self, calls: Iterable[int]) -> Remedy:
        """The same for fewer calls."""
        return replace(self, of={k: parts for k, parts in self.of.items() if k not in set(calls)})

    def spares(self, before: Solution, after: Solution) -> bool:
        """Whether something of every axis the ties are for can be pruned still."""
        return all(_prunable(after, axis) for axis in self.about if _prunable(before, axis))

    def changes(self, solution: Solution) -> bool:
        """Whether it ties anything that is not, or fixes anything prunable."""
        component = solution.component
        return any(_prunable(solution, axis) for axis, _ in self.fixes) or any(
            not np.array_equal(component[a], component[b]) for a, b in self.ties
        )


def concerned(recording: Recording, modules: dict[str, nn.Module], at: int) -> list[int]:
    """Call `at`, then its like in other modules of that class that have to do with as many widths."""
    calls = recording.calls

    def shape(k: int) -> tuple[int, int]:
        return len(calls[k].expects), len(_axes_of(calls[k]))

    return [at, *(k for k in like_calls(recording, modules, at) if k != at and shape(k) == shape(at))]


def remedies(recording: Recording, solution: Solution, calls: Sequence[int], conflict: str) -> Iterator[Remedy]:
    """What may be done about these calls, of which the first met a conflict; the least first.

    conflict: in words. Where the code took another path, for it looked at a width, one width of that call alone may be
    what it looked at; where an operator did, so it does in the calls of the same sizes.
    """
    scopes = [_Scope(recording, solution, k) for k in calls]
    operator = recording.calls[calls[0]].name.removeprefix("aten::")
    reason = f"a size is written in code ({operator} in {{}})"
    if OTHERWISE in conflict:
        yield from _freezing_one(scopes[:1], reason)
    elif EXCHANGED in conflict:
        yield from _freezing_one([s for s in scopes if s.sizes() == scopes[0].sizes()], reason)
    yield from _tying(scopes)
    yield from _freezing([s for s in scopes if s.situation() == scopes[0].situation()], reason)


def _tying(scopes: list[_Scope]) -> Iterator[Remedy]:
    def of(name: str, ties: Callable[[_Scope], Pairs]) -> Remedy:
        return Remedy(name, {s.at: (ties(s), []) for s in scopes}, scopes[0].own())

    yield of("the parts it states stay equal", lambda s: _equal(s.stated()))
    yield of("sizes stated beside it stay equal", lambda s: _equal(s.stated_beside()))
    yield of("parts of one width stay in proportion", lambda s: s.runs())
    yield of("widths of that size in its module stay equal", lambda s: _equal(s.widths(s.lengths())))
    partners = {s.at: s.partners() for s in scopes}
    for key in partners[scopes[0].at]:
        yield of("two widths stay in proportion", lambda s, key=key: partners[s.at].get(key, []))  # type: ignore[misc]
    yield of("all equal widths in its module stay equal", lambda s: _equal(s.widths()))
    yield of("widths of that size beside its module stay equal", lambda s: _equal(s.above()))


def _freezing_one(scopes: list[_Scope], reason: str) -> Iterator[Remedy]:
    axes = {s.at: s.everything() for s in scopes}
    why = {s.at: reason.format(s.module or "the model") for s in scopes}
    for k in reversed(range(len(axes[scopes[0].at]))):
        yield Remedy("its channels stay", {at: ([], [(found[k], why[at])]) for at, found in axes.items()})


def _freezing(scopes: list[_Scope], reason: str) -> Iterator[Remedy]:
    def of(axes: Callable[[_Scope], list[Ids]]) -> Remedy:
        why = {s.at: reason.format(s.module or "the model") for s in scopes}
        return Remedy("its channels stay", {s.at: ([], [(axis, why[s.at]) for axis in axes(s)]) for s in scopes})

    yield of(lambda s: s.stated())
    yield of(lambda s: s.whole())
    yield of(lambda s: [*s.whole(), *s.widths(s.lengths(), frozen=True)])
    yield of(lambda s: s.before())
    names = {s.at: s.module for s in scopes}
    while True:  # the last resort: everything in the modules, or in ancestors of theirs
        yield of(lambda s, names=names: s.inside(names[s.at]))  # type: ignore[misc]
        if not any(names.values()):
            return
        names = {at: name.rpartition(".")[0] for at, name in names.items()}


def _prunable(solution: Solution, axis: Ids) -> bool:
    return bool((solution.channels_of(axis) >= 0).any())


def _equal(axes: Sequence[Ids]) -> Pairs:
    """Axes of one length are tied to the first of it, position by position."""
    first: dict[int, Ids] = {}
    return [(first[len(a)], a) for a in axes if first.setdefault(len(a), a) is not a]


def _in_proportion(axes: Sequence[Ids]) -> Pairs:
    """Runs of channels are tied: as many in every axis, of lengths in proportion to the axes'."""
    count = math.gcd(*(len(axis) for axis in axes))
    if count < 2:
        return []
    runs = [axis.reshape(count, -1) for axis in axes]
    pairs = [(run[:, 0], run[:, k]) for run in runs for k in range(1, run.shape[1])]
    return pairs + [(runs[0][:, 0], run[:, 0]) for run in runs[1:]]


def _place(part: Ids, whole: Ids) -> int | None:
    """Where `part` lies in `whole` as one stretch; None if it does not."""
    for start in np.flatnonzero(whole == part[0]).tolist():
        if np.array_equal(whole[start : start + len(part)], part):
            return int(start)
    return None


class _Scope:
    """One call and the module that makes it."""

    def __init__(self, recording: Recording, solution: Solution, at: int) -> None:
        self.recording, self.solution, self.at = recording, solution, at
        self.call, self.module = recording.calls[at], recording.calls[at].module
        self._axes: dict[str, list[Ids]] = {}

    def stated(self) -> list[Ids]:
        """The axes whose sizes the call states one by one."""
        return [e.axis for e in self.call.expects if len(e.axis) > 1]

    def own(self) -> list[Ids]:
        """The axes the call has to do with; of one that makes a tensor, those that meet channels."""
        return [a for a in self.everything() if _prunable(self.solution, a)] or self.everything()

    def everything(self) -> list[Ids]:
        """All axes of the call, those that cannot be pruned now, too: once another is frozen, they might be."""
        return [a for a in _axes_of(self.call, stated=True) if len(a) > 1]

    def sizes(self) -> list[int]:
        """Of all its axes."""
        return [len(axis) for axis in self.everything()]

    def situation(self) -> list[bool]:
        """Which of its axes can be pruned: where others can, other remedies may help."""
        return [_prunable(self.solution, axis) for axis in self.everything()]

    def whole(self) -> list[Ids]:
        """The same, and widths that are nothing but a product of them, so that these know the reason."""
        axes = self.everything()
        own = {axis.tobytes() for axis in axes}
        products = self.recording.ledger.products
        return axes + [p.slots.ravel() for p in products if all(axis.tobytes() in own for axis in p.axes)]

    def before(self) -> list[Ids]:
        """The axes of the call before it."""
        return [] if self.at == 0 else [a for label in self.recording.calls[self.at - 1].labels for a in _full(label)]

    def lengths(self) -> set[int]:
        """The sizes the call has to do with."""
        return {len(axis) for axis in self.own()}

    def stated_beside(self) -> list[Ids]:
        """The axes of these sizes that calls of the same module state."""
        lengths = self.lengths()
        found = []
        for call in self.recording.calls:
            if call.module == self.module:
                found += [e.axis for e in call.expects]
                found += [a for label in call.labels for a in _full(label)] if call.name in _SIZED else []
        return [axis for axis in found if len(axis) in lengths and len(axis) > 1]

    def inside(self, module: str) -> list[Ids]:
        """All axes in a module, each once."""
        if module not in self._axes:
            prefix = f"{module}." if module else ""
            calls = [c for c in self.recording.calls if c.module == module or c.module.startswith(prefix)]
            found = {axis.tobytes(): axis for call in calls for axis in _axes_of(call) if len(axis) > 1}
            self._axes[module] = list(found.values())
        return self._axes[module]

    def widths(self, lengths: set[int] | None = None, *, frozen: bool = False) -> list[Ids]:
        """The axes of different channels in the module, of these sizes (None: all).

        Frozen ones only with `frozen`: tied to one, its partner could not be pruned either.
        """
        return self._widths(self.module, lengths, frozen)

    def above(self) -> list[Ids]:
        """The same in the module around it, of the sizes the call has to do with."""
        return self._widths(self.module.rpartition(".")[0], self.lengths(), frozen=False)

    def _widths(self, module: str, lengths: set[int] | None, frozen: bool) -> list[Ids]:
        found = [a for a in self.inside(module) if lengths is None or len(a) in lengths]
        several = [a for a in found if len(np.unique(self.solution.component[a])) > 1]
        return [a for a in several if frozen or _prunable(self.solution, a)]

    def runs(self) -> Pairs:
        """A width of which the call takes a part, cut at all places where the module does, in proportion."""
        pairs: Pairs = []
        done: set[bytes] = set()
        for part in self.own():
            wholes = [a for a in self.inside(self.module) if len(a) > len(part) and _place(part, a) is not None]
            if not wholes:
                continue
            whole = max(wholes, key=len)
            if whole.tobytes() not in done:
                done.add(whole.tobytes())
                cuts = {0, len(whole)}
                for axis in self.inside(self.module):
                    start = _place(axis, whole)
                    cuts |= set() if start is None else {start, start + len(axis)}
                pairs += _in_proportion([whole[a:b] for a, b in pairwise(sorted(cuts))])
        return pairs

    def partners(self) -> dict[tuple[int, int], Pairs]:
        """For widths whose size is a multiple or a fraction of one of the call's: ties in proportion, nearest first."""
        component, seen = self.solution.component, set[tuple[int, bytes]]()
        found: dict[tuple[int, int], Pairs] = {}
        times: dict[tuple[int, int], int] = {}
        for k, own in enumerate(self.own()):
            for j, other in enumerate(self.inside(self.module)):
                low, high = sorted((len(own), len(other)))
                if low == high or high % low or not _prunable(self.solution, other):
                    continue
                alike = (k, component[other].tobytes())
                if alike not in seen and _place(*sorted((own, other), key=len)) is None:
                    found[k, j], times[k, j] = _in_proportion([own, other]), high // low
                seen.add(alike)
        new = [
            key for key, pairs in found.items() if any(not np.array_equal(component[a], component[b]) for a, b in pairs)
        ]
        return {key: found[key] for key in sorted(new, key=lambda key: (times[key], key))[:_PARTNERS]}


def _full(label: Iterable[Ids | None]) -> list[Ids]:
    return [axis for axis in label if axis is not None]


def _axes_of(call: Call, *, stated: bool = False) -> list[Ids]:
    """Axes of a call: of its weight (what it reads first), its results, and those whose sizes it states."""
    found = _full((call.weight or ())[::-1]) + [a for label in call.labels for a in _full(label)]
    return [e.axis for e in call.expects] + found if stated else found


def trial_masks(solution: Solution, recording: Recording, at: Iterable[int], seed: int) -> dict[str, Bools]:
    """A cut to random widths of all groups that meet in the modules of these calls.

    None of three or more goes below two channels: of a single one PyTorch computes some products by other operators.
    """
    generator = np.random.default_rng(seed)
    modules = tuple({recording.calls[k].module for k in at})
    prefixes = tuple(f"{name}." if name else "" for name in modules)
    touched = np.zeros(int(solution.channel.max(initial=-1)) + 2, dtype=np.bool_)
    for call in recording.calls:
        if call.module in modules or call.module.startswith(prefixes):
            for axis in _axes_of(call):
                touched[solution.channels_of(axis)] = True
    touched[-1] = False  # frozen ones
    masks = {}
    for group in solution.groups:
        if touched[group.channels[0]]:
            kept = int(generator.integers(min(2, group.width - 1), group.width))
            masks[group.name] = generator.permutation(group.width) < kept
    return masks
