"""One of several classes for every sample."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch.nn import functional as F

from secateur.errors import DataError, ModelError
from secateur.tasks.base import Task, TaskSettings


class ClassificationSettings(TaskSettings):
    """Cross entropy of class scores."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target spread over all classes; a stage's own goes before."
    )


class Classification(Task):
    """Scores [N, C] of C classes, targets [N] class numbers, or [N, C] the shares of classes; accuracy."""

    name, headline, higher_is_better, unit = "classification", "accuracy", True, "share"
    Config = ClassificationSettings
    label_free, mixes, scores = False, True, True
    settings: ClassificationSettings

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """Cross entropy, its targets smoothed."""
        return F.cross_entropy(answer.float(), _wanted(targets), label_smoothing=self.settings.label_smoothing)

    def judged(self, model: Any, inputs: Any, targets: Any) -> tuple[torch.Tensor, Any]:
        """Cross entropy of the targets as they are: smoothing is for training."""
        _, answer = super().judged(model, inputs, targets)
        return F.cross_entropy(answer.float(), _wanted(targets)), answer

    def per_sample(self, answer: Any, targets: Any) -> torch.Tensor:
        """1 for every sample of which the highest score is its class's."""
        right: torch.Tensor = answer.detach().argmax(1) == self.classes(targets)
        return right.float()

    def check(self, answer: Any, targets: Any) -> None:
        """One row of class scores for every sample, and labels that name one of them."""
        super().check(answer, targets)
        if answer.dim() != 2:
            raise ModelError(
                f"The model gives a tensor of {'x'.join(map(str, answer.shape))} for {len(targets)} samples, but "
                "one row of class scores for each is needed: end it with pooling, flatten and a linear layer."
            )
        if targets.dim() == 1 and len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < answer.shape[1]:
            raise DataError(
                f"Labels go from {int(targets.min())} to {int(targets.max())}, and the model tells {answer.shape[1]} "
                "classes apart: correct the labels, which begin with 0, or set the model's number of classes "
                "(model.arguments: {num_classes: ...})."
            )

    def classes(self, targets: Any) -> torch.Tensor:
        """The class numbers; of shares, the largest."""
        found: torch.Tensor = targets if targets.dim() == 1 else targets.argmax(1)
        return found

    def outputs(self, classes: int | None) -> int | None:
        """One score for every class."""
        return classes

    def smoothed(self, share: float) -> Classification:
        """The same task with smoothed targets."""
        return Classification(label_smoothing=share) if share else self

    def distilled(self, answer: Any, taught: Any, temperature: float) -> torch.Tensor:
        """T² · KL(teacher / T ‖ student / T), the mean over samples (Hinton et al., arXiv 1503.02531).

        The square keeps the gradient's size independent of the temperature.
        """
        student = F.log_softmax(answer.float() / temperature, 1)
        teacher = F.log_softmax(taught.float() / temperature, 1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _wanted(targets: torch.Tensor) -> torch.Tensor:
    """Class numbers, integers of any size, or shares as cross entropy takes them."""
    return targets if targets.is_floating_point() else targets.long()
