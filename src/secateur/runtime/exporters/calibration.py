"""Calibration inputs as quantisers take them: again and again, on the CPU, in batches that the network takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from secateur.batches import Batches
from secateur.errors import InputError
from secateur.graph.modules import map_tensors
from secateur.runtime.exporters.subject import Subject
from secateur.runtime.inputs import batch_of, to_device


class Pieces:
    """The inputs, each as the network takes it; `images` is how many the last time through had."""

    def __init__(self, calibration: Iterable[Any], subject: Subject) -> None:
        self.given = Batches(calibration, subject.inputs)
        self.size = None if subject.reason is None else batch_of(subject.inputs)
        first = next(iter(self), None)
        if first is None:
            few = f" of {self.size} inputs, the network's batch size," if self.size else ""
            raise InputError(f"There is no batch{few} to calibrate with: give some inputs of the training set.")
        self.batch_size = batch_of(first) or 1
        self.images = 0

    def __iter__(self) -> Iterator[Any]:
        self.images = 0
        for inputs in self.given.inputs():
            for piece in split(to_device(inputs, torch.device("cpu")), self.size):
                self.images += batch_of(piece) or 1
                yield piece


def split(inputs: Any, size: int | None) -> Iterator[Any]:
    """`inputs` in batches of `size`, without what is left over; as they are for None."""
    batch = batch_of(inputs)
    if size is None or batch is None:
        yield inputs
        return
    for start in range(0, batch - size + 1, size):
        rows = slice(start, start + size)
        yield map_tensors(inputs, partial(_rows, rows=rows, batch=batch))


def _rows(tensor: torch.Tensor, rows: slice, batch: int) -> torch.Tensor:
    """Some rows of a tensor whose dimension 0 is the batch; others are as they are."""
    return tensor[rows] if tensor.dim() and len(tensor) == batch else tensor
