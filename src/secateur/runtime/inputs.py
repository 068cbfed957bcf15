"""Example inputs without their values: what a saved network is called with, and the same with another batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from secateur.errors import InputError, RunError
from secateur.graph.modules import as_call, map_tensors

_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip
_MOST_ELEMENTS = 1 << 28  # a damaged file must not fill the memory


@dataclass(frozen=True)
class Inputs:
    """Shapes and types of the tensors a network is called with, and their names if they are keywords."""

    shapes: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]
    names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, inputs: Any) -> Inputs:
        """From example inputs (a tensor, a tuple of tensors, a dict of keywords) or from a list of shapes."""
        if isinstance(inputs, list | tuple) and inputs and all(_is_shape(shape) for shape in inputs):
            return cls(tuple(tuple(shape) for shape in inputs), ("float32",) * len(inputs))
        positional, keywords = as_call(inputs)
        tensors = [*positional, *keywords.values()]
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or str(tensor.dtype).removeprefix("torch.") not in _TYPES:
                kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise InputError(
                    f"An input that is a {kind} cannot be noted in a file: call the network with plain tensors, "
                    "positional or by keyword."
                )
        types = tuple(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        return cls(tuple(tuple(t.shape) for t in tensors), types, tuple(keywords) if keywords else None)

    @classmethod
    def read(cls, shapes: Any, types: Any, names: Any) -> Inputs:
        """From parsed JSON, trusting nothing; RunError for what `of` cannot have made."""
        sound = isinstance(shapes, list) and bool(shapes) and all(_is_shape(shape) for shape in shapes)
        sound = sound and isinstance(types, list) and all(isinstance(t, str) and t in _TYPES for t in types)
        sound = sound and len(types) == len(shapes)
        if names is not None:
            sound = sound and isinstance(names, list) and all(isinstance(n, str) for n in names)
            sound = sound and len(set(names)) == len(names) == len(shapes)
        if not sound or sum(math.prod(shape) for shape in shapes) > _MOST_ELEMENTS:
            raise RunError("The inputs noted in the weights are malformed: the file was damaged or edited.")
        return cls(tuple(map(tuple, shapes)), tuple(types), tuple(names) if names is not None else None)

    def make(self, seed: int = 0) -> Any:
        """Inputs of these shapes: normal noise, and zeros where they are whole numbers."""
        generator = torch.Generator().manual_seed(seed)
        made = [_fill(shape, _TYPES[kind], generator) for shape, kind in zip(self.shapes, self.types, strict=True)]
        if self.names is not None:
            return dict(zip(self.names, made, strict=True))
        return made[0] if len(made) == 1 else tuple(made)


def batch_of(inputs: Any) -> int | None:
    """The size of dimension 0 of the first tensor that has one."""
    return next((len(tensor) for tensor in _tensors(inputs) if tensor.dim()), None)


def with_batch(inputs: Any, size: int) -> Any:
    """`inputs` with noise in `size` rows wherever dimension 0 had the batch's size; whole numbers are repeated."""
    batch = batch_of(inputs)
    generator = torch.Generator().manual_seed(size)

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim() or len(tensor) != batch or not batch:
            return tensor
        rows = tensor[torch.arange(size) % batch]
        if not rows.is_floating_point():
            return rows
        return torch.randn(rows.shape, generator=generator).to(rows.device, rows.dtype)

    return map_tensors(inputs, resized)


def batched(inputs: Any) -> list[torch.Tensor]:
    """The tensors of `inputs` whose dimension 0 is the batch, as `with_batch` sees it."""
    batch = batch_of(inputs)
    return [tensor for tensor in _tensors(inputs) if tensor.dim() and len(tensor) == batch]


def to_device(inputs: Any, device: torch.device) -> Any:
    return map_tensors(inputs, lambda tensor: tensor.detach().to(device))


def _tensors(inputs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(inputs, found.append)
    return found


def _is_shape(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(type(n) is int and n >= 0 for n in value)


def _fill(shape: Sequence[int], kind: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if not kind.is_floating_point:
        return torch.zeros(tuple(shape), dtype=kind)
    return torch.randn(tuple(shape), generator=generator).to(kind)
