"""Images held out of those shown, to measure a network on: what statistics were made from would flatter.

Measured is accuracy where outputs are scores of two classes or more and targets are class numbers; on every other task
how much of the whole network's quality is kept, its loss over the loss now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from secateur.errors import ConfigError, InputError
from secateur.graph.modules import call_with_copies, map_tensors
from secateur.statistics.gather import Loss, pair, rows

#: One image in so many is held out.
_EVERY = 8
#: Images in one forward pass, and in one piece, at most.
_BATCH, _PIECE = 256, 32
#: What stands for no class in masks of 8 bits; else it is a number below zero.
_NO_CLASS = 255


class HeldOut:
    """Every eighth image of a stream, until there are `most`; the same however the stream is cut into batches."""

    def __init__(self, most: int, loss: Loss) -> None:
        """Hold nothing yet. loss: loss(output, target), where there is no accuracy."""
        self.most, self._loss = most, loss
        self._batches: list[tuple[Any, Any]] = []
        self._images = 0
        self._pieces: list[tuple[Any, Any]] | None = None
        self.whole = 0.0  # the whole network's accuracy, or loss
        self.by_accuracy = True
        self.labels = 0  # of a class

    def __len__(self) -> int:
        return self._images

    def rest(self, batches: Iterable[tuple[Any, Any]], device: torch.device) -> Iterator[tuple[Any, Any]]:
        """Go through batches of (inputs, target), hold some of the images, and give the others."""
        seen = 0
        for batch in batches:
            inputs, target = pair(batch, device)
            images = rows(inputs)
            held = (torch.arange(seen, seen + images, device=device) + 1) % _EVERY == 0
            held &= (held.cumsum(0) + self._images) <= self.most
            seen += images
            if bool(held.any()):
                self._batches.append((_some(inputs, held), _some(target, held)))
                self._images += int(held.sum())
            if not bool(held.all()):
                yield _some(inputs, ~held), _some(target, ~held)

    def require(self) -> None:
        """Refuse to measure on nothing."""
        if not self._images:
            raise ConfigError(
                f"Networks are measured on one image in {_EVERY}, and fewer were shown: show more images."
            )

    def begin(self, model: nn.Module) -> float:
        """Choose between accuracy and loss, and measure the whole network: its accuracy, or 1.

        Raises:
            ConfigError: there are no targets, or the loss is not a positive number.
        """
        output, target = next(self.answers(model))
        self.by_accuracy = _tells_classes(output, target)
        self.whole = self._accuracy(model) if self.by_accuracy else self.mean_loss(model)
        if not self.by_accuracy and not 0 < self.whole < float("inf"):
            raise ConfigError(
                f"The search uses how much the loss rises, as a share of the whole network's, and that is "
                f"{self.whole:g}: give a loss above zero, or choose another method."
            )
        return self.measure(model)

    def measure(self, model: nn.Module) -> float:
        """The accuracy of the network, or the whole network's loss over its own; the model evaluates."""
        if self.by_accuracy:
            return self._accuracy(model)
        loss = self.mean_loss(model)
        return self.whole / loss if loss > 0 else float(loss == loss)  # a loss that is no number keeps nothing

    @torch.no_grad()
    def answers(self, model: nn.Module) -> Iterator[tuple[Any, Any]]:
        """Output and target of the held images, batch by batch; the model evaluates."""
        for inputs, target in self._joined():
            args, keywords = call_with_copies(inputs)
            yield model(*args, **keywords), target

    def _accuracy(self, model: nn.Module) -> float:
        """The share of held images whose class has the largest output; labels of no class do not count.

        Raises:
            InputError: a label is neither of a class nor one that stands for none: they may begin with 1.
        """
        counts = [self.right(model, piece) for piece in range(len(self.pieces()))]
        self.labels = sum(labels for _, labels in counts)
        return self.share(sum(right for right, _ in counts))

    def share(self, right: int) -> float:
        """`right` answers as a share of the labels that are of a class."""
        return right / max(self.labels, 1)

    @torch.no_grad()
    def right(self, model: nn.Module, piece: int) -> tuple[int, int]:
        """Of one of `pieces`: how many images (pixels) the model tells right, and of how many; it evaluates."""
        inputs, target = self.pieces()[piece]
        args, keywords = call_with_copies(inputs)
        output = model(*args, **keywords)
        asked = _asked(output, target)
        return int((output.argmax(1) == target)[asked].sum()), int(asked.sum())

    def pieces(self) -> list[tuple[Any, Any]]:
        """The held images in small batches, where they are plain tensors."""
        if self._pieces is None:
            self._pieces = []
            for inputs, target in self._joined():
                if isinstance(inputs, torch.Tensor) and isinstance(target, torch.Tensor):
                    parts = -(-len(inputs) // _PIECE)  # alike: a single image may be too few for a norm
                    self._pieces += zip(inputs.tensor_split(parts), target.tensor_split(parts), strict=True)
                else:
                    self._pieces.append((inputs, target))
        return self._pieces

    def mean_loss(self, model: nn.Module) -> float:
        """The loss of the network, over all held images; the model evaluates.

        Raises:
            ConfigError: there are no targets, or the loss is not one number.
        """
        total = images = 0.0
        for (inputs, _), (output, target) in zip(self._joined(), self.answers(model), strict=True):
            value = self._loss(output, target) if target is not None else None
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                raise ConfigError(
                    "Networks are measured here, and need class numbers as targets, or a loss(output, target) that is "
                    "one number: give targets and such a loss, or choose a method that looks at inputs alone."
                )
            total += float(value) * rows(inputs)
            images += rows(inputs)
        return total / images

    def _joined(self) -> list[tuple[Any, Any]]:
        """The held images in fewer, larger batches, where they are plain tensors."""
        if len(self._batches) > 1 and all(isinstance(part, torch.Tensor) for batch in self._batches for part in batch):
            inputs, targets = (torch.cat([batch[k] for batch in self._batches]) for k in (0, 1))
            self._batches = list(zip(inputs.split(_BATCH), targets.split(_BATCH), strict=True))
        return self._batches


def _some(value: Any, which: torch.Tensor) -> Any:
    return map_tensors(value, lambda tensor: tensor[which] if tensor.ndim and len(tensor) == len(which) else tensor)


def _asked(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Which labels are of a class."""
    asked = (target >= 0) & (target < output.shape[1])
    if bool((~asked & (target >= 0) & (target != _NO_CLASS)).any()):
        raise InputError(
            f"Class numbers go up to {int(target[target != _NO_CLASS].max())}, and the network tells "
            f"{output.shape[1]} classes apart: they must go from 0 to {output.shape[1] - 1}."
        )
    return asked


def _tells_classes(output: Any, target: Any) -> bool:
    """Whether there is an accuracy: scores of two classes or more in dimension 1, and class numbers."""
    if not isinstance(output, torch.Tensor) or not isinstance(target, torch.Tensor) or output.ndim < 2:
        return False
    numbers = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    return output.shape[1] > 1 and numbers and target.shape == output.shape[:1] + output.shape[2:]
