"""A single random gate: from a normal variable's margin over a threshold to a number between 0 and 1."""

from __future__ import annotations

from typing import Literal

import torch

Sharpening = Literal["probability", "logit", "none"]

#: Beyond this many deviations a probability is 0 or 1 in single precision, and its logarithm's slope is noise.
FAR = 8.0
#: Smaller deviations are taken for this one.
TINY = 1e-8


def margin(scale: torch.Tensor, shift: torch.Tensor, delta: float) -> torch.Tensor:
    """z = (shift - delta) / |scale|: a normal variable with these moments exceeds delta with probability Phi(z)."""
    z: torch.Tensor = (shift - delta) / scale.abs().clamp_min(TINY)
    return z.clamp(-FAR, FAR)


def gate_logit(z: torch.Tensor, sharpening: Sharpening, sharpness: float) -> torch.Tensor:
    """The logit of a gate being open: logit P, k logit P, or k (P - 1/2), with P = Phi(z)."""
    if sharpening == "probability":
        probability: torch.Tensor = torch.special.ndtr(z)
        return sharpness * (probability - 0.5)
    logit: torch.Tensor = torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)
    return sharpness * logit if sharpening == "logit" else logit


def soft_gate(logit: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """One binary concrete variable a channel: sigmoid((logit + log u - log(1 - u)) / temperature)."""
    noise = torch.logit(uniform, eps=1e-6)
    return torch.sigmoid((logit + noise) / temperature)
