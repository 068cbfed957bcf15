"""Example inputs without their values: what a saved network is called with, and the same with another batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from secateur.errors import InputError, RunError
from secateur.graph.modules import Inputs, as_call, map_tensors

_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip
_DEEPEST = 32  # lists in lists
_MOST_ELEMENTS = 1 << 28  # a damaged file must not fill the memory


@dataclass(frozen=True)
class Signature:
    """Shapes and types of the tensors a network is called with, and how they make up the call.

    names: of the tensors, if each is a keyword. form: the call as a tree of JSON, where it is neither one tensor, nor
    several by position, nor several by keyword: {"tensor": number}, {"value": a number, text, bool or null}, {"list":
    [...]}, {"tuple": [...]}, {"dict": {...}}, and at the root {"args": [...], "kwargs": {...}}.
    """

    shapes: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]
    names: tuple[str, ...] | None = None
    form: dict[str, Any] | None = None

    @classmethod
    def of(cls, inputs: Any) -> Signature:
        """From example inputs (a tensor, a tuple, a dict of keywords, `secateur.Inputs`) or from a list of shapes."""
        if isinstance(inputs, list | tuple) and inputs and all(_is_shape(shape) for shape in inputs):
            return cls(tuple(tuple(shape) for shape in inputs), ("float32",) * len(inputs))
        args, keywords = as_call(inputs)
        tensors: list[torch.Tensor] = []
        form = {
            "args": [_noted(value, tensors) for value in args],
            "kwargs": {name: _noted(value, tensors) for name, value in keywords.items()},
        }
        shapes = tuple(tuple(t.shape) for t in tensors)
        types = tuple(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        plain = len(tensors) == len(args) + len(keywords) and all(
            isinstance(value, torch.Tensor) for value in (*args, *keywords.values())
        )
        if plain and not (args and keywords):
            return cls(shapes, types, tuple(keywords) if keywords else None)
        return cls(shapes, types, None, form)

    @classmethod
    def read(cls, shapes: Any, types: Any, names: Any, form: Any = None) -> Signature:
        """From parsed JSON, trusting nothing; RunError for what `of` cannot have made."""
        sound = isinstance(shapes, list) and bool(shapes) and all(_is_shape(shape) for shape in shapes)
        sound = sound and isinstance(types, list) and all(isinstance(t, str) and t in _TYPES for t in types)
        sound = sound and len(types) == len(shapes)
        if names is not None:
            sound = sound and isinstance(names, list) and all(isinstance(n, str) for n in names)
            sound = sound and len(set(names)) == len(names) == len(shapes)
        if form is not None:
            sound = sound and names is None and _is_call(form, len(shapes) if sound else 0)
        if not sound or sum(math.prod(shape) for shape in shapes) > _MOST_ELEMENTS:
            raise RunError("The inputs noted in the weights are malformed: the file was damaged or edited.")
        return cls(tuple(map(tuple, shapes)), tuple(types), tuple(names) if names is not None else None, form)

    def make(self, seed: int = 0) -> Any:
        """Inputs of these shapes: normal noise, and zeros where they are whole numbers."""
        generator = torch.Generator().manual_seed(seed)
        made = [_fill(shape, _TYPES[kind], generator) for shape, kind in zip(self.shapes, self.types, strict=True)]
        if self.form is not None:
            args = [_formed(each, made) for each in self.form["args"]]
            return Inputs(*args, **{name: _formed(each, made) for name, each in self.form["kwargs"].items()})
        if self.names is not None:
            return dict(zip(self.names, made, strict=True))
        return made[0] if len(made) == 1 else tuple(made)


def _noted(value: Any, tensors: list[torch.Tensor]) -> dict[str, Any]:
    """One argument as JSON; its tensors are added to the list and stand there by number."""
    if isinstance(value, torch.Tensor):
        if str(value.dtype).removeprefix("torch.") not in _TYPES:
            raise InputError(f"An input of type {value.dtype} cannot be noted in a file: call it with another.")
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return {"value": value}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_noted(each, tensors) for each in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _noted(each, tensors) for key, each in value.items()}}
    raise InputError(
        f"An input that is a {type(value).__name__} cannot be noted in a file: call the network with tensors, numbers, "
        "texts, and lists, tuples or dicts of them."
    )


def _formed(noted: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> Any:
    """The argument that `_noted` made this of."""
    ((kind, what),) = noted.items()
    match kind:
        case "tensor":
            return tensors[what]
        case "value":
            return what
        case "dict":
            return {key: _formed(each, tensors) for key, each in what.items()}
        case _:
            parts = [_formed(each, tensors) for each in what]
            return parts if kind == "list" else tuple(parts)


def _is_call(form: Any, count: int) -> bool:
    """Whether this is a tree that `of` can have made, in which every tensor stands once."""
    if not isinstance(form, dict) or form.keys() != {"args", "kwargs"}:
        return False
    args, kwargs, seen = form["args"], form["kwargs"], list[int]()
    sound = isinstance(args, list) and isinstance(kwargs, dict)
    sound = sound and all(_is_noted(each, seen, 0) for each in [*args, *kwargs.values()])
    return sound and sorted(seen) == list(range(count))


def _is_noted(noted: Any, seen: list[int], depth: int) -> bool:
    if depth > _DEEPEST or not isinstance(noted, dict) or len(noted) != 1:
        return False
    ((kind, what),) = noted.items()
    if kind == "tensor":
        seen.append(what if type(what) is int else -1)
        return type(what) is int
    if kind == "value":
        return what is None or type(what) in (bool, int, str) or (type(what) is float and math.isfinite(what))
    if kind in ("list", "tuple"):
        return isinstance(what, list) and all(_is_noted(each, seen, depth + 1) for each in what)
    return kind == "dict" and isinstance(what, dict) and all(_is_noted(e, seen, depth + 1) for e in what.values())


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
        return torch.randn(rows.shape, generator=generator, dtype=torch.float32).to(rows.device, rows.dtype)

    return map_tensors(inputs, resized)


def drawn(inputs: Any, count: int) -> list[Any]:
    """So many different `inputs` of one row of noise each."""
    row = with_batch(inputs, 1)
    generator = torch.Generator().manual_seed(count)

    def fresh(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.device, tensor.dtype)

    return [map_tensors(row, fresh) for _ in range(count)]


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
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(kind)
