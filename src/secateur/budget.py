"""Budgets: how much of a network's cost may remain.

    Budget.parse("flops=0.5")                 half of the multiply-accumulates
    Budget.parse("flops=0.5,params=2M")       several bounds, all to be met
    Budget.parse({"peak": 0.25})              a quarter of the peak activation memory
    Budget.parse("latency=0.6@onnxruntime")   60% of the time the original takes in ONNX Runtime on this machine
    Budget.parse("latency=5ms@openvino:batch=8:threads=2")
    Budget.parse("speedup=2@onnxruntime")     twice as fast there: latency=0.5@onnxruntime
    Budget.parse("size=4MB")                  the weights in single precision, 4 bytes each: params=1M

A value in (0, 1] is the fraction of the original that remains; a value above 1 is an absolute number, a latency has a
unit, ms or us, and a size kB, MB or GB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    "latency": "latency",  # microseconds
}
_ALSO_CALLED = {
    "macs": "flops",
    "parameters": "params",
    "weights": "params",
    "memory": "peak",
    "peak_activations": "peak",
    "time": "latency",
    "speed": "latency",
}
#: Words for a bound that is kept under another key.
WORDS: Mapping[str, str] = {"speedup": "latency", "size": "params"}
_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_FIGURE = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_NUMBER = re.compile(_FIGURE + r"\s*([kKmMgG]?)", re.ASCII)
_TIME = re.compile(_FIGURE + r"\s*(ms|us|µs)?")
_BYTES = re.compile(_FIGURE + r"\s*([kmg]i?)?b", re.ASCII | re.IGNORECASE)
_PER_WEIGHT = 4  # bytes, in single precision
_MICROSECONDS = {"ms": 1e3, "us": 1.0, "µs": 1.0}
_AS_LATENCY = "write such as latency=0.6@onnxruntime or latency=5ms@onnxruntime:batch=1:threads=1"
_REMEDY = "give a fraction of the original in (0, 1], such as 0.5, or an absolute number above 1, such as 2e6 or 2M"


@dataclass(frozen=True)
class Target:
    """Where a latency is meant: a runtime on this machine, images at a time, threads."""

    runtime: str
    batch: int = 1
    threads: int = 1

    def __str__(self) -> str:
        """Return the part of a budget behind the @."""
        batch = f":batch={self.batch}" if self.batch != 1 else ""
        return f"{self.runtime}{batch}{f':threads={self.threads}' if self.threads != 1 else ''}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read 'runtime:batch=8:threads=2'; else BudgetError."""
        runtime, *options = (part.strip() for part in text.split(":"))
        numbers: dict[str, int] = {}
        for option in options:
            key, _, number = option.partition("=")
            if key not in ("batch", "threads") or key in numbers or not re.fullmatch(r"[1-9]\d{0,5}", number, re.ASCII):
                raise BudgetError(
                    f"The latency of {_shown(text)} is not understood at {_shown(option)!r}: {_AS_LATENCY}."
                )
            numbers[key] = int(number)
        if not runtime:
            raise BudgetError(f"A latency is that of a runtime: {_AS_LATENCY}.")
        return cls(runtime, **numbers)


@dataclass(frozen=True)
class Budget:
    """One or more bounds on cost, in the order they were given: pairs of key and value; `target` of a latency."""

    bounds: tuple[tuple[str, float], ...]
    target: Target | None = None

    def __post_init__(self) -> None:
        """Refuse an empty budget, unknown or repeated keys and impossible values."""
        if not self.bounds:
            raise BudgetError(f"The budget is empty: name at least one of {', '.join(KEYS)}, such as 'flops=0.5'.")
        seen: set[str] = set()
        for key, value in self.bounds:
            _known(key, KEYS)
            _check(key, value, value)
            if key in seen:
                raise BudgetError(f"The budget bounds {key} twice: give {key} once.")
            seen.add(key)
        if ("latency" in seen) != (self.target is not None):
            raise BudgetError(f"A latency is that of a runtime: {_AS_LATENCY}.")

    @classmethod
    def parse(cls, spec: str | Mapping[str, float | str] | Budget) -> Budget:
        """Read a budget from 'key=value,key=value' or a mapping, or return one as it is; else BudgetError."""
        if isinstance(spec, Budget):
            return spec
        if isinstance(spec, str):
            return cls._of([_pair(part) for part in spec.split(",")] if spec.strip() else [])
        if isinstance(spec, Mapping):
            return cls._of([_translated(_known(key), value) for key, value in spec.items()])
        raise BudgetError(f"The budget {spec!r} is not understood: write 'flops=0.5' or {{'flops': 0.5}}.")

    @classmethod
    def _of(cls, pairs: Sequence[tuple[str, object]]) -> Budget:
        """From keys and values as they were given."""
        times = {key: _time(value) for key, value in pairs if key == "latency"}
        bounds = tuple((key, times[key][0] if key in times else _value(key, value)) for key, value in pairs)
        return cls(bounds, times["latency"][1] if times else None)

    def limits(self, cost: CostLike) -> dict[str, float]:
        """Return absolute bounds by name of the cost ('macs', 'params', ...) for an original that costs `cost`."""
        return {KEYS[key]: value * getattr(cost, KEYS[key]) if value <= 1 else value for key, value in self.bounds}

    def as_dict(self) -> dict[str, float | str]:
        """Return the bounds in a form that `parse` reads, ready for JSON: numbers, save for a latency."""
        return {key: value if key != "latency" else self._latency(value) for key, value in self.bounds}

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return ",".join(f"{key}={value}" for key, value in self.as_dict().items())

    def _latency(self, value: float) -> str:
        return f"{value!r}@{self.target}" if value <= 1 else f"{value / 1e3:.12g}ms@{self.target}"


