"""Secateur: channel pruning of convolutional networks, exact and verified.

graph = secateur.trace(model, example_inputs)
result = secateur.prune(model, example_inputs, budget="flops=0.5", method="l1")

Importing the package loads nothing else: a name is fetched from where it is made when it is first used (PEP 562).
"""

from secateur import _starting  # isort: skip  # before anything that takes time
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from secateur._version import __version__

if TYPE_CHECKING:
    from secateur import graph, methods, models
    from secateur.allocate import ALLOCATORS, Constraints, allocate
    from secateur.budget import Budget
    from secateur.compress import compress, sensitivity
    from secateur.errors import (
        BudgetError,
        ConfigError,
        CutError,
        DataError,
        InputError,
        ModelError,
        PlanError,
        RunError,
        SecateurError,
        SecateurWarning,
        VerificationError,
        WeightsError,
    )
    from secateur.graph import Cost, Graph, Group, Inputs, Member, Verification, follow, trace
    from secateur.methods import score
    from secateur.plan import Plan
    from secateur.prune import Result, apply, prune
    from secateur.runtime import load, push_to_hub

del _starting

__all__ = [
    "ALLOCATORS", "Budget", "BudgetError", "ConfigError", "Constraints", "Cost", "CutError", "DataError",
    "Graph", "Group", "InputError", "Inputs", "Member", "ModelError", "Plan", "PlanError", "Result", "RunError",
    "SecateurError", "SecateurWarning",
    "Verification", "VerificationError", "WeightsError", "__version__", "allocate", "apply",
    "compress", "follow", "graph", "load", "methods", "models", "prune", "push_to_hub", "score", "sensitivity", "trace",
]  # fmt: skip

#: Where each name is made, as above for those who read types.
_MADE_IN = {
    "allocate": "ALLOCATORS Constraints allocate",
    "budget": "Budget",
    "compress": "compress sensitivity",
    "errors": "BudgetError ConfigError CutError DataError InputError ModelError PlanError RunError SecateurError "
    "SecateurWarning VerificationError WeightsError",
    "graph": "Cost Graph Group Inputs Member Verification follow trace",
    "methods": "score",
    "plan": "Plan",
    "prune": "Result apply prune",
    "runtime": "load push_to_hub",
}
_HOME = {name: module for module, names in _MADE_IN.items() for name in names.split()}


class _Front(ModuleType):
    """A module whose `prune` and `allocate` are the functions, also once the modules of these names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front


def __getattr__(name: str) -> Any:
    """A public name or a room, imported now."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        made_in = importlib.import_module(f"{__name__}.{_HOME.get(name, name)}")
    except ModuleNotFoundError as missing:
        if missing.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(made_in, name) if name in _HOME else made_in
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
