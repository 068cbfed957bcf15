"""Images held out of those shown, to measure accuracy on: what statistics were made from would flatter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.graph.modules import as_call, map_tensors
from secateur.statistics.gather import pair, rows

#: One image in so many is held out.
_EVERY = 8
#: Images in one forward pass.
_BATCH = 256


class HeldOut:
    """Every eighth image of a stream, until there are `most`; the same however the stream is cut into batches."""

    def __init__(self, most: int) -> None:
        """Hold nothing yet."""
        self.most = most
        self._batches: list[tuple[Any, Any]] = []
        self._images = 0

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
            raise ConfigError(f"Accuracy is measured on one image in {_EVERY}, and fewer were shown: show more images.")

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """The share of held images whose class has the largest output; the model evaluates."""
        right = total = 0
        for inputs, target in self._joined():
            args, keywords = as_call(inputs)
            output = model(*args, **keywords)
            found, wanted = _classes(output, target)
            right += int((found == wanted).sum())
            total += wanted.numel()
        return right / total

    def _joined(self) -> list[tuple[Any, Any]]:
        """The held images in fewer, larger batches, where they are plain tensors."""
        if len(self._batches) > 1 and all(isinstance(part, torch.Tensor) for batch in self._batches for part in batch):
            inputs, targets = (torch.cat([batch[k] for batch in self._batches]) for k in (0, 1))
            self._batches = list(zip(inputs.split(_BATCH), targets.split(_BATCH), strict=True))
        return self._batches


def _some(value: Any, which: torch.Tensor) -> Any:
    return map_tensors(value, lambda tensor: tensor[which] if tensor.ndim and len(tensor) == len(which) else tensor)


def _classes(output: Any, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes answered and asked for; a target of probabilities asks for the largest."""
    if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor) and output.ndim >= 2:
        wanted = target.argmax(1) if target.shape == output.shape else target
        found = output.argmax(1)
        if found.shape == wanted.shape and not wanted.is_floating_point():
            return found, wanted
    raise ConfigError(
        "Accuracy is measured here, and needs class scores in dimension 1 of the output and class numbers as targets: "
        "choose a method without labels for another task."
    )
