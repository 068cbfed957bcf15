"""What a network is trained on: its task's loss, of mixed samples too, and a teacher."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from secateur._files import said
from secateur._hints import install
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
        if training.cutmix:
            if not task.mixes or task.marks != "none":
                raise ConfigError(f"cutmix means nothing for the task {task.name}: leave it out.")
            _library()
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


def blended(
    inputs: torch.Tensor, targets: torch.Tensor, training: Training, *, seed: int, epoch: int, batch: int
) -> tuple[Any, Targets]:
    """A batch by mixup or CutMix, whichever the stage has, or one of both by chance."""
    chance = np.random.default_rng((seed, 0x62656964, epoch, batch)).random()
    if training.cutmix and (not training.mixup or chance < 0.5):
        return cut(inputs, targets, training.cutmix, seed=seed, epoch=epoch, batch=batch)
    return mix(inputs, targets, *mixing(len(inputs), training.mixup, seed=seed, epoch=epoch, batch=batch))


def cut(
    inputs: torch.Tensor, targets: torch.Tensor, alpha: float, *, seed: int, epoch: int, batch: int
) -> tuple[Any, Targets]:
    """A rectangle of every image is the next one's; torchvision's CutMix (Yun et al., arXiv 1905.04899).

    A function of its arguments alone, as `mixing`.
    """
    count = len(inputs)
    if count < 2:
        return inputs, Targets(targets)
    numbers = torch.arange(count, device=inputs.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng((seed, 0x637574, epoch, batch)).integers(1 << 63)))
        mixed, shares = _library().CutMix(alpha=alpha, num_classes=count)(inputs, numbers)  # shares: [count, count]
    partner = numbers.roll(1)
    return mixed, Targets(targets, targets[partner], float(shares[0, 0]))


def _library() -> Any:
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError) as error:  # the second: compiled parts that do not load
        reason = said(error)
        raise ConfigError(
            f"cutmix is torchvision's, which cannot be imported ({reason}): {install('vision')}."
        ) from error


def mix(inputs: torch.Tensor, targets: torch.Tensor, share: float, partner: torch.Tensor) -> tuple[Any, Targets]:
    """Blend every sample with its partner; the loss is blended likewise."""
    partner = partner.to(inputs.device)
    return torch.lerp(inputs[partner], inputs, share), Targets(targets, targets[partner], share)
