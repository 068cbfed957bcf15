"""One small rule per operator: how labels flow through it and what it ties."""

from secateur.graph.rules import (
    factory,
    indexing,
    linear,
    matrices,
    pointwise,
    positions,
    quantise,
    recurrent,
    reduce,
    shape,
    spatial,
)
from secateur.graph.rules.registry import RULES, Expect, Op, Rule, is_constant, is_fixed, label_of, rule, tensors_in

__all__ = [
    "RULES", "Expect", "Op", "Rule", "factory", "indexing", "is_constant", "is_fixed", "label_of", "linear", "matrices",
    "pointwise", "positions", "quantise", "recurrent", "reduce", "rule", "shape", "spatial", "tensors_in",
]  # fmt: skip
