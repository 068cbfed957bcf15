"""What a network is trained on: cross-entropy with smoothed labels, mixed labels, and a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.recipe import Training


@dataclass(frozen=True)
class Targets:
    """The labels of a batch; after mixup also those of the images mixed in, and the share of the first."""

    labels: torch.Tensor
    others: torch.Tensor | None = None
    share: float = 1.0

    def correct(self, output: torch.Tensor) -> torch.Tensor:
        """How many images are classified right; a mixed image counts for each of its labels with that label's share."""
        found = output.detach().argmax(1)
        right = (found == self.labels).sum()
        if self.others is None:
            return right
        return self.share * right + (1 - self.share) * (found == self.others).sum()

    def as_one(self, classes: int, dtype: torch.dtype) -> torch.Tensor:
        """What a loss function of PyTorch's takes: the labels, or of mixed images the share of each class."""
        if self.others is None:
            return self.labels
        first, other = (F.one_hot(labels, classes).to(dtype) for labels in (self.labels, self.others))
        return torch.lerp(other, first, self.share)

    def split(self, parts: int) -> list[Targets]:
        """The targets of `parts` micro-batches, cut as `torch.tensor_split` cuts."""
        labels = self.labels.tensor_split(parts)
        others = [None] * parts if self.others is None else self.others.tensor_split(parts)
        return [Targets(one, other, self.share) for one, other in zip(labels, others, strict=True)]


class TaskLoss:
    """The loss of one stage, summed over images (who averages must know the whole batch)."""

    def __init__(self, training: Training) -> None:
        self.smoothing = training.label_smoothing
        self.weight, self.temperature = training.distill.weight, training.distill.temperature

    def __call__(self, output: torch.Tensor, targets: Targets, taught: torch.Tensor | None = None) -> torch.Tensor:
        output = output.float()  # of mixed precision
        loss = self._entropy(output, targets.labels)
        if targets.others is not None:
            loss = targets.share * loss + (1 - targets.share) * self._entropy(output, targets.others)
        if taught is None:
            return loss
        return (1 - self.weight) * loss + self.weight * distillation(output, taught.float(), self.temperature)

    def _entropy(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, labels, reduction="sum", label_smoothing=self.smoothing)


def distillation(output: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(teacher / T ‖ student / T), summed over images (Hinton et al., arXiv 1503.02531).

    The square keeps the gradient's size independent of the temperature.
    """
    student = F.log_softmax(output / temperature, 1)
    teacher = F.log_softmax(taught / temperature, 1)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def logits(output: Any, images: int, when: str) -> torch.Tensor:
    """The model's output if it is one row of class scores an image; ModelError if not."""
    if not isinstance(output, torch.Tensor):
        raise ModelError(
            f"The model gives a {type(output).__name__} {when}, but one tensor of class scores is needed: "
            "switch off its auxiliary outputs or wrap it."
        )
    if output.ndim != 2 or output.shape[0] != images:
        raise ModelError(
            f"The model gives a tensor of {'x'.join(map(str, output.shape)) or 'no dimension'} for {images} images "
            f"{when}, but {images} rows of class scores are needed: end it with pooling, flatten and a linear layer."
        )
    return output


def mixing(count: int, alpha: float, *, seed: int, epoch: int, batch: int) -> tuple[float, torch.Tensor]:
    """Mixup's share of the first image and the partner of every image (Zhang et al., arXiv 1710.09412).

    A function of its arguments alone, so that a run that was interrupted mixes as it would have.
    """
    generator = np.random.default_rng((seed, 0x6D6978, epoch, batch))
    return float(generator.beta(alpha, alpha)), torch.from_numpy(generator.permutation(count))


def mix(
    images: torch.Tensor, labels: torch.Tensor, share: float, partner: torch.Tensor
) -> tuple[torch.Tensor, Targets]:
    """Blend every image with its partner; the loss is blended likewise."""
    partner = partner.to(images.device)
    return torch.lerp(images[partner], images, share), Targets(labels, labels[partner], share)
