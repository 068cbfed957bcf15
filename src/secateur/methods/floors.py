"""A share of every group that stays whatever its scores, as several methods have it."""

from __future__ import annotations

from dataclasses import replace

from secateur.errors import BudgetError
from secateur.methods.base import Method


def leave(method: Method, share: float, setting: str) -> None:
    """Let every plan of the method keep this share of every group; BudgetError naming the setting if it cannot be."""
    ratio = 1.0 - share
    if ratio >= method.constraints.max_ratio:
        return
    method.constraints = replace(method.constraints, max_ratio=ratio)
    try:
        method._check_reach()
    except BudgetError as error:
        raise BudgetError(f"With {setting}={share:g}, t{str(error).removeprefix('T')}") from None
