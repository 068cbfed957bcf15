"""Samples class by class: which class each of a batch has, and so many of every class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from secateur.graph.modules import map_tensors
from secateur.statistics.gather import count


def class_numbers(batch: Any) -> torch.Tensor | None:
    """The classes [samples] of a batch (inputs, target), on the CPU; None where targets are no numbers, one each."""
    target = batch[1]
    whole = isinstance(target, torch.Tensor) and target.dim() == 1 and not target.is_floating_point()
    if not whole or len(target) != count(batch[0]):
        return None
    result: torch.Tensor = target.detach().cpu()
    return result


def few_of(batches: Iterable[tuple[Any, Any]], counts: Mapping[int, int]) -> Iterator[tuple[Any, torch.Tensor]]:
    """Of every class in `counts` that many samples, the first that come: inputs and class numbers, batch by batch."""
    left = dict(counts)
    for batch in batches:
        numbers = class_numbers(batch)
        assert numbers is not None  # they have been counted before
        chosen = []
        for at, label in enumerate(numbers.tolist()):
            if left.get(label, 0):
                left[label] -= 1
                chosen.append(at)
        if chosen:
            keep = torch.tensor(chosen)
            yield _rows(batch[0], keep, len(numbers)), numbers[keep]
        if not any(left.values()):
            return


def _rows(inputs: Any, keep: torch.Tensor, samples: int) -> Any:
    def some(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[keep.to(tensor.device)] if tensor.dim() and len(tensor) == samples else tensor

    return map_tensors(inputs, some)
