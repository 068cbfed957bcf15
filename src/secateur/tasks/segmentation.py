"""A class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional as F

from secateur.errors import DataError, ModelError
from secateur.tasks._library import torchmetrics
from secateur.tasks.base import Task, TaskSettings


class SegmentationSettings(TaskSettings):
    """What a mask may hold besides classes."""

    ignore_index: int = Field(default=255, description="Pixels of this label are not looked at.")


class Segmentation(Task):
    """Scores [N, C, H, W], also as {"out": scores}, and masks [N, H, W] of class numbers; mean IoU over classes."""

    marks = "mask"
    name, headline, higher_is_better, unit = "segmentation", "mIoU", True, "share"
    scores = True
    Config = SegmentationSettings
    settings: SegmentationSettings
    _classes = 2

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """Cross entropy: of an image a mean over the pixels that count, and of those the mean over images."""
        labels, known = self._labels(targets)
        each = F.cross_entropy(_scores(answer).float(), labels, reduction="none") * known
        return (each.flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1)).mean()

    def check(self, answer: Any, targets: Any) -> None:
        """A score for every class at every pixel, and masks that name them."""
        scores = _scores(answer)
        super().check(scores, targets)
        if scores.dim() != 4 or scores.shape[1] < 2 or scores.shape[2:] != targets.shape[1:]:
            raise ModelError(
                f"The model gives {'x'.join(map(str, scores.shape))} for masks of "
                f"{'x'.join(map(str, targets.shape))}, and segmentation needs scores of two classes or more, "
                "[N, C, H, W], at every pixel of [N, H, W]."
            )
        known = targets[self._labels(targets)[1]]
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < scores.shape[1]:
            raise DataError(
                f"Masks hold labels from {int(known.min())} to {int(known.max())}, and the model tells "
                f"{scores.shape[1]} classes apart: set task.ignore_index for pixels of none."
            )
        self._classes = scores.shape[1]

    def metrics(self) -> Mapping[str, Any]:
        """Intersection over union, a mean over classes, and the share of pixels that are right."""
        library, ignored = torchmetrics("classification"), self.settings.ignore_index
        return {
            "mIoU": library.MulticlassJaccardIndex(num_classes=self._classes, ignore_index=ignored),
            "pixel accuracy": library.MulticlassAccuracy(
                num_classes=self._classes, average="micro", ignore_index=ignored
            ),
        }

    def measured(self, answer: Any, targets: Any) -> tuple[Any, ...]:
        """The class of the highest score."""
        return _scores(answer).argmax(1), targets

    def outputs(self, classes: int | None) -> int | None:
        """One score for every class."""
        return classes

    def distilled(self, answer: Any, taught: Any, temperature: float) -> torch.Tensor:
        """T² · KL(teacher / T ‖ student / T) of every pixel, the mean (Hinton et al., arXiv 1503.02531)."""
        student = F.log_softmax(_scores(answer).float() / temperature, 1)
        teacher = F.log_softmax(_scores(taught).float() / temperature, 1)
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean() * temperature**2

    def _labels(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels that cross entropy takes, and which pixels count."""
        known = targets != self.settings.ignore_index
        return torch.where(known, targets, 0).long(), known


def _scores(answer: Any) -> Any:
    """What torchvision's segmenters call "out"."""
    return answer["out"] if isinstance(answer, Mapping) and "out" in answer else answer
