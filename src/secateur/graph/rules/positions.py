"""Constants made in forward whose values are positions: what may be done with them, and what they freeze.

A tensor *counts* along an axis when its value at every index is that index (``arange(n)`` and views of it). After a cut
the code counts again from zero, which is right wherever the numbers only say "the same place" (an index, a comparison
with another count), for the kept channels stay in order. In any other hands the numbers are values, and the axis stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from secateur.graph.labels import Axis, Ids, Label
from secateur.graph.rules.registry import Op, is_constant, label_of, rule, tensors_in

# Operators (without `_` or `_copy` at their end) that move a count about and do not look at its values.
CARRIERS = frozenset(
    "view _unsafe_view reshape _reshape_alias flatten unflatten squeeze unsqueeze expand permute movedim transpose t "
    "slice clone contiguous alias detach lift lift_fresh _to".split()
)
# Operators whose rules know what a count says, and the arguments in which they do.
READERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("eq ne lt le gt ge".split(), ("self", "other")),
    **dict.fromkeys("index _unsafe_index index_put _index_put_impl _unsafe_index_put".split(), ("indices",)),
    **dict.fromkeys("index_select index_add index_fill index_reduce scatter".split(), ("index",)),
    "index": ("indices", "index"),  # `index_copy` is one of them
    "embedding": ("indices",),
    **dict.fromkeys("aminmax min max amin amax".split(), ("self",)),  # the ends of a count, whatever lies between
    **dict.fromkeys("zeros_like ones_like empty_like full_like".split(), ("self",)),
}


# Operators that take nothing but the shape of a tensor.
SHAPED = frozenset("zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full".split())


@dataclass(frozen=True, eq=False)
class Count:
    """A tensor holds 0, 1, 2, ... along `axis`, and nothing else varies; `where` it was made."""

    axis: Ids
    where: str


def count_of(tensor: torch.Tensor) -> Count | None:
    """How a tensor counts, if it does."""
    count: Count | None = getattr(tensor, "_secateur_count", None)
    return count


def is_made(tensor: torch.Tensor) -> bool:
    """Whether a tensor was made in forward of sizes and numbers alone: no parameter, buffer or input had a part."""
    made: bool | None = getattr(tensor, "_secateur_made", None)
    return made if made is not None else is_constant(tensor) and not hasattr(tensor, "_secateur_name")


def keep(op: Op, axis: Axis, where: str = "") -> None:
    """An axis stays because values that code makes anew depend on their position in it."""
    op.ledger.fix(axis, f"values made in forward depend on their position ({where or op.where})")


def keep_random(op: Op, axis: Axis) -> None:
    """An axis stays because random numbers are drawn along it; what only training draws needs no proof."""
    if not op.ledger.training:
        op.ledger.fix(axis, f"random numbers are drawn for it ({op.where})")


def before(op: Op) -> None:
    """Keep the axis of every count in the hands of an operator that uses its values."""
    if all(count is None for count in map(count_of, op.tensors())):
        return
    short = _short(op)
    if short in CARRIERS:
        return
    for name, value in op.args.items():
        for tensor in tensors_in(value):
            if count_of(tensor) is not None and not _reads(op, short, name):
                spoil(op, tensor)


def _reads(op: Op, short: str, argument: str) -> bool:
    if argument not in READERS.get(short, ()) or (argument == "self" and op.name.endswith("_")):
        return False
    return short not in ("min", "max") or not isinstance(op.args.get("other"), torch.Tensor)


def spoil(op: Op, tensor: torch.Tensor) -> None:
    """Where a tensor counts, its values are used: the axis stays as it is."""
    count = count_of(tensor)
    if count is not None:
        keep(op, count.axis, count.where)


def after(op: Op) -> None:
    """Note whether the outputs still count, and whether they were made of sizes alone."""
    tensors, short = op.tensors(), _short(op)
    made = short in SHAPED or all(map(is_made, tensors))
    for out in op.outputs():
        holder: Any = out
        holder._secateur_made = made
    count = count_of(tensors[0]) if tensors and short in CARRIERS else None
    if count is not None:
        if sum(axis is count.axis for axis in label_of(op.out)) == 1:
            op.out._secateur_count = count
        else:
            spoil(op, tensors[0])


@rule("eq", "ne", "lt", "le", "gt", "ge")
def compare(op: Op) -> Label:
    """Two counts compared along two dimensions: a diagonal or a triangle, whose sides keep the same places."""
    tensors = [t for t in op.tensors() if t.dim()]
    counts = [c for t in tensors if (c := count_of(t)) is not None]
    if len(counts) == 2 and len(counts[0].axis) == len(counts[1].axis):
        op.ledger.tie(counts[0].axis, counts[1].axis)
    else:
        for tensor in tensors:
            spoil(op, tensor)
    rank: int = op.out.dim()
    return op.broadcast(tensors, rank)


def addressed(op: Op, axis: Axis, size: int, index: torch.Tensor, why: str) -> bool:
    """Whether `index` picks all of a dimension in order: then it is tied to that count; else it stays as it is."""
    count = count_of(index)
    if count is not None and len(count.axis) == size:
        op.join(axis, count.axis)
        return True
    spoil(op, index)
    op.fix(axis, why)
    return False


def square(op: Op, rows: Axis, columns: Axis, why: str) -> tuple[Axis, Axis]:
    """The sides of a square whose diagonal or triangle matters: they keep the same places, or stay as they are."""
    if rows is not None and columns is not None and len(rows) == len(columns):
        op.ledger.tie(rows, columns)
        return rows, columns
    op.fix(rows, why)
    op.fix(columns, why)
    return None, None


def _short(op: Op) -> str:
    return _shorten(op.name)


@lru_cache(maxsize=1024)
def _shorten(name: str) -> str:
    return name.removeprefix("aten::").removesuffix("_").removesuffix("_copy")
