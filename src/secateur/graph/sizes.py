"""Sizes outside tensors: what every call promises after a cut, and the attributes of modules that hold a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from secateur.errors import CutError
from secateur.graph.channels import Bools, Solution
from secateur.graph.labels import Axis, Label
from secateur.graph.recorder import Call, Recording

Shapes = tuple[tuple[int, ...], ...]
Path = tuple[int, ...]  # where inside a (nested) list attribute the number stands; () for a plain integer


#: How a conflict says that the code took another path.
OTHERWISE = "is called where the original calls"
#: The same where it shows in the order of dimensions: einsum puts those of length 1 last.
EXCHANGED = ", in another order"


@dataclass(frozen=True)
class Repair:
    """Attribute `attribute` (entry `path`) of module `module` held size `old` and now holds `new`."""

    module: str
    attribute: str
    path: Path
    old: int
    new: int

    def apply(self, module: nn.Module) -> None:
        """Set the attribute on a module."""
        put_number(module, self.attribute, self.path, self.new)


@dataclass(frozen=True)
class Done:
    """What was done about a size in code: remedy `number` of `secateur.graph.settling`, without some of the calls."""

    number: int
    without: tuple[int, ...] = ()
    name: str = ""


class SizeConflict(CutError):
    """An operator got sizes that no attribute explains; `call` is where, `done` what was done about it."""

    def __init__(self, call: int, module: str, operator: str, detail: str, done: Done | None = None) -> None:
        then = f"; {done.name}" if done is not None and done.name else ""
        super().__init__(f"The size used by {operator} in {module or 'the model'} is written in code: {detail}{then}.")
        self.call, self.module, self.operator, self.detail, self.done = call, module, operator, detail, done

    def settled(self, done: Done) -> SizeConflict:
        """The same, with what was done about it."""
        return SizeConflict(self.call, self.module, self.operator, self.detail, done)


class Sizes:
    """What every recorded call promises after a cut."""

    def __init__(self, recording: Recording, solution: Solution, alive: Bools) -> None:
        self.recording, self.solution, self.alive = recording, solution, alive
        self._count: dict[int, int] = {}

    def count(self, axis: Axis, size: int) -> int:
        """Alive indices of an axis; an unlabelled dimension keeps its size."""
        if axis is None:
            return size
        count = self._count.get(id(axis))
        if count is None:
            count = self._count[id(axis)] = int(np.count_nonzero(self.alive[axis]))
        return count

    def shapes(self, call: Call) -> tuple[tuple[int, ...], ...]:
        """Output shapes of a call after the cut."""
        known = self._count
        found: list[tuple[Any, ...]] = []
        for label, shape in zip(call.labels, call.shapes, strict=False):
            if len(label) == len(shape):
                # counts are mostly known, and are looked up without a call
                sizes = [n if a is None else known.get(id(a)) for a, n in zip(label, shape, strict=True)]
                if None in sizes:
                    sizes = [self.count(a, n) for a, n in zip(label, shape, strict=True)]
                found.append(tuple(sizes))
            else:
                found.append(shape)
        return tuple(found)

    def fitting(self, call: Call, promised: Shapes, got: Shapes) -> Shapes:
        """`promised`, except for dimensions that meet nothing: what code makes and does not use has the size it has."""
        return tuple(
            tuple(
                m if axis is not None and not self._bound[self.solution.component[axis]].any() else n
                for axis, n, m in zip(label, want, had, strict=True)
            )
            if len(label) == len(want) == len(had)
            else want
            for label, want, had in zip(call.labels, promised, got, strict=False)
        )

    @cached_property
    def _bound(self) -> Bools:
        """Components that have to do with a parameter, or that anything fixes."""
        component, ledger = self.solution.component, self.recording.ledger
        bound = np.zeros(int(component.max(initial=-1)) + 1, dtype=bool)
        axes = [place.axis for place in self.solution.places] + [axis for axis, _ in ledger.fixes]
        for axis in [*axes, *(a for p in ledger.products for a in (p.slots, *p.axes))]:
            bound[component[axis]] = True
        return bound

    def changes(self, call: Call) -> list[tuple[int, int]]:
        """(old, new) sizes this call has to do with, most specific first: arguments, then output dimensions."""
        pairs = [(len(e.axis), self.count(e.axis, 0)) for e in call.expects]
        for label in call.labels:
            pairs += self._label_changes(label)
        if call.weight is not None:
            pairs += self._label_changes(call.weight)
        return list(dict.fromkeys((old, new) for old, new in pairs if old != new))

    def _label_changes(self, label: Label) -> Iterator[tuple[int, int]]:
        for axis in label:
            if axis is not None:
                yield len(axis), self.count(axis, 0)
                distinct = np.unique(axis)
                if len(distinct) != len(axis):
                    yield len(distinct), int(self.alive[distinct].sum())


def numbers_of(module: nn.Module) -> Iterator[tuple[str, Path, int]]:
    """Integers a module holds as attributes, in lists and tuples too."""
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or attribute in ("training", "call_super_init", "dump_patches"):
            continue
        for path, number in _walk(value):
            yield attribute, path, number


def _walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | np.integer):
        yield path, int(value)
    elif isinstance(value, list | tuple) and len(path) < 2:
        for k, item in enumerate(value):
            yield from _walk(item, (*path, k))


def get_number(module: nn.Module, attribute: str, path: Path) -> Any:
    value: Any = getattr(module, attribute, None)
    for k in path:
        if not isinstance(value, list | tuple) or k >= len(value):
            return None
        value = value[k]
    return value


def put_number(module: nn.Module, attribute: str, path: Path, new: int) -> None:
    kind = type(module)
    if path:
        setattr(module, attribute, _replaced(getattr(module, attribute), path, new))
    elif attribute in vars(module) and kind.__setattr__ is nn.Module.__setattr__ and not hasattr(kind, attribute):
        vars(module)[attribute] = new  # past a search for parameters of that name
    else:
        setattr(module, attribute, new)


def _replaced(value: Any, path: Path, new: int) -> Any:
    if not path:
        return new
    items = list(value)
    items[path[0]] = _replaced(items[path[0]], path[1:], new)
    return (
        items
        if isinstance(value, list)
        else type(value)(items)
        if not hasattr(value, "_fields")
        else type(value)(*items)
    )
