"""Make every size a model keeps outside its tensors follow a cut.

Standard layers are set outright. Everything else is found by the shape run: where an operator gets other sizes than the
plan promises, the attribute that still holds the old size is set to the new one. A size that nobody holds (a literal in
code) is a `SizeConflict`, and the plan has to do without those channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import combinations, islice

from torch import nn

from secateur.graph.modules import modules_of
from secateur.graph.recorder import Recording
from secateur.graph.shape_run import Disagreement, check_sizes
from secateur.graph.sizes import Path, Repair, SizeConflict, Sizes, get_number, numbers_of, put_number
from secateur.graph.stale import Stale, outdated, stale_sizes, wrong_without
from secateur.graph.standard import late_repairs, standard_repairs

#: Pairs of attributes of one module that are tried together.
_COMBINED = 12
#: Tries at calls that are of no interest themselves.
_BRIEFLY = 8


def repair_sizes(model: nn.Module, inputs: object, sizes: Sizes, about: Collection[int] = ()) -> list[Repair]:
    """Set every attribute of `model` (narrowed, shapes only) that must follow; returns what was set.

    about: the calls that are of interest, if not all are; others get a few tries, and what is behind them none.

    Raises `SizeConflict` naming the first call that no attribute explains.
    """
    modules = dict(modules_of(model))
    with _modes_kept(modules):
        done = _applied(standard_repairs(modules, sizes), modules)
        done += _Search(model, inputs, sizes, modules, about).run()
        return done + _applied(late_repairs(model), modules)


def repair_and_follow(model: nn.Module, inputs: object, sizes: Sizes) -> tuple[list[Repair], list[Stale]]:
    """As `repair_sizes`; also what of attributes that no forward reads can follow, and what cannot (`stale_sizes`).

    Where nothing but layers of PyTorch hold sizes that matter, one run shows both: that every call gets its sizes, and
    that this takes none of the attributes.
    """
    modules = dict(modules_of(model))
    with _modes_kept(modules):
        done = _applied(standard_repairs(modules, sizes), modules)
        followed, stale = outdated(model, inputs, sizes, {(r.module, r.attribute) for r in done})
        found = wrong_without(model, inputs, sizes, followed)
        if found:
            done += _Search(model, inputs, sizes, modules).run(None if followed else found)
        late = _applied(late_repairs(model), modules)
        done += late
        if found or late:
            followed, stale = stale_sizes(model, inputs, sizes, {(r.module, r.attribute) for r in done})
        return done + followed, stale


def _applied(repairs: list[Repair], modules: dict[str, nn.Module]) -> list[Repair]:
    for repair in repairs:
        repair.apply(modules[repair.module])
    return repairs


@contextmanager
def _modes_kept(modules: dict[str, nn.Module]) -> Iterator[None]:
    """Inside, modules may be switched to evaluation; they are switched back unless something is raised."""
    modes = [(module, module.training) for module in modules.values()]
    yield
    for module, training in modes:
        if module.training != training:
            module.training = training


class _Search:
    """Tries attributes one after the other; what helps in one module is applied to its siblings of the same class."""

    def __init__(
        self,
        model: nn.Module,
        inputs: object,
        sizes: Sizes,
        modules: dict[str, nn.Module],
        about: Collection[int] = (),
    ) -> None:
        self.model, self.inputs, self.sizes, self.modules = model, inputs, sizes, modules
        self.about, self.last = about, max(about, default=len(sizes.recording.calls))
        self.done: set[tuple[str, str, Path]] = set()

    def run(self, found: list[Disagreement] | None = None) -> list[Repair]:
        """Repair until nothing is wrong; returns what was set. found: what is wrong, if that is known."""
        done: list[Repair] = []
        found = check_sizes(self.model, self.inputs, self.sizes) if found is None else found
        while found and found[0].call <= self.last:
            step, found = self._step(found)
            done += step
            self.done |= {(r.module, r.attribute, r.path) for r in step}
        return done

    def _step(self, found: list[Disagreement]) -> tuple[list[Repair], list[Disagreement]]:
        """Mend the first disagreement: the first candidate after which the run gets further."""
        first = found[0].call
        severity = _severity(found)
        tries = None if not self.about or first in self.about else _BRIEFLY
        for candidate in islice(self._candidates(first), tries):
            repairs = [r for one in candidate for r in self._with_siblings(one, first)]
            for repair in repairs:
                repair.apply(self.modules[repair.module])
            after = check_sizes(self.model, self.inputs, self.sizes)
            if _severity(after) < severity:
                return repairs, after
            for repair in repairs:
                put_number(self.modules[repair.module], repair.attribute, repair.path, repair.old)
        call = self.sizes.recording.calls[min(first, len(self.sizes.recording.calls) - 1)]
        raise SizeConflict(first, call.module, call.name.removeprefix("aten::"), found[0].detail)

    def _candidates(self, first: int) -> Iterator[list[Repair]]:
        """Attributes that still hold an old size, in the executing module, then its ancestors.

        A list that holds the sizes of all parts changes as a whole; else one number at a time, nearest module first.
        """
        calls = self.sizes.recording.calls
        call = calls[min(first, len(calls) - 1)]
        pairs = self._changes_near(first)
        parts = [(len(e.axis), self.sizes.count(e.axis, 0)) for e in call.expects if e.position is not None]
        for name in self._near(call.module):
            yield from _whole_lists(name, self.modules[name], parts)
            numbers = list(numbers_of(self.modules[name]))
            for old, new in pairs:
                single = [Repair(name, attribute, path, old, new) for attribute, path, n in numbers if n == old]
                yield from ([repair] for repair in single)
                if len(single) > 1:  # sizes the code divides by each other must change at once
                    yield single
        yield from self._of_other_widths(call.module, pairs)

    def _of_other_widths(self, module: str, known: list[tuple[int, int]]) -> Iterator[list[Repair]]:
        """Attributes that hold another width of the module: the call may be given its difference to one.

        One at a time, then two and all of a module at once, for code may also compare them.
        """
        prefix = f"{module}." if module else ""
        calls = [c for c in self.sizes.recording.calls if c.module == module or c.module.startswith(prefix)]
        pairs = dict.fromkeys([*known, *(pair for call in calls for pair in self.sizes.changes(call))])
        for name in self._near(module)[: module.count(".") + 2 if module else 1]:
            numbers = [n for n in numbers_of(self.modules[name]) if (name, n[0], n[1]) not in self.done]
            fitting = [[Repair(name, a, path, old, new) for old, new in pairs if old == n] for a, path, n in numbers]
            yield from ([repair] for each in fitting for repair in each if (repair.old, repair.new) not in known)
            several = [each[0] for each in fitting if each]
            yield from islice((list(pair) for pair in combinations(several, 2)), _COMBINED)
            if len(several) > 2:
                yield several

    def _owners(self, at: int, module: str) -> Iterator[tuple[int, str]]:
        """Like calls and, for each, the module that stands to it as `module` stands to call `at`'s."""
        calls = self.sizes.recording.calls
        prefix = calls[at].module
        if module != prefix and module.startswith(prefix + "." if prefix else ""):  # a child
            tail = module[len(prefix) :]
            for k in like_calls(self.sizes.recording, self.modules, at):
                if calls[k].module + tail in self.modules:
                    yield k, calls[k].module + tail
            return
        suffix = prefix[len(module) :]  # itself or an ancestor
        for k in like_calls(self.sizes.recording, self.modules, at, suffix):
            yield k, calls[k].module[: len(calls[k].module) - len(suffix)]

    def _changes_near(self, at: int) -> list[tuple[int, int]]:
        """(old, new) sizes of a call and its neighbours, then small fractions of them (for 3 x head size)."""
        pairs = self._direct_changes_near(at)
        parts = [(old // n, new // n) for n in (2, 3, 4) for old, new in pairs if old % n == 0 and new % n == 0]
        return list(dict.fromkeys(pairs + parts))

    def _direct_changes_near(self, at: int) -> list[tuple[int, int]]:
        calls = self.sizes.recording.calls
        return [p for k in (at, at - 1, at + 1) if 0 <= k < len(calls) for p in self.sizes.changes(calls[k])]

    def _near(self, name: str) -> list[str]:
        """A module, its ancestors, then its descendants (whose methods it may call)."""
        prefix = name + "." if name else ""
        names = [name]
        while names[-1]:
            names.append(names[-1].rpartition(".")[0])
        return names + [
            n for n in self.modules if n.startswith(prefix) and n != name and n.count(".") <= prefix.count(".") + 1
        ]

    def _with_siblings(self, repair: Repair, first: int) -> list[Repair]:
        """The same attribute in every module of the same class, where the corresponding call changes likewise.

        What is a size here is one there: a fraction of another width that happens to be as large is not meant.
        """
        calls = self.sizes.recording.calls
        at = min(first, len(calls) - 1)
        direct = (repair.old, repair.new) in self._direct_changes_near(at)
        near = self._direct_changes_near if direct else self._changes_near
        result = [repair]
        for k, owner in self._owners(at, repair.module):
            if (owner, repair.attribute, repair.path) in self.done:  # its size is a new one, whatever it equals
                continue
            if owner == repair.module or type(self.modules[owner]) is not type(self.modules[repair.module]):
                continue
            held = get_number(self.modules[owner], repair.attribute, repair.path)
            position = repair.path[0] if repair.path else None
            exact = {
                len(e.axis): self.sizes.count(e.axis, 0) for e in calls[k].expects if e.position in (position, None)
            }
            new = exact.get(held, dict(reversed(near(k))).get(held))
            if new is not None and new != held:
                result.append(Repair(owner, repair.attribute, repair.path, held, new))
        return result


def like_calls(recording: Recording, modules: dict[str, nn.Module], at: int, suffix: str | None = None) -> list[int]:
    """Calls that are the same operator at the same point of a module of the same class as call `at`'s."""
    calls = recording.calls
    seen: dict[str, int] = {}
    ordinal = []
    for call in calls:
        ordinal.append(seen.get(call.module, 0))
        seen[call.module] = ordinal[-1] + 1
    wanted = calls[at]
    kind = type(modules[wanted.module])
    return [
        k
        for k, call in enumerate(calls)
        if call.name == wanted.name
        and ordinal[k] == ordinal[at]
        and call.module in modules
        and type(modules[call.module]) is kind
        and (
            suffix is None
            or (call.module.endswith(suffix) and call.module[: len(call.module) - len(suffix)] in modules)
        )
    ]


def _severity(found: list[Disagreement]) -> tuple[float, int]:
    """Smaller is better: nothing wrong, then a later first disagreement, then fewer of them there."""
    if not found:
        return (-float("inf"), 0)
    return (-found[0].call, sum(d.call == found[0].call for d in found))


def _whole_lists(name: str, module: nn.Module, parts: list[tuple[int, int]]) -> Iterator[list[Repair]]:
    """Lists whose entries are the old sizes of all parts of a split."""
    for attribute, value in vars(module).items():
        if len(parts) > 1 and isinstance(value, list | tuple) and list(value) == [old for old, _ in parts]:
            yield [Repair(name, attribute, (k,), old, new) for k, (old, new) in enumerate(parts) if old != new]
