"""The operators of an exported graph as a list of calls, read from JSON, and one call carried out.

`Program` runs them, and `rehearsal` runs them beforehand without numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from secateur._files import shown
from secateur.runtime.archive import TYPES, NotRun
from secateur.runtime.operators import find

_LAYOUTS: Mapping[int, torch.layout] = {7: torch.strided}
_FORMATS: Mapping[int, torch.memory_format] = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_PLAIN: Mapping[str, type] = {"as_int": int, "as_bool": bool, "as_string": str}


@dataclass(frozen=True)
class Name:
    """A value of the graph, to be looked up when it runs."""

    name: str


class Device:
    """Wherever the parameters are."""


@dataclass(frozen=True)
class Step:
    """One call of an operator; `target` is its name in the file, by which it is found again after pickling."""

    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Any, ...]  # a name, a list of names, or None for what nobody reads
    spent: tuple[str, ...]  # values no later step reads

    @cached_property
    def call(self) -> Callable[..., Any]:
        """The operator; NotRun where it is not one that a network needs."""
        return find(self.target)

    @property
    def names(self) -> list[str]:
        """Of all its outputs that anybody reads."""
        return flat_names(self.outputs)

    def __reduce__(self) -> Any:
        return Step, (self.target, self.args, self.kwargs, self.outputs, self.spent)

    def arguments(self, values: Mapping[str, Any], device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """What it is called with, positional and by keyword."""
        keywords = {name: fill(value, values, device) for name, value in self.kwargs.items()}
        return [fill(value, values, device) for value in self.args], keywords


def steps_of(nodes: Sequence[Mapping[str, Any]], results: Sequence[Any], known: Sequence[str]) -> list[Step]:
    """The calls of a graph's nodes, in order.

    results: what the graph returns. known: names of what it is given.

    Raises:
        NotRun: an operator or argument that no network needs. ValueError, KeyError, TypeError: the graph is damaged.
    """
    last: dict[str, int] = {}
    computed = set(known)
    made = []
    for index, node in enumerate(nodes):
        args, kwargs = [], {}
        for row in node["inputs"]:
            value = argument(row["arg"])
            if row["kind"] == 2:
                kwargs[str(row["name"])] = value
            else:
                args.append(value)
        outputs = tuple(_output(row) for row in node["outputs"])
        read = names_in([args, *kwargs.values()])
        _check_known(read, computed)
        computed.update(flat_names(outputs))
        last.update((name, index) for name in [*read, *flat_names(outputs)])
        made.append((node["target"], tuple(args), kwargs, outputs))
    _check_known(names_in(results), computed)
    last.update((name, len(made)) for name in names_in(results))
    spent: list[list[str]] = [[] for _ in range(len(made) + 1)]
    for name, index in last.items():
        spent[index].append(name)
    steps = [Step(*step, tuple(spent[index])) for index, step in enumerate(made)]
    for step in steps:
        step.call  # noqa: B018 (an unknown operator shows here, not when the network runs)
    return steps


def _check_known(names: Sequence[str], known: set[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"nothing computes {shown(unknown[0])}")


def argument(row: Mapping[str, Any]) -> Any:
    """One argument: a constant, a `Name`, or a list of them."""
    ((kind, value),) = row.items()
    if kind == "as_none":
        return None
    if kind in _PLAIN and type(value) is _PLAIN[kind]:
        return value
    if kind == "as_float":
        return _FLOATS[value] if isinstance(value, str) else float(value)
    if kind == "as_tensor":
        return Name(value["name"])
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return Name(value["as_name"]) if "as_name" in value else argument(value)
    if kind == "as_optional_tensor":
        return argument(value)
    if kind in ("as_tensors", "as_optional_tensors"):
        return [Name(v["name"]) if "name" in v else argument(v) for v in value]
    if kind in ("as_ints", "as_floats", "as_bools", "as_strings", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
        single = kind.removesuffix("s")
        return [argument({single: v}) for v in value]
    if kind in _TABLES:
        return _TABLES[kind][value]
    if kind == "as_device":
        return Device()
    raise NotRun(f"The exported network has an argument of the kind {shown(kind)}, which is not run from a file.")


_TABLES: Mapping[str, Mapping[int, Any]] = {
    "as_scalar_type": TYPES,
    "as_memory_format": _FORMATS,
    "as_layout": _LAYOUTS,
}


def _output(row: Mapping[str, Any]) -> Any:
    value = argument(row)
    if isinstance(value, Name):
        return value.name
    if isinstance(value, list):
        return [item.name if isinstance(item, Name) else None for item in value]
    return None


def fill(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    """An argument with values in the place of names."""
    if isinstance(value, Name):
        return values[value.name]
    if isinstance(value, list):
        return [fill(item, values, device) for item in value]
    return device if isinstance(value, Device) else value


def keep(values: dict[str, Any], outputs: tuple[Any, ...], got: Any) -> None:
    """Put what a call returned under the names of its outputs."""
    if not outputs:  # an assertion
        return
    for output, value in zip(outputs, got if len(outputs) > 1 else [got], strict=True):
        if isinstance(output, list):
            values.update((name, v) for name, v in zip(output, value, strict=True) if name is not None)
        elif output is not None:
            values[output] = value


def names_in(value: Any) -> list[str]:
    if isinstance(value, Name):
        return [value.name]
    return [n for item in value for n in names_in(item)] if isinstance(value, list | tuple) else []


def flat_names(outputs: tuple[Any, ...]) -> list[str]:
    return [n for o in outputs for n in (o if isinstance(o, list) else [o]) if n is not None]
