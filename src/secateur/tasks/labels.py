"""Yes or no: once for every sample, or once for each of several labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from secateur.errors import DataError
from secateur.tasks._library import torchmetrics
from secateur.tasks.base import Task, fitted


class _YesNo(Task):
    """Logits, and targets of 0 and 1, as many."""

    higher_is_better, unit, mixes = True, "share", True

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """Binary cross entropy of logits."""
        return F.binary_cross_entropy_with_logits(answer.float(), fitted(answer, targets, self.name))

    def check(self, answer: Any, targets: Any) -> None:
        """As many targets as logits, between 0 and 1."""
        super().check(answer, targets)
        wanted = fitted(answer, targets, self.name)
        if wanted.numel() and not 0 <= float(wanted.min()) <= float(wanted.max()) <= 1:
            raise DataError(
                f"Targets go from {float(wanted.min()):g} to {float(wanted.max()):g}, and the task {self.name} has "
                "0 for no and 1 for yes."
            )

    def measured(self, answer: Any, targets: Any) -> tuple[Any, ...]:
        """Probabilities, and whole numbers."""
        return answer.float().sigmoid(), fitted(answer, targets, self.name).round().long()

    def distilled(self, answer: Any, taught: Any, temperature: float) -> torch.Tensor:
        """Binary cross entropy to the teacher's probabilities, both softened: T² · BCE(x / T, σ(t / T))."""
        soft = (taught.float() / temperature).sigmoid()
        return F.binary_cross_entropy_with_logits(answer.float() / temperature, soft) * temperature**2


class Binary(_YesNo):
    """One logit a sample [N] or [N, 1], or one a position, and targets of 0 and 1; accuracy, and AUROC beside it."""

    name, headline, label_free = "binary", "accuracy", False

    def per_sample(self, answer: Any, targets: Any) -> torch.Tensor:
        """1 for a sample answered right, or the share of its positions."""
        right: torch.Tensor = (answer.detach() > 0) == (fitted(answer, targets, self.name) > 0.5)
        return right.float().flatten(1).mean(1) if right.dim() > 1 else right.float()

    def metrics(self) -> Mapping[str, Any]:
        """The area under the ROC curve."""
        return {"AUROC": torchmetrics("classification").BinaryAUROC()}

    def classes(self, targets: Any) -> torch.Tensor | None:
        """0 and 1, where there is one for every sample."""
        if targets.numel() != len(targets):
            return None
        found: torch.Tensor = targets.reshape(-1).round().long()
        return found

    def outputs(self, classes: int | None) -> int | None:
        """One logit."""
        return 1


class MultiLabel(_YesNo):
    """Logits [N, L] of L labels, of which a sample may have any; mean average precision over labels."""

    name, headline, scores = "multilabel", "mAP", True
    _labels = 2

    def check(self, answer: Any, targets: Any) -> None:
        """A logit for every label."""
        super().check(answer, targets)
        if targets.dim() != 2:
            raise DataError(
                f"Targets have {targets.dim()} dimensions: multilabel takes 0 or 1 for every label, [N, L]."
            )
        self._labels = targets.shape[1]

    def metrics(self) -> Mapping[str, Any]:
        """Mean average precision, and F1 at the threshold of one half."""
        kinds = torchmetrics("classification")
        return {
            "mAP": kinds.MultilabelAveragePrecision(num_labels=self._labels),
            "F1": kinds.MultilabelF1Score(num_labels=self._labels),
        }

    def outputs(self, classes: int | None) -> int | None:
        """One logit for every label."""
        return classes
