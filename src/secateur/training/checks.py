"""What can go wrong is found with the first images, before a stage trains or writes anything."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from secateur._files import said
from secateur.errors import DataError, ModelError
from secateur.training.losses import logits

_IMAGES = 8  # enough to see the shape


@torch.no_grad()
def check_fit(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    answers: Callable[[nn.Module, torch.Tensor], object],
) -> None:
    """Run a few images through the model and compare with what the data need.

    answers: gives the module's output for images.

    Raises:
        DataError: images or labels are unusable. ModelError: the model does not run on them, or gives no class scores.
    """
    images, labels = images[:_IMAGES], labels[:_IMAGES]
    if not bool(torch.isfinite(images).all()):
        raise DataError("The first training images hold NaN or infinite values: look at the files and normalisation.")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise DataError(
            f"The first training labels go from {int(labels.min())} to {int(labels.max())}, but there are {classes} "
            f"classes: labels must go from 0 to {classes - 1}."
        )
    training = module.training
    module.eval()
    try:
        output = logits(_run(module, images, answers), len(images), "in evaluation")
    finally:
        module.train(training)
    if output.shape[1] < classes:
        raise ModelError(
            f"The model tells {output.shape[1]} classes apart, but the data have {classes}: set its number of classes "
            "(model.arguments: {num_classes: ...})."
        )
    if len(labels) and not math.isfinite(float(F.cross_entropy(output.float(), labels))):
        raise ModelError("The model's loss on the first images is not finite: look at the weights it starts from.")


def _run(module: nn.Module, images: torch.Tensor, answers: Callable[[nn.Module, torch.Tensor], object]) -> object:
    try:
        return answers(module, images)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise ModelError(
            f"The model does not run on images of {shape} (channels x height x width): {said(error)}."
        ) from error
