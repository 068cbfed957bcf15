"""Trials: how a search asks how good a network is, and how its answers are remembered.

Below the contract, whose `Method.search` is given one. Asked again in the same order, also after an interruption, a
search gets the same answers from memory; so a search is resumed by beginning it again. `Shown` works on images held in
memory; a run has trials of its own, over its training engine.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.graph.modules import as_call
from secateur.methods.hands import Loss
from secateur.statistics.gather import rows, untouched
from secateur.statistics.held_out import HeldOut

#: One answer, as JSON: {"trial": its number, "about": which network, "epochs": of training, "accuracy": found}.
Answer = Mapping[str, Any]

#: Plain SGD of `Shown`: learning rate, momentum, weight decay.
_RATE, _MOMENTUM, _DECAY = 0.05, 0.9, 1e-4


@dataclass(frozen=True)
class _Question:
    make: Callable[[], nn.Module]
    epochs: int


class Trials(ABC):
    """Answers how good networks are, one after the other, and remembers."""

    def __init__(self, known: Iterable[Answer] = (), kept: Callable[[Answer], None] = lambda answer: None) -> None:
        """Remember nothing but what is given.

        known: answers of before, in their order. kept: called with every new answer.
        """
        self._answers, self._kept = list(known), kept
        self._asked: list[_Question] = []
        self._best: tuple[int, dict[str, torch.Tensor]] | None = None
        self.planned: int | None = None

    @property
    def number(self) -> int:
        """Of the next trial, from 0: what a search draws for it depends on this and its seed alone."""
        return len(self._asked)

    @property
    def best(self) -> float:
        """The best accuracy so far; without bound from below before the first trial."""
        return max((answer["accuracy"] for answer in self._answers[: self.number]), default=-math.inf)

    def shown(self, score: float) -> str:
        """What `accuracy` gave, as people read it."""
        return f"{score:.1%}"

    def begin(self, planned: int) -> None:
        """Say how many trials there will be at most, for those who wait."""
        self.planned = planned

    def accuracy(self, make: Callable[[], nn.Module], about: Mapping[str, Any], *, epochs: int = 0) -> float:
        """Accuracy on held-out images of a network, from memory if this was asked before.

        Args:
            make: makes the network; not called where the answer is known. It draws from (seed, `number`) alone.
            about: which network this is, as JSON: an answer is known if trial number and `about` are the same.
            epochs: of plain training before it is measured.

        Returns:
            the share of right answers; on tasks without classes, how much of the whole network's quality is kept, and
            in a run the task's headline, with a minus where less is better.
        """
        number, before = self.number, self.best
        question = {"trial": number, "about": json.loads(json.dumps(about)), "epochs": epochs}
        self._asked.append(_Question(make, epochs))
        known = self._answers[number] if number < len(self._answers) else None
        if known is not None and all(known.get(key) == value for key, value in question.items()):
            return float(known["accuracy"])
        if known is not None:
            self._forget(number)
        network = self._made(number)
        found = self._measure(network)
        if found > before:
            self._best = (number, _copied(network))
        answer = {**question, "accuracy": found}
        self._answers.append(answer)
        self._kept(answer)
        return found

    def weights(self, number: int) -> dict[str, torch.Tensor]:
        """The tensors of the network of trial `number`, as measured; trained again where they are not at hand."""
        if self._best is None or self._best[0] != number:
            self._best = (number, _copied(self._made(number)))
        return dict(self._best[1])

    def _made(self, number: int) -> nn.Module:
        question = self._asked[number]
        network = question.make()
        if question.epochs:
            self._train(network, question.epochs, number)
        return network

    @abstractmethod
    def images(self, most: int) -> Iterable[tuple[Any, Any]]:
        """Batches of training images, at least two and about `most` in all, always the same; none is held out."""

    @abstractmethod
    def _train(self, network: nn.Module, epochs: int, number: int) -> None:
        """Train the network of one trial, in place, by what depends on the number of the trial alone."""

    @abstractmethod
    def _measure(self, network: nn.Module) -> float:
        """Accuracy on the held-out images."""

    def _forget(self, number: int) -> None:
        """Drop answers from `number` on, which are of another search."""
        del self._answers[number:]


class Shown(Trials):
    """Trials on batches shown, which are kept in memory: one image in eight is held out, plain SGD on the others."""

    def __init__(
        self,
        batches: Iterable[tuple[Any, Any]],
        loss: Loss,
        model: nn.Module,
        seed: int,
        *,
        known: Iterable[Answer] = (),
        kept: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        """Take the batches apart.

        Args:
            batches: of (inputs, target). loss: loss(output, target), to train on and, where outputs are no class
                scores, to measure by. model: the whole network; where it is, images are. seed: of their order.
            known, kept: as in `Trials`.

        Raises:
            ConfigError: there are too few images, or no targets.
        """
        super().__init__(known, kept)
        self._loss, self._seed = loss, seed
        self._device = next(model.parameters()).device
        self._held = HeldOut(1 << 62, loss)
        self._batches = list(self._held.rest(batches, self._device))
        self._held.require()
        if any(target is None for _, target in self._batches):
            raise ConfigError("A search trains and measures networks, and a batch has no target: give pairs.")
        with untouched(model):
            self._held.begin(model)

    def images(self, most: int) -> Iterator[tuple[Any, Any]]:
        """The first batches shown, without what is held out."""
        seen = 0
        for number, (inputs, target) in enumerate(self._batches):
            if seen >= most and number >= 2:
                return
            seen += rows(inputs)
            yield inputs, target

    def _train(self, network: nn.Module, epochs: int, number: int) -> None:
        network.to(self._device).train()
        order = torch.Generator().manual_seed((self._seed * 1_000_003 + number) % 2**63)
        optimiser = torch.optim.SGD(network.parameters(), _RATE, momentum=_MOMENTUM, weight_decay=_DECAY)
        with _own_chance(self._device, int(torch.randint(2**31, (), generator=order))), torch.enable_grad():
            for _ in range(epochs):
                for k in torch.randperm(len(self._batches), generator=order).tolist():
                    inputs, target = self._batches[k]
                    if rows(inputs) < 2:  # batch norm has no variance of one value
                        continue
                    args, keywords = as_call(inputs)
                    optimiser.zero_grad()
                    self._loss(network(*args, **keywords), target).backward()
                    optimiser.step()

    def _measure(self, network: nn.Module) -> float:
        return self._held.measure(network.to(self._device).eval())


def _copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@contextmanager
def _own_chance(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, PyTorch's generators begin at `seed`; afterwards they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
