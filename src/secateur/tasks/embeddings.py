"""Embeddings in which what is alike lies close together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional as F

from secateur.errors import DataError, ModelError
from secateur.tasks._library import torchmetrics
from secateur.tasks.base import Task, TaskSettings

_ROWS = 1024  # queries that are compared with all at a time


class MetricLearningSettings(TaskSettings):
    """How sharply neighbours are told apart."""

    temperature: float = Field(default=0.1, gt=0, description="What cosines are divided by.")


class MetricLearning(Task):
    """Embeddings [N, D], and the class [N] of every sample; how often a sample's nearest neighbour is of its class."""

    name, headline, higher_is_better, unit = "metric_learning", "recall@1", True, "share"
    Config = MetricLearningSettings
    settings: MetricLearningSettings
    label_free, adds_up = False, False

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, eq. 2), over the samples of the batch.

        L_i = -1/|P(i)| sum over p in P(i) of log( exp(z_i·z_p / T) / sum over a != i of exp(z_i·z_a / T) ), with P(i)
        the others of i's class; a sample that is alone of its class in the batch has none.
        """
        z = F.normalize(answer.float(), dim=1)
        alone = torch.eye(len(z), dtype=torch.bool, device=z.device)
        cosines = (z @ z.T / self.settings.temperature).masked_fill(alone, -torch.inf)
        log = cosines - cosines.logsumexp(1, keepdim=True)
        friends = (targets[:, None] == targets[None]) & ~alone
        each: torch.Tensor = -log.masked_fill(~friends, 0.0).sum(1) / friends.sum(1).clamp_min(1)
        return each.mean()

    def check(self, answer: Any, targets: Any) -> None:
        """One row a sample, and the numbers of their classes."""
        super().check(answer, targets)
        if answer.dim() != 2:
            raise ModelError(f"The model gives {answer.dim()} dimensions, and metric learning needs embeddings [N, D].")
        if targets.dim() != 1 or targets.is_floating_point():
            raise DataError("Metric learning needs the number of every sample's class, [N].")

    def metrics(self) -> Mapping[str, Any]:
        """Recall at one, every sample asked for once, all others to be found."""
        return {"recall@1": _recall()}

    def classes(self, targets: Any) -> torch.Tensor | None:
        """The class numbers."""
        found: torch.Tensor = targets
        return found

    def distilled(self, answer: Any, taught: Any, temperature: float) -> torch.Tensor:
        """One less the cosine to the teacher's embedding."""
        return (1 - F.cosine_similarity(answer.float(), taught.float())).mean()


def _recall() -> Any:
    """A metric of torchmetrics', made when that is there: it gathers all embeddings, from all processes."""

    class RecallAtOne(torchmetrics("metric").Metric):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.add_state("rows", default=[], dist_reduce_fx="cat")
            self.add_state("labels", default=[], dist_reduce_fx="cat")

        def update(self, rows: torch.Tensor, labels: torch.Tensor) -> None:
            self.rows.append(F.normalize(rows.detach().float(), dim=1))
            self.labels.append(labels)

        def compute(self) -> torch.Tensor:
            rows, labels = (torch.cat(list(v)) if isinstance(v, list) else v for v in (self.rows, self.labels))
            right = torch.zeros((), device=rows.device)
            for start in range(0, len(rows), _ROWS):
                part = rows[start : start + _ROWS]
                cosines = part @ rows.T
                at = torch.arange(len(part), device=rows.device)
                cosines[at, at + start] = -torch.inf
                right += (labels[cosines.argmax(1)] == labels[start : start + _ROWS]).sum()
            return right / len(rows)

    return RecallAtOne()
