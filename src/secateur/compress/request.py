"""What is asked of `compress`, in the words people use, read strictly; as JSON it is what a resumed search goes by."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from secateur._hints import checked_seed, choose
from secateur.allocate import MEASURED, Constraints
from secateur.allocate.presets import align_of
from secateur.budget import KEYS, Budget
from secateur.errors import ConfigError
from secateur.methods import method as row_of
from secateur.repair import repairs as made_of
from secateur.runtime.engines import ENGINES

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_TRIALS, _MOST_TRIALS = 24, 40  # of the race: where nothing limits it, and where time does
_EPOCHS = 10  # where nothing says how long to train
_FIRST = 0.5  # share that is tried first where only a drop is given

#: Methods of the race, where nobody names others: quick ones that did well on held-out networks.
METHODS = ("fpgm", "cap", "lamp", "cp", "l1", "taylor", "bn_scale")
#: Those of them that are quick where widths are measured, and not where they search for widths themselves.
MEASURED_ONLY = ("cap",)
REPAIRS = ("least_squares", "batchnorm", "compensation", "least_squares+batchnorm", "variance", "none")
#: Where nothing is trained afterwards, what takes the place of training is tried, too.
UNTRAINED = (*REPAIRS, "least_squares+distillation")
ALLOCATORS = ("global", "uniform", "per_cost", MEASURED)


@dataclass(frozen=True)
class Request:
    """One task: what to reach, and what may be spent on it.

    budget: what may remain. fixed: whether it was asked for, rather than being where the search for a drop begins.
    max_drop: largest loss of the metric, in points (hundredths). seconds: of all; None: no limit.
    trials: candidates of the race at most. epochs: of the last fine-tuning at most; 0 trains nothing.
    """

    budget: Budget
    fixed: bool
    max_drop: float | None
    seconds: float | None
    trials: int
    epochs: int | None
    runtime: str | None
    methods: tuple[str, ...]
    repairs: tuple[str, ...]
    allocators: tuple[str, ...]
    aligns: tuple[int, ...]
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Plain values, of which two equal requests have the same."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()} | {
            "budget": str(self.budget)
        }

    @property
    def key(self) -> str:
        """The cost that is told beside the accuracy: a latency, where there is one."""
        bounds = [key for key, _ in self.budget.bounds]
        return "latency" if "latency" in bounds else bounds[0]


def request(
    *,
    budget: str | Mapping[str, float | str] | Budget | None = None,
    bounds: Mapping[str, Any] | None = None,
    runtime: str | None = None,
    max_drop: float | None = None,
    time: str | float | None = "30m",
    trials: int | None = None,
    epochs: int | None = None,
    methods: Iterable[str] | str | None = None,
    repairs: Iterable[str] | str | None = None,
    allocators: Iterable[str] | str | None = None,
    align: int | str | None = None,
    seed: int = 0,
) -> Request:
    """The request of these words; the arguments are those of `compress`, and `bounds` its speedup, flops and so on.

    Raises:
        ConfigError, BudgetError: a word is not understood, or nothing is asked for; one sentence.
    """
    if runtime is not None:
        ENGINES[choose(runtime, ENGINES, "runtime")].require()
    wanted = _budget(budget, {k: v for k, v in (bounds or {}).items() if v is not None}, runtime)
    if wanted is None and max_drop is None:
        raise ConfigError(
            "Nothing says how small the network is to become: give speedup=2, latency='5ms', flops=0.5, size='4MB' or "
            "max_drop=1."
        )
    number = isinstance(max_drop, int | float) and not isinstance(max_drop, bool)
    if max_drop is not None and not (number and 0 <= max_drop < 100):
        raise ConfigError(f"max_drop is {max_drop!r}: give points of the metric, such as 1 for one percent.")
    for name, value, least in (("trials", trials, 1), ("epochs", epochs, 0)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ConfigError(f"{name} is {value!r}: give a whole number of at least {least}.")
    seconds = None if time is None else seconds_of(time)
    named = _names("methods", methods, METHODS)
    for each in named:
        row = row_of(each)
        if row.acts == "while training" or row.begins != "weights" or row.name == "scratch":
            raise ConfigError(
                f"The method {each!r} acts while the network is trained, and compress compares methods that choose "
                "channels of a trained one: leave it out."
            )
    mending = _names("repairs", repairs, UNTRAINED if epochs == 0 else REPAIRS)
    for each in mending:
        made_of(repair_names(each))
    first: dict[str, float | str] = {"flops": _FIRST} if runtime is None else {"latency": f"{_FIRST}@{runtime}"}
    budget = wanted or Budget.parse(first)
    timed = budget.target is not None
    return Request(
        budget=budget,
        fixed=wanted is not None,
        max_drop=None if max_drop is None else float(max_drop),
        seconds=seconds,
        trials=trials or (_TRIALS if seconds is None else _MOST_TRIALS),
        epochs=_EPOCHS if epochs is None and seconds is None else epochs,
        runtime=runtime or (budget.target.runtime if budget.target else None),
        methods=named,
        repairs=mending,
        allocators=tuple(choose(e, ALLOCATORS, "allocator") for e in _names("allocators", allocators, ALLOCATORS)),
        aligns=(Constraints(align=align_of(align)).align,) if align is not None else (1,) if timed else (1, 8),
        seed=checked_seed(seed),
    )


def _names(what: str, given: Any, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The names in a list, or in a text with commas; the usual ones if nothing is said."""
    if given is None:
        return usual
    parts = given.split(",") if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"{what}={given!r} are no names: give a list of them, such as {list(usual[:2])}.")
    if not parts:
        raise ConfigError(f"{what} names none: give one, or leave it out for {', '.join(usual[:3])} and others.")
    return tuple(part.strip() for part in parts)


