"""Conditional accuracy change: what a channel is worth, from samples that had it and samples that had not.

CAC_c = E[q] - E[q | z_c = 0] = (1 - p) (E[q | z_c = 1] - E[q | z_c = 0]), with z [samples, channels] the gates, each
shut (0) with probability p, and q [samples] what the answers under these gates are worth.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from secateur._distributed import global_sum, world


def direct(z: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Sums for every channel, [channels, 4]: samples with it on, their worth, samples with it off, their worth."""
    off = 1 - z
    return torch.stack([z.sum(0), q @ z, off.sum(0), q @ off], 1)


def first_order(z: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """The same sums with -dl/dz (`slope` is dl/dz) for the worth of samples with a channel on.

    One Taylor step from there estimates l(off) - l(on): with its sign, as channels may do harm.
    """
    zeros = torch.zeros_like(z[0] if len(z) else z.sum(0))
    return torch.stack([z.sum(0), -(z * slope).sum(0), zeros, zeros], 1)


def conditional_change(seen: torch.Tensor, rate: torch.Tensor, metric: str) -> torch.Tensor:
    """CAC [channels] from such sums; 0 where a side has no sample. rate: p of every channel."""
    mean = seen[:, [1, 3]] / seen[:, [0, 2]].clamp_min(1e-30)
    if metric == "gradient":
        return torch.where(seen[:, 0] > 0, mean[:, 0], 0.0)
    both = (seen[:, [0, 2]] > 0).all(1)
    return torch.where(both, (1 - rate) * (mean[:, 0] - mean[:, 1]), 0.0)


def answered(logits: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether these are class scores [N, C, ...] and what was asked for: classes [N, ...], or class probabilities."""
    if logits.dim() < 2:
        return False
    shares = target.is_floating_point() and target.shape == logits.shape
    return shares or (not target.is_floating_point() and target.shape == logits.shape[:1] + logits.shape[2:])


def right(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 for every sample that is answered right (of several answers a sample: the share)."""
    wanted = target.argmax(1) if target.shape == logits.shape else target
    found = (logits.argmax(1) == wanted).float()
    return found.flatten(1).mean(1) if found.dim() > 1 else found


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of every sample, in nats; target: classes, or class probabilities."""
    losses = F.cross_entropy(logits.float(), target, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def scale(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What the loss of one sample was multiplied by before `backward`: 1 / batch, a loss scaler, an accumulation.

    Found by least squares from the gradient that `logits` got; NaN where there is nothing to find it from.
    """
    given = logits.grad
    assert given is not None
    with torch.enable_grad():
        own = logits.detach().float().requires_grad_()
        (wanted,) = torch.autograd.grad(cross_entropy(own, target).sum(), own)
    factor = (given.float() * wanted).sum() / wanted.square().sum().clamp_min(1e-30)
    return torch.where(factor > 0, factor, torch.nan)


class Evidence(nn.Module):
    """The sums of all channels over the steps that are remembered, in buffers.

    seen: [channels, 4], see `direct`. usual: the mean worth of a sample lately; it is subtracted, which changes no
    expectation, as the gates of a step are independent of the steps before, and takes the drift of training out.
    """

    seen: torch.Tensor
    usual: torch.Tensor

    def __init__(self, channels: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(channels, 4, device=device))
        self.register_buffer("usual", torch.zeros((), device=device))
        self.images = 0  # of this step, in this process
        self._new: torch.Tensor | None = None

    def add_worth(self, z: torch.Tensor, q: torch.Tensor) -> None:
        """Note a micro-batch with its gates and the worth of its answers."""
        usual = torch.where(self.seen.any(), self.usual, q.mean())
        self._add(direct(z, q - usual), q.sum())

    def add_slope(self, z: torch.Tensor, slope: torch.Tensor) -> None:
        """Note a micro-batch with its gates and the slope of its losses along them."""
        self._add(first_order(z, slope), slope.new_zeros(()))

    def _add(self, more: torch.Tensor, worth: torch.Tensor) -> None:
        """Add to this step's sums, unless the numbers overflowed, as they may in mixed precision."""
        both = torch.cat([more.flatten(), worth[None].to(more), worth.new_zeros(1)])
        both = torch.where(both.isfinite().all(), both, torch.zeros_like(both))
        self._new = both if self._new is None else self._new + both

    def total(self, live: torch.Tensor) -> int:
        """The images of this step in all processes; its sums, of the channels `live`, are then those of all."""
        if self._new is None:
            self._new = self.seen.new_zeros(4 * len(live) + 2)
        self._new[-1] = self.images
        self._new = global_sum(self._new)
        return max(self.images if world() == 1 else int(self._new[-1]), 1)

    def learn(self, live: torch.Tensor, images: int, memory: float, *, first: bool) -> None:
        """seen <- r seen + new, with r = 1 - 1 / memory, so that on and off are forgotten alike."""
        assert self._new is not None
        self.seen.mul_(1.0 - 1.0 / memory).index_add_(0, live, self._new[:-2].view(-1, 4))
        self.usual.lerp_(self._new[-2] / images, 1.0 if first else 0.1)
        self._new, self.images = None, 0