def _pair(part: str) -> tuple[str, object]:
    """Read one 'key=value'."""
    key, sign, text = part.partition("=")
    if not sign:
        raise BudgetError(f"The budget part {part.strip()!r} is not understood: write key=value, such as 'flops=0.5'.")
    return _translated(_known(key.strip()), text)


def _translated(key: str, value: object) -> tuple[str, object]:
    """A bound under the key it is kept by: a speed-up is a latency, a size a number of parameters."""
    return _READ[key](value) if key in WORDS else (key, value)


def _speedup(given: object) -> tuple[str, object]:
    """'2@onnxruntime' is 'latency=0.5@onnxruntime'."""
    text, at, rest = given.partition("@") if isinstance(given, str) else (given, "", "")
    if not at:
        raise BudgetError(f"The budget speedup={_shown(given)} names no runtime: write such as speedup=2@onnxruntime.")
    match = re.fullmatch(_FIGURE + r"\s*x?", str(text).strip(), re.ASCII)
    factor = float(match[1]) if match else 0.0
    if not 1 < factor < math.inf:
        raise BudgetError(
            f"The budget speedup={_shown(given)} is not a number above 1: write such as speedup=2@onnxruntime, for "
            "twice as fast."
        )
    return "latency", f"{1 / factor!r}@{rest}"


def _size(given: object) -> tuple[str, object]:
    """'4MB' is 'params=1e6'; a share of the size is one of the parameters."""
    match = _BYTES.fullmatch(given.strip()) if isinstance(given, str) else None
    if match is None:
        share = _value("size", given)
        if share > 1:
            raise BudgetError(f"The budget size={_shown(given)} has no unit: write such as size=4MB, or a fraction.")
        return "params", share
    prefix = (match[2] or "").upper()
    unit = 1024.0 if prefix.endswith("I") else 1000.0
    weights = float(match[1]) * unit ** " KMG".index(prefix[:1] or " ") / _PER_WEIGHT
    if not weights > 1:
        raise BudgetError(f"The budget size={_shown(given)} holds no network: write such as size=4MB.")
    return "params", weights


_READ: Mapping[str, Callable[[object], tuple[str, object]]] = {"speedup": _speedup, "size": _size}


def _known(key: object, known: Iterable[str] = (*KEYS, *WORDS)) -> str:
    """Return the key, or say which keys there are."""
    known = tuple(known)
    if isinstance(key, str) and key in known:
        return key
    word = key.casefold() if isinstance(key, str) else ""
    close = [_ALSO_CALLED[word]] if word in _ALSO_CALLED else nearest(word, known)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise BudgetError(f"Unknown budget key {key!r}: {hint}The keys are {', '.join(known)}.")


def _time(given: object) -> tuple[float, Target]:
    """Read '0.6@onnxruntime' or '5ms@onnxruntime': a fraction or microseconds, and of what."""
    text, at, rest = given.partition("@") if isinstance(given, str) else (given, "", "")
    if not at:
        raise BudgetError(f"The budget latency={_shown(given)} names no runtime: {_AS_LATENCY}.")
    match = _TIME.fullmatch(str(text).strip())
    if match is None:
        raise BudgetError(f"The budget latency={_shown(given)} is not understood: {_AS_LATENCY}.")
    value, unit = _check("latency", float(match[1]), given), match[2]
    if unit is None and value > 1:
        raise BudgetError(f"The budget latency={_shown(given)} has no unit: {_AS_LATENCY}.")
    value *= _MICROSECONDS[unit] if unit else 1.0
    if unit and value <= 1:
        raise BudgetError(f"The budget latency={_shown(given)} is less than any network takes: {_AS_LATENCY}.")
    return value, Target.parse(rest)


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
