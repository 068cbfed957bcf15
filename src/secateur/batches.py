"""Batches as people have them, as the network takes them: inputs, and a target where somebody looks at it.

Below statistics, repairs, `prune` and the quantisers, which all go through data of the user's. What a batch means is
told by the example inputs: of `(a, b)` both are inputs of a network with two, and the second is a target otherwise.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch

from secateur.errors import ConfigError, InputError
from secateur.graph.modules import Inputs, as_call
from secateur.graph.nests import output_tensors

#: What inputs and targets are called in batches that are dicts, the usual name first.
_INPUTS = ("image", "images", "img", "pixel_values", "input", "inputs", "x", "data")
_TARGETS = ("label", "labels", "target", "targets", "y", "mask")
#: What data sets give that nobody converted, and what networks that do not convert compute in.
_UNCONVERTED = frozenset(
    {torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64, torch.bool, torch.float64}
)
#: Channels of pictures, at most; a second dimension beyond may be one of place.
_CHANNELS = 4
_COMPUTED = frozenset({torch.float32, torch.float16, torch.bfloat16})


class Batches:
    """Batches of any usual form, to be gone through as often as need be; each is (inputs, target or None).

    A batch may be a tensor, `(x,)`, `(x, y)`, `(x, y, anything)`, `((x1, x2), y)`, `(x1, x2, y)`, a dict, or what a
    DataLoader, a generator or a list gives of these; one tensor instead of batches is one batch.
    """

    def __init__(self, given: Iterable[Any], example_inputs: Any, *, keep: bool = True) -> None:
        """Keep the batches; an iterator, which can be gone through once only, is read into a list.

        Args:
            given: the user's data. example_inputs: what the network was traced with: a tensor, a tuple or a dict.
            keep: False leaves an iterator as it is, for one who goes through it once.

        Raises:
            ConfigError: these are no batches at all.
        """
        if isinstance(given, torch.Tensor):
            given = [given]
        if isinstance(given, str | Mapping) or not (hasattr(given, "__iter__") or hasattr(given, "__getitem__")):
            raise ConfigError(
                f"The data are a {type(given).__name__}: give batches, such as a DataLoader or a list of "
                "(inputs, target)."
            )
        self._given: Iterable[Any] = list(given) if keep and isinstance(given, Iterator) else given
        self._example = example_inputs

    def __length_hint__(self) -> int:
        return operator.length_hint(self._given)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """(inputs, target or None) of each batch; InputError for one that the network cannot be called with."""
        for batch in self._given:
            yield parts_of(batch, self._example)

    def inputs(self) -> Iterator[Any]:
        """The inputs of each batch, as the network takes them."""
        for inputs, _ in self:
            yield inputs

    def labelled(self, who: str) -> Iterator[tuple[Any, Any]]:
        """(inputs, target) of each batch, for one who looks at targets; InputError at the first without.

        who: subject of the sentence, such as "The method taylor".
        """
        for inputs, target in self:
            if target is None:
                raise InputError(f"{who} looks at targets and a batch has none: give pairs (inputs, target).")
            yield inputs, target


def inputs_of(batch: Any, example_inputs: Any) -> Any:
    """The inputs of one batch as the network takes them; see `parts_of`."""
    return parts_of(batch, example_inputs)[0]


def parts_of(batch: Any, example_inputs: Any) -> tuple[Any, Any]:
    """Inputs as the network takes them, and the target, or None where the batch has none.

    Args:
        batch: in one of the forms that `Batches` names. example_inputs: what the network is called with.

    Raises:
        InputError: it has no inputs for this network, is a single sample, or holds NaN or infinity.
    """
    args, keywords = as_call(example_inputs)
    if args and keywords:
        return _of_both(batch, args, keywords)
    if isinstance(batch, torch.Tensor | Inputs):
        inputs, target = batch, None
    elif isinstance(batch, Mapping):
        inputs, target = _of_keywords(batch, keywords) if keywords else _of_mapping(batch, args)
    elif isinstance(batch, tuple | list) and batch:
        inputs, target = _of_sequence(tuple(batch), args, keywords, example_inputs)
    else:
        raise InputError(
            f"A batch is {'empty' if isinstance(batch, tuple | list) else f'a {type(batch).__name__}'}: give tensors, "
            "pairs (inputs, target) or dicts of tensors."
        )
    _check_rows(inputs, args, keywords)
    _check_numbers(inputs, example_inputs)
    return inputs, target


def pair_of(batch: Any) -> tuple[Any, Any]:
    """Inputs and target of a batch whose network is not at hand: `(x, y)`, `(x, y, anything)`, or a dict's usual names.

    Raises:
        InputError: it has no target, or which is which cannot be told.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in _INPUTS if name in batch), None)
        inputs, target = (batch[name], _target(batch, (name,))) if name is not None else (None, None)
    else:
        inputs, target = (*batch[:2], None, None)[:2] if isinstance(batch, tuple | list) else (batch, None)
    if inputs is None or target is None:
        raise InputError(
            "A batch does not say what its inputs and its targets are: give pairs (inputs, target), or a task whose "
            "`batch` takes them out."
        )
    return _several(inputs), _several(target)


