"""Secateur: channel pruning of convolutional networks, exact and verified.

graph = secateur.trace(model, example_inputs)
result = secateur.prune(model, example_inputs, budget="flops=0.5", method="l1")
"""

from secateur import _starting  # isort: skip  # before anything that takes time
from secateur import graph, methods, models
from secateur._version import __version__
from secateur.allocate import ALLOCATORS, Constraints, allocate
from secateur.budget import Budget
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
    "SecateurError",
    "Verification", "VerificationError", "WeightsError", "__version__", "allocate", "apply",
    "follow", "graph", "load", "methods", "models", "prune", "push_to_hub", "score", "trace",
]  # fmt: skip
