"""A graph from a file, carried out without numbers before it is with them: shapes alone, nothing allocated.

PyTorch's operators check most of what they are given, and not all of it when they compute: some read past the end of a
tensor, end the process, or take all memory. Here each call is made on tensors that have shapes and no storage, what
comes out is compared with what the file says of it, and nothing may be larger than weights and inputs give reason for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import _disable_current_modes

from secateur._files import shown
from secateur.runtime.archive import NotRun
from secateur.runtime.exporters.outside import brief
from secateur.runtime.steps import Step, keep

# How many numbers a tensor may hold: as many as the largest of these. A layer of 64 channels behind a grey image has 64
# for each of its numbers; super-resolution to 4x4 the size has 1,024.
_ALWAYS, _PER_INPUT, _PER_WEIGHT = 1 << 24, 2048, 64
_ALIVE = 16  # times that, all that is kept at a time
_BYTES = 4

_NOT_TOLD = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    NotImplementedError,
)


@dataclass(frozen=True)
class Like:
    """A tensor without its numbers."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    kind: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Like:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    @property
    def numel(self) -> int:
        """How many numbers it would hold."""
        return torch.Size(self.sizes).numel()

    def made(self) -> torch.Tensor:
        """Such a tensor; inside a fake mode, without storage."""
        return torch.empty_strided(self.sizes, self.strides, dtype=self.kind, device=self.device)