def rows_of(value: Any, start: int | None, stop: int | None) -> Any:
    """Some samples of a batch's inputs or targets.

    Of a tensor its rows, of a list its items (one for each sample, as detectors have it); the parts of a tuple, of a
    dict and of `Inputs` are taken one by one, and what is none of these stays.
    """
    if isinstance(value, torch.Tensor):
        return value[start:stop] if value.dim() else value
    if isinstance(value, list):
        return value[start:stop]
    if isinstance(value, tuple):
        return tuple(rows_of(part, start, stop) for part in value)
    if isinstance(value, Mapping):
        return {name: rows_of(part, start, stop) for name, part in value.items()}
    if isinstance(value, Inputs):
        parts = rows_of((value.args, value.kwargs), start, stop)
        return Inputs(*parts[0], **parts[1])
    return value


def split_rows(value: Any, samples: int, parts: int) -> list[Any]:
    """`parts` pieces of a batch of so many samples, cut as `torch.tensor_split` cuts."""
    small, more = divmod(samples, parts)
    ends = [0]
    for number in range(parts):
        ends.append(ends[-1] + small + (number < more))
    return [rows_of(value, start, stop) for start, stop in pairwise(ends)]


def _several(value: Any) -> Any:
    """What a DataLoader makes a list of tensors, one for each part of a sample, is a tuple."""
    return tuple(value) if isinstance(value, list) and listed(value) else value


def listed(value: Any) -> bool:
    """Whether this is a list of tensors, as detectors take one of images."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, torch.Tensor) for each in value)


def _of_sequence(
    batch: tuple[Any, ...], args: tuple[Any, ...], keywords: Mapping[str, Any], example: Any
) -> tuple[Any, Any]:
    first, rest = batch[0], [*batch[1:], None]
    if isinstance(first, Inputs):
        return first, rest[0]
    if isinstance(first, Mapping):  # ({"x": ...}, target)
        return parts_of(first, example)[0], rest[0]
    wanted = len(keywords) or len(args)
    if wanted == 1:
        if args and listed(args[0]):
            return _of_images(batch, args[0])
        return dict(zip(keywords, batch, strict=False)) if keywords else first, rest[0]
    packed = isinstance(first, tuple | list) and not (args and isinstance(args[0], tuple | list))
    values = tuple(first) if packed else batch
    if len(values) < wanted:
        raise InputError(
            f"The network takes {wanted} inputs and a batch has {len(values)}: give ((first, second, ...), target)."
        )
    target = rest[0] if packed else [*batch, None][wanted]
    return dict(zip(keywords, values, strict=False)) if keywords else values[:wanted], target


def _of_both(batch: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, Any]:
    """For positional and keyword inputs: `Inputs`, or the positional ones where keywords are constants."""
    whole, target = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
    if isinstance(whole, Inputs):
        return whole, target
    varying = [name for name, value in keywords.items() if isinstance(value, torch.Tensor)]
    if varying:
        raise InputError(
            f"The network takes {varying[0]!r} by keyword, beside positional inputs, and a batch does not say which is "
            f"which: give pairs (secateur.Inputs(..., {varying[0]}=...), target)."
        )
    inputs, target = parts_of(batch, args)
    return Inputs(*as_call(inputs)[0], **keywords), target


def _of_images(batch: tuple[Any, ...], example: Any) -> tuple[Any, Any]:
    """For a network that takes one list of images: `(images, target)`, `((images,), target)` or a bare list."""
    if listed(batch) and all(image.ndim == example[0].ndim for image in batch):
        return (list(batch),), None
    alone = listed(batch[0]) and batch[0][0].ndim == example[0].ndim
    inputs = (batch[0],) if alone else batch[0]
    return inputs, batch[1] if len(batch) > 1 else None


def _of_keywords(batch: Mapping[str, Any], keywords: Mapping[str, Any]) -> tuple[Any, Any]:
    missing = [name for name in keywords if name not in batch]
    if missing:
        raise InputError(
            f"The network is called with {', '.join(keywords)}, and a batch has no {missing[0]!r}: it has "
            f"{', '.join(map(str, batch))}."
        )
    return {name: batch[name] for name in keywords}, _target(batch, keywords)


def _of_mapping(batch: Mapping[str, Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """A dict for a network that is called with positional inputs: those of usual names, or the only ones that fit."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    name = next((name for name in _INPUTS if name in tensors), None)
    if name is None:
        fitting = [key for key, value in tensors.items() if len(args) == 1 and _like(value, args[0])]
        name = fitting[0] if len(fitting) == 1 else None
    if name is None or len(args) != 1:
        raise InputError(
            f"Which of {', '.join(map(str, batch)) or 'nothing'} the network takes cannot be told: give pairs "
            "(inputs, target), or trace the network with a dict of its keywords."
        )
    return tensors[name], _target(batch, (name,))


