"""Pruning methods: a room each, behind one contract, and the registry from which lists, docs and tests are made."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur._hints import choose
from secateur.methods import (
    baselines,
    bwcp,
    cap,
    catro,
    cp,
    cpmc,
    csgd,
    cwb,
    dcp,
    dcpcac,
    feature_relevance,
    functionality,
    group_fisher,
    nap,
    pfp,
    prunenet,
)
from secateur.methods.baselines import CRITERIA, Criterion, accumulate_gradients, criteria, score
from secateur.methods.contract import Method, MethodRow, Settings
from secateur.methods.kit.scores import Scores

__all__ = [
    "CRITERIA", "METHODS", "Criterion", "Method", "MethodRow", "Scores", "Settings", "accumulate_gradients", "create",
    "criteria", "method", "score",
]  # fmt: skip

_ROOMS = (
    bwcp, cap, catro, cp, cpmc, csgd, cwb, dcp, dcpcac, feature_relevance, functionality, group_fisher, nap, pfp,
    prunenet, baselines,
)  # fmt: skip

#: One frozen row a method: the command line, the docs and the test matrix are made from these.
METHODS: tuple[MethodRow, ...] = tuple(row for room in _ROOMS for row in getattr(room, "ROWS", None) or (room.ROW,))


def create(name: str, model: nn.Module, example_inputs: Any, **options: Any) -> Method:
    """The method of this name at work on `model`, for a training loop of one's own; see `Method` for the options."""
    return method(name).factory(model, example_inputs, **options)


def method(name: str) -> MethodRow:
    """The row of a method; ConfigError with the nearest name for an unknown one."""
    choose(name, [row.name for row in METHODS], "method")
    return next(row for row in METHODS if row.name == name)
