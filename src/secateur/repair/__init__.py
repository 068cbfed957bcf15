"""Changes of the surviving weights, made on a copy before it is cut, that make the cut hurt less or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from secateur._hints import choose
from secateur.errors import ConfigError
from secateur.repair import batchnorm, compensation, distillation, least_squares, variance
from secateur.repair.base import Case, Reader, Repair, RepairRow, mend
from secateur.repair.batchnorm import remeasure
from secateur.repair.merging import Clusters, collapse, merge, mergeable
from secateur.repair.renewal import fresh, renew

__all__ = [
    "REPAIRS", "Case", "Clusters", "Reader", "Repair", "RepairRow", "collapse", "fresh", "mend", "merge", "mergeable",
    "remeasure", "renew", "repair", "repairs",
]  # fmt: skip

#: A name, {name: ..., with settings}, or the object.
Given = str | Repair | Mapping[str, Any]
#: One frozen row a repair.
REPAIRS: tuple[RepairRow, ...] = (batchnorm.ROW, compensation.ROW, distillation.ROW, least_squares.ROW, variance.ROW)
#: A repair may also be called by the method whose last step it is.
METHOD_OF: Mapping[str, str] = {"cap": "compensation", "cp": "least_squares"}


def repair(name: str, **settings: Any) -> Repair:
    """The repair called `name`; ConfigError with the nearest name for an unknown one, or for a wrong setting.

    name: one of `secateur repairs`, or the method whose last step it is. settings: the repair's own.
    """
    name = METHOD_OF.get(name, name)
    choose(name, [row.name for row in REPAIRS], "repair")
    return next(row for row in REPAIRS if row.name == name).factory(**settings)


def repairs(given: Given | Iterable[Given]) -> list[Repair]:
    """Repairs as anybody may write them.

    given: a name, {name: ..., with settings}, a Repair, or several of these.
    """
    several = given if isinstance(given, Iterable) and not isinstance(given, (str, Mapping)) else [given]
    return [_one(each) for each in several]


def _one(given: Given) -> Repair:
    if isinstance(given, Repair):
        return given
    if isinstance(given, str):
        return repair(given)
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{type(given).__name__} is no repair: give the name of one, {{name: ..., with settings}}, or a Repair."
        )
    settings = dict(given)
    return repair(str(settings.pop("name", "")), **settings)
