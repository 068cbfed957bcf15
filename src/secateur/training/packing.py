"""Nested state (an optimiser's, a method's) as JSON plus tensors, and back to exactly what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from secateur.errors import RunError

_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def pack(value: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as plain JSON; its tensors go to `tensors` under names that begin with `prefix`.

    Raises:
        RunError: it holds something that is neither data nor tensor.
    """
    match value:
        case torch.Tensor():
            tensors[prefix] = value.detach()
            return {"$tensor": prefix}
        case None | bool() | str():
            return value
        case int() if type(value) is int:
            return value
        case float() if type(value) is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        case list():
            return [pack(item, f"{prefix}.{i}", tensors) for i, item in enumerate(value)]
        case tuple():
            return {"$tuple": [pack(item, f"{prefix}.{i}", tensors) for i, item in enumerate(value)]}
        case Mapping():
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: pack(item, f"{prefix}.{key}", tensors) for key, item in value.items()}
            return {
                "$items": [
                    [pack(key, f"{prefix}.key", tensors), pack(item, f"{prefix}.{key}", tensors)]
                    for key, item in value.items()
                ]
            }
    raise RunError(
        f"A checkpoint cannot hold {prefix}, a {type(value).__name__}: state must be numbers, text, lists, "
        "dictionaries and tensors."
    )


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `pack` was given."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tensor": str(name)}:
            return tensors[name]
        case {"$float": str(name)}:
            return _SPECIAL[name]
        case {"$tuple": list(items)}:
            return tuple(unpack(item, tensors) for item in items)
        case {"$items": list(items)}:
            return {unpack(key, tensors): unpack(item, tensors) for key, item in items}
    return {key: unpack(item, tensors) for key, item in value.items()}
