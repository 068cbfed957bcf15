"""What can go wrong is found with the first images, before a stage trains or writes anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from secateur._files import said
from secateur.batches import rows_of
from secateur.errors import DataError, ModelError
from secateur.graph.modules import map_tensors
from secateur.tasks import Task
from secateur.training.losses import sum_of

_IMAGES = 8  # enough to see the shape


@torch.no_grad()
def check_fit(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    task: Task,
    run: Callable[[nn.Module, Any, Callable[[Any], Any]], Any] | None = None,
) -> None:
    """Run a few images through the model and see that it answers the task.

    run: calls with the inputs as they lie in memory in training; without it they are taken as they are.

    Raises:
        DataError: images or targets are unusable. ModelError: the model does not run, or answers something else.
    """
    inputs, targets = rows_of(inputs, 0, _IMAGES), rows_of(targets, 0, _IMAGES)
    if not bool(torch.isfinite(sum_of(inputs))):
        raise DataError("The first training images hold NaN or infinite values: look at the files and normalisation.")
    if not task.samples(targets):
        return
    modes = [(part, part.training) for part in module.modules()]
    module.eval()

    def judge(given: Any) -> tuple[torch.Tensor, Any]:
        return task.judged(module, given, targets)

    try:
        loss, _ = run(module, inputs, judge) if run is not None else judge(inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ModelError(f"The model does not run on images of {_shapes(inputs)}: {said(error)}.") from error
    finally:
        for part, mode in modes:
            part.training = mode
    if not math.isfinite(float(loss)):
        raise ModelError("The model's loss on the first images is not finite: look at the weights it starts from.")


def _shapes(inputs: Any) -> str:
    """The shapes of one sample's tensors."""
    found: list[str] = []
    map_tensors(rows_of(inputs, 0, 1), lambda tensor: found.append("x".join(map(str, tensor.shape[1:]))))
    return " and ".join(found) + " (channels x height x width)"
