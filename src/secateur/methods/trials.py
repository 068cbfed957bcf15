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
class Asked:
    """A question: how good a network is.

    make: makes it; not called where the answer is known. It draws from the seed and the number of the trial alone.
    about: which network this is, as JSON: an answer is known if trial number, `about` and `epochs` are the same.
    epochs: of plain training before it is measured.
    """

    make: Callable[[], nn.Module]
    about: Mapping[str, Any]
    epochs: int = 0


class Trials(ABC):
    """Answers how good networks are, and remembers."""

    def __init__(self, known: Iterable[Answer] = (), kept: Callable[[Answer], None] = lambda answer: None) -> None:
        """Remember nothing but what is given.

        known: answers of before. kept: called with every new answer.
        """
        self._answers, self._kept = {int(answer["trial"]): answer for answer in known}, kept
        self._asked: list[Asked] = []
        self._best: tuple[int, dict[str, torch.Tensor]] | None = None
        self.planned: int | None = None

    @property
    def number(self) -> int:
        """Of the next trial, from 0: what a search draws for it depends on this and its seed alone."""
        return len(self._asked)

    @property
    def best(self) -> float:
        """The best accuracy so far; without bound from below before the first trial."""
        known = (self._answers.get(number) for number in range(self.number))
        return max((answer["accuracy"] for answer in known if answer is not None), default=-math.inf)

    def shown(self, score: float) -> str:
        """What `accuracy` gave, as people read it."""
        return f"{score:.1%}"

    def begin(self, planned: int) -> None:
        """Say how many trials there will be at most, for those who wait."""
        self.planned = planned

    def accuracy(self, make: Callable[[], nn.Module], about: Mapping[str, Any], *, epochs: int = 0) -> float:
        """Accuracy on held-out images of one network; arguments as of `Asked`, the answer as of `accuracies`."""
        return self.accuracies([Asked(make, about, epochs)])[0]

    def accuracies(self, asked: Iterable[Asked]) -> list[float]:
        """Accuracy on held-out images of networks none of which waits for another's answer.

        Args:
            asked: taken one by one, each when it can be tried; `number` is meanwhile its own. Those that were asked
                before are answered from memory.

        Returns:
            for each the share of right answers; on tasks without classes, how much of the whole network's quality is
            kept, and in a run the task's headline, with a minus where less is better.
        """
        numbers = []
        for each in asked:
            number = self._taken(each)
            numbers.append(number)
            if number not in self._answers:
                self._try(number)
            self._tell()
        self._wait()
        return [float(self._answers[number]["accuracy"]) for number in numbers]

    def _taken(self, asked: Asked) -> int:
        """The number of a question; what is known under it of another question is forgotten."""
        number = self.number
        self._asked.append(asked)
        known = self._answers.get(number)
        if known is not None and any(known.get(key) != value for key, value in self._question(number).items()):
            self._forget(number)
        return number

    def _question(self, number: int) -> dict[str, Any]:
        asked = self._asked[number]
        return {"trial": number, "about": json.loads(json.dumps(asked.about)), "epochs": asked.epochs}

    def _try(self, number: int) -> None:
        """Find an answer, at once or until `_wait`."""
        before, network = self.best, self._made(number)
        found = self._measure(network)
        if found > before:
            self._best = (number, _copied(network))
        self._answered(number, found)

    def _answered(self, number: int, found: float) -> None:
        self._answers[number] = answer = {**self._question(number), "accuracy": found}
        self._kept(answer)

    def _wait(self) -> None:  # noqa: B027  # nothing is left to wait for, unless trials are made elsewhere
        """Until everything that was begun is answered."""

    def _tell(self) -> None:  # noqa: B027
        """After every question: where the search is, for those who wait."""

    def weights(self, number: int) -> dict[str, torch.Tensor]:
        """The tensors of the network of trial `number`, as measured; trained again where they are not at hand."""
        if self._best is None or self._best[0] != number:
            self._best = (number, _copied(self._made(number)))
        return dict(self._best[1])

    def _made(self, number: int) -> nn.Module:
        asked = self._asked[number]
        network = asked.make()
        if asked.epochs:
            self._train(network, asked.epochs, number)
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
        self._answers = {each: answer for each, answer in self._answers.items() if each < number}


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
