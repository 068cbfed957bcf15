"""What is added to the loss: easy images are pressed to be sparse, and like images to get like saliencies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional as F


def easiness(losses: torch.Tensor, limit: torch.Tensor | float, power: float) -> torch.Tensor:
    """w_i = 1[CE_i < C] max((C - CE_i) / C, 1e-10)^q [batch]: 0 for hard images, up to 1 for the easiest.

    losses: CE_i [batch]. limit: C. power: q.
    """
    share = ((limit - losses) / limit).clamp(min=1e-10) ** power
    return torch.where(losses < limit, share, torch.zeros_like(share))


def sparsity(saliencies: Iterable[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """L_sp = sum_l mean_i (w_i mean_c pi_l[i, c]).

    saliencies: pi_l [batch, outputs]. weights: w [batch].
    """
    return torch.stack([(weights * pi.mean(1)).mean() for pi in saliencies]).sum()


def similarity(saliencies: Iterable[torch.Tensor], features: Iterable[torch.Tensor]) -> torch.Tensor:
    """L_sim = sum_l |cos(pi_l) cos(pi_l)^T - cos(f_l) cos(f_l)^T|_F^2 / B^2, rows normalised.

    saliencies: pi_l [batch, outputs]. features: f_l [batch, outputs].
    """
    return torch.stack(
        [(_cosines(pi) - _cosines(f)).square().mean() for pi, f in zip(saliencies, features, strict=True)]
    ).sum()


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(rows, dim=1)
    return unit @ unit.T
