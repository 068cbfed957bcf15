"""Pruning methods, one file each behind one contract, and the criteria they and `secateur.prune` score with."""

from __future__ import annotations

from secateur._hints import choose
from secateur.methods import (
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
    one_shot,
    pfp,
    prunenet,
    scratch,
)
from secateur.methods.base import Method, MethodRow, Settings
from secateur.methods.bwcp import BWCP
from secateur.methods.criteria import CRITERIA, Criterion, criteria, score
from secateur.methods.csgd import CSGD
from secateur.methods.dcpcac import DCPCAC
from secateur.methods.gradients import accumulate_gradients
from secateur.methods.scores import Scores

__all__ = [
    "BWCP", "CRITERIA", "CSGD", "DCPCAC", "METHODS", "Criterion", "Method", "MethodRow", "Scores", "Settings",
    "accumulate_gradients", "criteria", "method", "score",
]  # fmt: skip

#: One frozen row a method: the command line, the docs and the test matrix are made from these.
METHODS: tuple[MethodRow, ...] = (
    bwcp.ROW,
    cap.ROW,
    catro.ROW,
    cp.ROW,
    cpmc.ROW,
    csgd.ROW,
    cwb.ROW,
    dcp.ROW,
    dcpcac.ROW,
    feature_relevance.ROW,
    functionality.ROW,
    group_fisher.ROW,
    nap.ROW,
    pfp.ROW,
    *one_shot.ROWS,
    prunenet.ROW,
    scratch.ROW,
)


def method(name: str) -> MethodRow:
    """The row of a method; ConfigError with the nearest name for an unknown one."""
    choose(name, [row.name for row in METHODS], "method")
    return next(row for row in METHODS if row.name == name)
