"""Which operators a network read from `model.pt2` may call: those on numbers, found by name, nothing evaluated.

A file names its operators; some of ATen's read and write files or let memory be read anywhere. So an operator must be
one that the structural core has a rule for, or elementwise, or stand in one of the short lists below.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from secateur._files import shown
from secateur.graph.rules.registry import RULES
from secateur.runtime.archive import NotRun

_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)", re.ASCII)

#: Without a rule, for the capture sees the operators below them.
_MORE = frozenset(
    "_assert_tensor_metadata avg_pool2d conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d diff "
    "einsum expand_as feature_dropout hardswish instance_norm log_sigmoid max_pool3d multi_head_attention outer "
    "reshape_as scaled_dot_product_attention softmin sym_numel sym_size sym_storage_offset sym_stride to type_as "
    "unflatten upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d "
    "upsample_trilinear3d view_as".split()
)
#: With a rule or elementwise, but memory never written, indices that nobody checks, or as long as a number says.
_NEVER = frozenset(
    "_cholesky_solve_helper _compute_linear_combination _unsafe_index _unsafe_index_put embedding_bag empty empty_like "
    "empty_strided fractional_max_pool2d fractional_max_pool3d mvlgamma new_empty new_empty_strided resize resize_as "
    "segment_reduce".split()
)

#: Return no tensor, and are what networks call all the same.
_TOLD = frozenset(
    "_assert_async _assert_scalar _assert_tensor_metadata equal is_nonzero item _local_scalar_dense sym_numel sym_size "
    "sym_storage_offset sym_stride".split()
)
_LARGEST = 1 << 62  # of a size; Python's numbers grow without end


def _on_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for numbers alone: Python's operators also repeat and format texts and lists, and call methods."""

    @functools.wraps(function)
    def checked(*values: Any) -> Any:
        if not all(type(value) in (int, float, bool) for value in values):
            kinds = ", ".join(type(value).__name__ for value in values)
            raise TypeError(f"{function.__name__} is for numbers, not {kinds}")
        found = function(*values)
        if type(found) is int and abs(found) > _LARGEST:
            raise ValueError(f"{function.__name__} makes a number that no size can be")
        return found

    return checked


def _item(values: Any, number: Any) -> Any:
    """One of the values that an operator returned."""
    if type(values) not in (list, tuple) or type(number) is not int:
        raise TypeError(f"an item of a {type(values).__name__} was asked for")
    return values[number]


#: What exported graphs call on sizes.
_NUMBERS: Mapping[str, Callable[..., Any]] = {
    **{f"_operator.{name}": _on_numbers(getattr(operator, name)) for name in
       "add sub mul floordiv truediv mod neg eq ne lt le gt ge and_ or_ not_".split()},
    **{f"math.{name}": _on_numbers(getattr(math, name)) for name in "ceil floor trunc sqrt".split()},
    **{f"torch.{name}": _on_numbers(getattr(torch, name))
       for name in "sym_int sym_float sym_max sym_min sym_not sym_ite".split()},
    "_operator.getitem": _item,
}  # fmt: skip


def find(target: object) -> Callable[..., Any]:
    """The operator of that name; NotRun where it is not one that a network needs."""
    if isinstance(target, str):
        if target in _NUMBERS:
            return _NUMBERS[target]
        match = _ATEN.fullmatch(target)
        if match:
            found = _aten(match[1], match[2])
            if found is not None:
                return found
    raise NotRun(f"The exported network calls {shown(target)}, which is not run from a file.")


def _aten(name: str, overload: str) -> Callable[..., Any] | None:
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        return None
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name  # in place on what a network made
    if plain in _NEVER or "polynomial" in plain:  # of a degree that lies in a tensor
        return None
    if any(one.kwarg_only and one.alias_info is not None for one in found._schema.arguments):
        return None  # writes into a tensor that is not its own
    if any("Storage" in str(argument.type) for argument in found._schema.arguments):
        return None
    returned = [str(one.type) for one in found._schema.returns]
    if plain not in _TOLD and not (returned and all("Tensor" in kind for kind in returned)):
        return None  # on lists, texts and numbers, for scripts
    known = f"aten::{plain}" in RULES or plain in _MORE or torch.Tag.pointwise in found.tags
    return found if known else None
