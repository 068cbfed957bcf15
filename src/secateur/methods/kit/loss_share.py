"""Which share of a step's loss went backward, for methods that need gradients in the loss's own scale.

Losses are means over a batch, parts of one that is shared out over micro-batches and processes, or scaled for half
precision; a zero that is added to the loss gets exactly that factor as its gradient.
"""

from __future__ import annotations

import torch

from secateur.errors import ConfigError


class LossShare:
    """The zero of one micro-batch, and what became of it."""

    def __init__(self) -> None:
        self._zero: torch.Tensor | None = None

    def zero(self, device: torch.device) -> torch.Tensor:
        """What a method's loss() gives: zero, to be added to the task's loss."""
        self._zero = torch.zeros((), device=device, requires_grad=True)
        return self._zero * 1.0

    def taken(self, method: str) -> torch.Tensor:
        """The factor of the loss that went backward; ConfigError where the zero was not in it."""
        if self._zero is None or self._zero.grad is None:
            raise ConfigError(
                f"{method} finds no gradient of its loss(): add loss() to the task's loss before backward()."
            )
        found, self._zero = self._zero.grad, None
        return found