def _target(batch: Mapping[str, Any], inputs: Iterable[str]) -> Any:
    """What is called so, or else the only other tensor."""
    rest = {name: value for name, value in batch.items() if name not in set(inputs)}
    named = next((rest[name] for name in _TARGETS if name in rest), None)
    tensors = [value for value in rest.values() if isinstance(value, torch.Tensor)]
    return named if named is not None else tensors[0] if len(tensors) == 1 else None


def _check_rows(inputs: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """A data set without a DataLoader gives samples, which lack the dimension of the batch; one without transforms
    gives images of 8 bits, and NumPy numbers of 64."""
    given, named = as_call(inputs)
    pairs = [*zip(given, args, strict=False), *((named[name], keywords.get(name)) for name in named)]
    for value, example in pairs:
        tensors = isinstance(value, torch.Tensor) and isinstance(example, torch.Tensor)
        if tensors and value.ndim == example.ndim and not value.numel() and example.numel():
            raise InputError(
                f"A batch holds nothing (its inputs are {_shape(value)}): leave such batches out of the data."
            )
        if tensors and value.ndim == example.ndim - 1:
            raise InputError(
                f"A batch's inputs are {_shape(value)} and the network takes {_shape(example)}: a single sample is no "
                "batch, so wrap the data in a DataLoader."
            )
        if tensors and _of_other_channels(value, example):
            hint = (
                "permute(0, 3, 1, 2)"
                if value.ndim == 4 and value.shape[3] == example.shape[1]
                else "convert the images"
            )
            raise InputError(
                f"A batch's inputs are {_shape(value)} and the network takes {example.shape[1]} channels, "
                f"{_shape(example)}: {hint} as for training, or give example inputs like the data."
            )
        if tensors and value.dtype in _UNCONVERTED and example.dtype in _COMPUTED:
            found, wanted = (str(tensor.dtype).removeprefix("torch.") for tensor in (value, example))
            raise InputError(
                f"A batch's inputs are {found} and the network takes {wanted}: convert them as for training "
                "(x.float() / 255, say), or give example inputs of the data's type."
            )


def _of_other_channels(value: torch.Tensor, example: torch.Tensor) -> bool:
    """Whether these are images of more or fewer channels; what is no image may vary in its second dimension."""
    images = value.ndim == example.ndim == 4 and example.shape[1] <= _CHANNELS
    return images and value.shape[1] != example.shape[1]


def _check_numbers(inputs: Any, example: Any) -> None:
    """One number that is none spoils all sums over the data; an example with infinity, such as a mask, allows it."""
    if not _finite(inputs) and _finite(example):
        raise InputError("A batch's inputs hold NaN or infinite values: look at the files and at their normalisation.")


def _finite(inputs: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in output_tensors(inputs) if tensor.is_floating_point())


def _like(value: torch.Tensor, example: Any) -> bool:
    return (
        isinstance(example, torch.Tensor)
        and value.ndim == example.ndim
        and value.is_floating_point() == example.is_floating_point()
    )


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