def workers_of(count: int) -> int:
    """As given; ConfigError unless it is a whole number of at least 1."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"workers is {count!r}: give a whole number of at least 1.")
    return count


def repair_names(text: str) -> list[str]:
    """ "least_squares+batchnorm" is two repairs, "none" no one."""
    return [] if text == "none" else text.split("+")


def seconds_of(time: Any) -> float:
    """Seconds of "90s", "30m", "1h30m", or of a number of seconds; ConfigError for anything else."""
    if isinstance(time, str):
        match = _TIME.fullmatch(time.strip())
        value = (
            sum(float(part or 0) * unit for part, unit in zip(match.groups(), _UNITS.values(), strict=True))
            if match
            else 0.0
        )
    else:
        value = float(time) if not isinstance(time, bool) and isinstance(time, Real) else 0.0
    if not 0 < value < math.inf:
        raise ConfigError(f"The time {time!r} is not understood: write such as 30m, 90s or 1h30m.")
    return value


def _budget(
    given: str | Mapping[str, float | str] | Budget | None, bounds: Mapping[str, Any], runtime: str | None
) -> Budget | None:
    """What is asked for; a latency or speed-up without a runtime is on `runtime`, or on ONNX Runtime if it is there."""
    if given is not None and bounds:
        raise ConfigError(f"budget= and {min(bounds)}= are both given: put all bounds into one of them.")
    if isinstance(given, str):
        pairs = [part.partition("=") for part in given.split(",")] if given.strip() else []
        given = {key.strip(): value for key, _, value in pairs}
    if isinstance(given, Budget):
        return given
    words: dict[str, float | str] = {**(given or {}), **bounds}
    for key in ("latency", "speedup"):
        if key in words and "@" not in str(words[key]):
            words[key] = f"{words[key]}@{runtime or usual_runtime()}"
    return Budget.parse(words) if given is not None or words else None


def usual_runtime() -> str:
    """ONNX Runtime where it is installed, else PyTorch."""
    there = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    return "onnxruntime" if there else "pytorch"


def scaled(budget: Budget, shares: Mapping[str, float], level: float) -> Budget:
    """Between the whole network (level 0) and the budget (level 1), or beyond it: every bound as a share of the whole.

    shares: what the budget leaves of each cost, by key. share = 1 - level (1 - share of the budget)
    """
    bounds = tuple((key, min(max(1 - level * (1 - shares[key]), 1e-3), 1.0)) for key, _ in budget.bounds)
    return Budget(bounds, budget.target)


def shares_of(budget: Budget, cost: Any) -> dict[str, float]:
    """What the budget leaves of each of its costs of the whole network, by key."""
    limits = budget.limits(cost)
    return {key: min(limits[KEYS[key]] / max(getattr(cost, KEYS[key]), 1e-12), 1.0) for key, _ in budget.bounds}
