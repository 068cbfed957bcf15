"""Trials of a run: networks trained and measured by the run's engine, answers kept in search.jsonl of its folder.

A search that was killed is begun again and reads there what it had found. The answers are of one network and one way to
try: the first line says of which, and others are forgotten.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._files import append_line, keep_lines, whole_lines
from secateur.data import Data, Split
from secateur.errors import ConfigError, Diverged
from secateur.methods import Method
from secateur.methods.trials import Answer, Trials
from secateur.recipe import Recipe, SearchConfig, Training
from secateur.runs.calibration import Calibration
from secateur.runs.folder import SEARCH
from secateur.training import Engine, Silent
from secateur.training.interface import Split as AnySplit
from secateur.training.randomness import derive

_WHAT, _FORMAT, _VERSION = "The trials of the search", "secateur.search", 1
#: Without validation images one training image in so many is held out.
_EVERY = 8


class Bench:
    """What trains and measures networks as a run does: its precision, device, augmentation and processes."""

    def __init__(self, recipe: Recipe, data: Data, engine: Engine) -> None:
        """Choose the images.

        recipe: of the run; its section `search` says how. data: the test images are not looked at. engine: of the run.

        Raises:
            ConfigError: no images can be held out.
        """
        self._recipe, self._config, self._engine = recipe, recipe.search, engine
        self.learn, held = held_out(data)
        self._data = _Images(data.classes, Part(self.learn, self._config.images, self._config.batch))
        self._held = _some(held, self._config.images, engine.batch_size, derive(recipe.seed, "held out"))

    def images(self, most: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Training images without augmentation; those held out are not among them."""
        size = min(self._config.batch, max(most // 2, 1))
        seed = derive(self._recipe.seed, "trials")
        return iter(Calibration(self.learn, most, size, seed, self._engine.device))

    def train(self, network: nn.Module, epochs: int, number: int) -> None:
        """Train the network of trial `number`, in place."""
        config = self._config
        trial = Engine(
            self._data,
            self._recipe.engine.model_copy(update={"trackers": ()}),
            seed=derive(self._recipe.seed, "trial", number),
            batch_size=config.batch,
            workers=self._recipe.data.workers,
            progress=_Saying(self._engine),
            task=self._engine.task,
        )
        training = Training(epochs=config.epochs or epochs, lr=config.lr, schedule="constant")
        try:
            trial.fit("search", network, training)
        except Diverged as error:
            self._engine.say(f"Trial {number + 1} is measured as it was left: {str(error)[0].lower()}{str(error)[1:]}")

    def measure(self, network: nn.Module) -> float:
        """The headline of the task on held-out images, higher = better."""
        found = float(self._engine.evaluate(network, self._held).headline)
        # searches take more for better, and anything below 0 for a network that cannot be
        return found if self._engine.task.higher_is_better else 0.5 - math.atan(found) / math.pi


class RunTrials(Trials):
    """Trials of a run, one after the other, in its own processes."""

    def __init__(self, recipe: Recipe, data: Data, method: Method, engine: Engine, folder: Path) -> None:
        """Read what is known.

        recipe, data, engine: as of `Bench`. method: who searches, as it is when it begins. folder: where search.jsonl
        is, or will be.

        Raises:
            ConfigError: no images can be held out.
        """
        self._engine, self._path = engine, folder / SEARCH
        self._bench = Bench(recipe, data, engine)
        if not len(data.validation):
            engine.say("data.validation is 0, so the search measures on one training image in eight.")
        self._head = {"format": _FORMAT, "version": _VERSION, "of": _digest(method, recipe.search)}
        self._tidy = False  # whether the file holds the answers known, and nothing else
        super().__init__(self._known(), self._keep)

    def shown(self, score: float) -> str:
        """The headline of the task that a score stands for."""
        task = self._engine.task
        return task.shown(score if task.higher_is_better else -score)

    def images(self, most: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As of `Bench`."""
        return self._bench.images(most)

    def _train(self, network: nn.Module, epochs: int, number: int) -> None:
        self._bench.train(network, epochs, number)

    def _measure(self, network: nn.Module) -> float:
        return self._bench.measure(network)

    def _tell(self) -> None:
        self._engine.progress.trial(self.number, self.planned, self.shown(self.best))

    # ------------------------------------------------------------------------------------------------------- the file

    def _known(self) -> list[Answer]:
        lines = whole_lines(self._path, what=_WHAT)
        if lines[:1] == [self._head]:
            sound = [isinstance(row.get("trial"), int) and isinstance(row.get("accuracy"), float) for row in lines[1:]]
            return list[Answer](lines[1 : 1 + (*sound, False).index(False)])
        if lines:
            self._engine.say(f"{SEARCH} is about another network or another way to try it: the search begins anew.")
        return []

    def _keep(self, answer: Answer) -> None:
        if not self._engine.main:
            return
        if self._tidy:
            append_line(self._path, answer, what=_WHAT)
        else:  # a torn line goes, and what is of another search
            keep_lines(self._path, [self._head, *self._answers.values()], what=_WHAT)
            self._tidy = True

    def _forget(self, number: int) -> None:
        super()._forget(number)
        self._engine.say(f"{SEARCH} is of another search from trial {number + 1} on: it is searched anew from there.")
        self._tidy = False


def held_out(data: Data) -> tuple[AnySplit, AnySplit]:
    """What trials are trained on and what they are measured on: the validation images, or some held out for this.

    Raises:
        ConfigError: there are no validation images, and of these data none can be held out.
    """
    if len(data.validation):
        return data.train, data.validation
    if not isinstance(data.train, Split) or len(data.train) < _EVERY:
        raise ConfigError(
            f"A search measures networks on images held out of training, and of {data.name} none are: set "
            "data.validation, such as 0.1."
        )
    held = np.arange(1, len(data.train) + 1) % _EVERY == 0
    parts = (replace(data.train, indices=data.train.indices[which]) for which in (~held, held))
    return next(parts), next(parts)


def _some(split: AnySplit, most: int | None, batch_size: int, seed: int) -> AnySplit:
    """At most so many images of a split, always the same; the first ones of a stream."""
    if not isinstance(split, Split) or most is None:
        return Part(split, most, batch_size)
    drawn = np.random.default_rng(seed).permutation(len(split))[:most]
    return replace(split, indices=split.indices[np.sort(drawn)])


@dataclass(frozen=True)
class Part:
    """An epoch of `most` images at most of a split, in whole batches of a size."""

    whole: AnySplit
    most: int | None
    batch_size: int

    def __len__(self) -> int:
        return min(len(self.whole), self._count(self.batch_size) * self.batch_size)

    def batch_count(self, batch_size: int, drop_last: bool = False) -> int:
        """How many batches make an epoch."""
        return min(self.whole.batch_count(batch_size, drop_last), self._count(batch_size))

    def _count(self, batch_size: int) -> int:
        return len(self.whole) if self.most is None else max(self.most // batch_size, 1)

    def batches(self, batch_size: int, *, start: int = 0, **how: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The first batches of an epoch of the whole, from number `start` on."""
        count = self.batch_count(batch_size, how.get("drop_last", False))
        return itertools.islice(self.whole.batches(batch_size, start=start, **how), max(count - start, 0))


@dataclass(frozen=True)
class _Images:
    """What a trial's engine sees."""

    classes: int | None
    train: AnySplit
    validation: None = None


class _Saying(Silent):
    """A trial's training passes on sentences alone, such as that Ctrl-C was heard."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def say(self, sentence: str) -> None:
        self._engine.say(sentence, note=False)


def _digest(method: Method, config: SearchConfig) -> str:
    """Of all that answers depend on: tensors of the method and its network, its settings, how trials are trained."""
    settings = [
        method.name,
        method.seed,
        method.settings.model_dump(mode="json"),
        config.model_dump(mode="json", exclude={"workers", "address"}),
    ]
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in method.state_dict().items():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(data.numpy().tobytes())
    return found.hexdigest()
