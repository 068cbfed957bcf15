"""The images that methods and repairs learn from: some of the training set, without augmentation, always the same."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import torch

from secateur.batches import rows_of
from secateur.graph.modules import map_tensors
from secateur.recipe import Recipe
from secateur.tasks import Task
from secateur.training.interface import Split
from secateur.training.randomness import derive


class Calibration:
    """The first images of a split in an order of their own; every iteration begins anew."""

    def __init__(self, split: Split, images: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.split, self.images, self.seed, self.device = split, images, seed, device
        self.size = min(batch_size, images)

    def __length_hint__(self) -> int:
        return -(-self.images // self.size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        batches = self.split.batches(self.size, shuffle=True, seed=self.seed)
        for number, batch in enumerate(itertools.islice(batches, -(-self.images // self.size))):
            left = self.images - number * self.size
            inputs, targets = map_tensors(rows_of(tuple(batch), 0, left), lambda tensor: tensor.to(self.device))
            yield inputs, targets


def calibration(recipe: Recipe, split: Split, device: torch.device) -> Calibration:
    """The images of a recipe that nothing is trained on in its stage of pruning."""
    config, seed = recipe.data, derive(recipe.seed, "calibration")
    return Calibration(split, config.calibration_images, config.batch_size, seed, device)


def single_images(split: Split, most: int = 16) -> list[Any]:
    """Inputs of one image each, the first of a split: for times of networks whose work depends on the image."""
    return [inputs for inputs, _ in itertools.islice(split.batches(1), most)]


class Classes:
    """The same batches with the class of every sample for a target, as the task knows it."""

    def __init__(self, batches: Calibration, task: Task) -> None:
        self._batches, self._task = batches, task

    def __length_hint__(self) -> int:
        return operator.length_hint(self._batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for inputs, targets in self._batches:
            yield inputs, self._task.classes(targets)
