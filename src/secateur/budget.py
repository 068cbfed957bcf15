"""Budgets: how much of a network's cost may remain.

    Budget.parse("flops=0.5")                 half of the multiply-accumulates
    Budget.parse("flops=0.5,params=2M")       several bounds, all to be met
    Budget.parse({"peak": 0.25})              a quarter of the peak activation memory

A value in (0, 1] is the fraction of the original that remains; a value above 1 is an absolute number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from secateur._hints import nearest
from secateur._protocols import CostLike
from secateur.errors import BudgetError

#: Key of a budget -> name of the cost it bounds.
KEYS: Mapping[str, str] = {
    "flops": "macs",
    "params": "params",
    "activations": "activations",
    "peak": "peak_activations",
}
_ALSO_CALLED = {
    "macs": "flops",
    "parameters": "params",
    "weights": "params",
    "memory": "peak",
    "peak_activations": "peak",
}
_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([kKmMgG]?)", re.ASCII)
_REMEDY = "give a fraction of the original in (0, 1], such as 0.5, or an absolute number above 1, such as 2e6 or 2M"


@dataclass(frozen=True)
class Budget:
    """One or more bounds on cost, in the order they were given: pairs of key and value."""

    bounds: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        """Refuse an empty budget, unknown or repeated keys and impossible values."""
        if not self.bounds:
            raise BudgetError(f"The budget is empty: name at least one of {', '.join(KEYS)}, such as 'flops=0.5'.")
        seen: set[str] = set()
        for key, value in self.bounds:
            _known(key)
            _check(key, value, value)
            if key in seen:
                raise BudgetError(f"The budget bounds {key} twice: give {key} once.")
            seen.add(key)

    @classmethod
    def parse(cls, spec: str | Mapping[str, float | str] | Budget) -> Budget:
        """Read a budget from 'key=value,key=value' or a mapping, or return one as it is; else BudgetError."""
        if isinstance(spec, Budget):
            return spec
        if isinstance(spec, str):
            return cls(tuple(_pair(part) for part in spec.split(",")) if spec.strip() else ())
        if isinstance(spec, Mapping):
            return cls(tuple((_known(key), _value(key, value)) for key, value in spec.items()))
        raise BudgetError(f"The budget {spec!r} is not understood: write 'flops=0.5' or {{'flops': 0.5}}.")

    def limits(self, cost: CostLike) -> dict[str, float]:
        """Return absolute bounds by name of the cost ('macs', 'params', ...) for an original that costs `cost`."""
        return {KEYS[key]: value * getattr(cost, KEYS[key]) if value <= 1 else value for key, value in self.bounds}

    def as_dict(self) -> dict[str, float]:
        """Return the bounds as they were given, ready for JSON."""
        return dict(self.bounds)

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return ",".join(f"{key}={value!r}" for key, value in self.bounds)


def _pair(part: str) -> tuple[str, float]:
    """Read one 'key=value'."""
    key, sign, text = part.partition("=")
    if not sign:
        raise BudgetError(f"The budget part {part.strip()!r} is not understood: write key=value, such as 'flops=0.5'.")
    return _known(key.strip()), _value(key.strip(), text)


def _known(key: object) -> str:
    """Return the key, or say which keys there are."""
    if isinstance(key, str) and key in KEYS:
        return key
    word = key.casefold() if isinstance(key, str) else ""
    close = [_ALSO_CALLED[word]] if word in _ALSO_CALLED else nearest(word, KEYS)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise BudgetError(f"Unknown budget key {key!r}: {hint}The keys are {', '.join(KEYS)}.")


def _value(key: str, value: object) -> float:
    """Read a number, or text with a number and an optional suffix K, M or G."""
    number: object = value
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value.strip())
        number = float(match[1]) * _SUFFIXES[match[2].upper()] if match else None
    return _check(key, number, value)


def _check(key: str, number: object, given: object) -> float:
    """Return `number` as a positive finite float; BudgetError showing what was `given` otherwise."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise BudgetError(f"The budget {key}={_shown(given)} is not a number: {_REMEDY}.")
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or value <= 0:
        raise BudgetError(f"The budget {key}={_shown(given)} is not a positive finite number: {_REMEDY}.")
    return value


def _shown(given: object) -> str:
    """Return what the user wrote, cut short if long."""
    text = given.strip() if isinstance(given, str) else repr(given)
    return text if len(text) <= 40 else text[:37] + "..."
