"""What a network is trained on: its task's loss, of mixed samples too, and a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from secateur.batches import split_rows
from secateur.errors import ConfigError
from secateur.graph.modules import map_tensors
from secateur.recipe import Training
from secateur.tasks import Task


@dataclass(frozen=True)
class Targets:
    """The targets of a batch; after mixup also those of the samples mixed in, and the share of the first."""

    own: Any
    others: Any = None
    share: float = 1.0

    def as_one(self, task: Task, outputs: int | None, dtype: torch.dtype) -> Any:
        """What a loss function of PyTorch's takes: the targets, or of mixed samples the blend of both.

        outputs: how many classes are told apart, for targets that are class numbers; None: not known, then the
            targets of the first.
        """
        if self.others is None:
            return self.own
        pair = [self.own, self.others]
        if self.own.dim() == 1 and not task.label_free and (count := task.outputs(outputs)) != 1:
            if count is None:
                return self.own
            pair = [F.one_hot(numbers, count) for numbers in pair]
        first, other = (targets.to(dtype) for targets in pair)
        return torch.lerp(other, first, self.share)

    def split(self, samples: int, parts: int) -> list[Targets]:
        """The targets of `parts` micro-batches, cut as `torch.tensor_split` cuts."""
        own = split_rows(self.own, samples, parts)
        others = [None] * parts if self.others is None else split_rows(self.others, samples, parts)
        return [Targets(one, other, self.share) for one, other in zip(own, others, strict=True)]


class TaskLoss:
    """The loss of one stage, summed over samples (who averages must know the whole batch).

    Raises:
        ConfigError: the stage asks for what its task has not: smoothed labels, mixed samples, a teacher.
    """

    def __init__(self, task: Task, training: Training) -> None:
        self.task = task.smoothed(training.label_smoothing)
        self.weight, self.temperature = training.distill.weight, training.distill.temperature
        if training.mixup and not task.mixes:
            raise ConfigError(f"mixup means nothing for the task {task.name}: leave it out.")
        if self.weight and type(task).distilled is Task.distilled:
            raise ConfigError(
                f"The task {task.name} has nothing that a teacher could hand on: set distill.weight to 0."
            )

    def __call__(self, answer: Any, targets: Targets, samples: int, taught: Any = None) -> torch.Tensor:
        if not samples:  # a process that has none of a small last batch
            return sum_of(answer) * 0.0
        loss = self.task.loss(answer, targets.own)
        if targets.others is not None:
            loss = targets.share * loss + (1 - targets.share) * self.task.loss(answer, targets.others)
        if taught is not None:
            loss = (1 - self.weight) * loss + self.weight * self.task.distilled(answer, taught, self.temperature)
        return loss * samples

    def headline(self, answer: Any, targets: Targets) -> torch.Tensor | None:
        """The sum of the headline over samples, where the task has one for each; a mixed sample counts for both."""
        first = self.task.per_sample(answer, targets.own)
        if first is None or targets.others is None:
            return None if first is None else first.sum()
        other = self.task.per_sample(answer, targets.others)
        assert other is not None
        return targets.share * first.sum() + (1 - targets.share) * other.sum()


def sum_of(answer: Any) -> torch.Tensor:
    """The sum of all numbers in an answer, so that a loss of nothing depends on it."""
    found: list[torch.Tensor] = []
    map_tensors(answer, lambda tensor: found.append(tensor.float().sum()))
    return torch.stack(found).sum()


def mixing(count: int, alpha: float, *, seed: int, epoch: int, batch: int) -> tuple[float, torch.Tensor]:
    """Mixup's share of the first sample and the partner of every sample (Zhang et al., arXiv 1710.09412).

    A function of its arguments alone, so that a run that was interrupted mixes as it would have.
    """
    generator = np.random.default_rng((seed, 0x6D6978, epoch, batch))
    return float(generator.beta(alpha, alpha)), torch.from_numpy(generator.permutation(count))


def mix(inputs: torch.Tensor, targets: torch.Tensor, share: float, partner: torch.Tensor) -> tuple[Any, Targets]:
    """Blend every sample with its partner; the loss is blended likewise."""
    partner = partner.to(inputs.device)
    return torch.lerp(inputs[partner], inputs, share), Targets(targets, targets[partner], share)