def contiguous(sizes: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose numbers lie one after the other."""
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


#: What a file says of a value: its dimensions (None: left open) and the type of its numbers.
Record = tuple[tuple[int | None, ...], torch.dtype]


def rehearse(
    steps: Sequence[Step],
    weights: Mapping[str, Like],
    inputs: Mapping[str, Like],
    device: torch.device,
    records: Mapping[str, Record] | None = None,
) -> None:
    """Carry out all steps on shapes.

    Args:
        weights, inputs: what the graph is given, by name. device: where the weights are.
        records: what the file says of values, to be compared; None: not asked.

    Raises:
        NotRun: shapes cannot be told without numbers. ValueError: a call that cannot be, or one that makes more than
        there is reason for.
    """
    most = max(_ALWAYS, _PER_INPUT * _total(inputs.values()), _PER_WEIGHT * _total(weights.values()))
    with _disable_current_modes(), torch.no_grad(), _fake():
        values: dict[str, Any] = {name: like.made() for name, like in {**weights, **inputs}.items()}
        given = {_storage(value) for value in values.values()}
        for step in steps:
            args, kwargs = step.arguments(values, device)
            _check_kinds(step, args, kwargs)
            _check_parts(step, args)
            _check_norm(step, args)
            _check_reach(step, args, kwargs)
            got = _called(step.call, step.target, args, kwargs)
            keep(values, step.outputs, got)
            _check_results(step, values, records or {}, most)
            _check_alive(values, given, most)
            for name in step.spent:
                del values[name]


@contextmanager
def _fake() -> Iterator[None]:
    """Tensors without storage; what PyTorch logs of calls that cannot be is said in our own words."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=False):
            yield
    finally:
        log.disabled = before


def _called(call: Callable[..., Any], target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return call(*args, **kwargs)
    except _NOT_TOLD as error:
        raise NotRun(
            f"The exported network calls {shown(target)}, whose shapes depend on numbers ({type(error).__name__}): it "
            "is not run from a file."
        ) from error
    except Exception as error:  # of any operator, about what it was given
        raise ValueError(f"{shown(target)} cannot be called so: {brief(error)}") from error


def _check_results(step: Step, values: Mapping[str, Any], records: Mapping[str, Record], most: int) -> None:
    for name in step.names:
        value = values[name]
        if not isinstance(value, torch.Tensor):
            continue
        if value.numel() > most:
            raise ValueError(f"{shown(step.target)} makes {value.numel():,} numbers, and {most:,} would be many")
        sizes, kind = records.get(name, (tuple(value.shape), value.dtype))
        if kind != value.dtype or len(sizes) != value.ndim or not _agree(sizes, value.shape):
            raise ValueError(
                f"{shown(step.target)} makes {tuple(value.shape)} of {value.dtype}, and the file says {sizes} of {kind}"
            )


def _agree(sizes: Sequence[int | None], shape: Sequence[int]) -> bool:
    return all(said is None or said == there for said, there in zip(sizes, shape, strict=True))


def _check_alive(values: Mapping[str, Any], given: set[int], most: int) -> None:
    """What all values that are still needed take together, views of one storage once."""
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
    sizes = {_storage(t): t.untyped_storage().nbytes() for t in tensors}
    alive = sum(size for key, size in sizes.items() if key not in given)
    if alive > _ALIVE * _BYTES * most:
        raise ValueError(f"it keeps {alive:,} bytes at a time, and {_ALIVE * _BYTES * most:,} would be many")


def _check_kinds(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """A number where a type or a layout is meant would be taken for one of PyTorch's own, of which there are few."""
    if not isinstance(step.call, torch._ops.OpOverload):
        return
    for number, argument in enumerate(step.call._schema.arguments):
        kind = _KINDS.get(str(argument.real_type).removeprefix("Optional[").removesuffix("]"))
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        if kind is not None and value is not None and not isinstance(value, kind):
            raise ValueError(f"{shown(step.target)} is given a {type(value).__name__} as {argument.name}")


_KINDS: Mapping[str, type] = {
    "ScalarType": torch.dtype,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
    "Device": torch.device,
    "Generator": torch.Generator,
}


def _check_parts(step: Step, args: Sequence[Any]) -> None:
    """A tensor is not taken into more parts than the file has names for, of which there could be millions."""
    name = step.target.split(".")[-2] if step.target.count(".") >= 2 else ""
    if name not in _PARTS or not args or not isinstance(args[0], torch.Tensor):
        return
    number = next((value for value in args[1:2] if type(value) is int), 0)
    dim = next((value for value in args[2 if name != "unbind" else 1 :] if type(value) is int), 0)
    length = args[0].shape[dim] if -args[0].ndim <= dim < args[0].ndim else 0
    named = max((len(output) for output in step.outputs if isinstance(output, list)), default=1)
    if _PARTS[name](length, number) > named:
        raise ValueError(f"{shown(step.target)} makes more parts than the {named} that are named")


_PARTS: Mapping[str, Callable[[int, int], int]] = {
    "unbind": lambda length, _: length,
    "split": lambda length, size: -(-length // size) if size > 0 else 0,
    "unsafe_split": lambda length, size: -(-length // size) if size > 0 else 0,
    "chunk": lambda length, chunks: min(length, chunks),
    "unsafe_chunk": lambda length, chunks: min(length, chunks),
    "tensor_split": lambda _, sections: sections,
}


def _check_norm(step: Step, args: Sequence[Any]) -> None:
    """Batch norms read as many numbers of each of their vectors as there are channels, without asking."""
    if "batch_norm" not in step.target or not args or not isinstance(args[0], torch.Tensor):
        return
    vectors = [value for value in [*args[1:], *step.kwargs.values()] if isinstance(value, torch.Tensor)]
    if args[0].ndim < 2 or any(vector.shape != (args[0].shape[1],) for vector in vectors):
        raise ValueError(f"{shown(step.target)} has vectors that are not as long as there are channels")


def _check_reach(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """What other operators read without asking: a gain for each row, values with their keys, scales as sizes say."""
    if not isinstance(step.call, torch._ops.OpOverload):
        return
    names = [argument.name for argument in step.call._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if "_weight_norm" in step.target:
        weight, gain, dim = given["v"], given["g"], given.get("dim", 0)
        sound = -weight.ndim <= dim < weight.ndim and gain.numel() == weight.shape[dim]
    elif "scaled_dot_product" in step.target:
        shapes = [tuple(given[name].shape) for name in ("query", "key", "value")]
        sound = all(len(shape) >= 2 for shape in shapes) and shapes[1][-2] == shapes[2][-2]
        if "._scaled" in step.target:
            batches = {shape[:-2] for shape in shapes}
            sound = sound and len(batches) == 1 and shapes[0][-1] == shapes[1][-1]
    else:
        new = given.get("output_size")
        scales = [given.get(name) for name in ("scales_d", "scales_h", "scales_w", "scales") if name in given]
        sound = "upsample" not in step.target or new is None or _scaled(given, new, scales)
    if not sound:
        raise ValueError(f"{shown(step.target)} is given sizes that do not fit each other")


def _scaled(given: Mapping[str, Any], new: Sequence[int], scales: Sequence[float | None]) -> bool:
    """Whether sizes become what their scales make of them, where there are any."""
    old = next(iter(given.values())).shape[2:]
    rows = zip(old, new, scales, strict=False)
    return all(scale is None or abs(n * scale - m) <= 1 for n, m, scale in rows)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _total(likes: Iterable[Like]) -> int:
    return sum(like.numel for like in likes)
