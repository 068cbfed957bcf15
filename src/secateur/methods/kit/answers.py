"""What a network's answers are: one of several classes, yes or no, or numbers; and how well they do, sample by sample.

A method sees outputs and targets and not the training's loss. For each kind of answer there is a likelihood, with x the
output and y the target of one position:

    classes    -log softmax(x)_y             labels [N, ...] of scores [N, C, ...], or shares of the C classes
    binary     -log sigmoid(±x)              targets 0 or 1, as many as outputs
    numbers    (x - y)² / 2                  anything else that has as many targets as outputs

Labels that are no class (255, -100) and targets that are not finite are left out.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn import functional as F

Kind = Literal["classes", "binary", "numbers"]

#: Cosine from which on a training's loss counts as a kind's own: smoothed labels, weights and teachers stay above.
AGREED = 0.3


def kind_of(output: torch.Tensor, target: Any) -> Kind | None:
    """The kind of answer that a batch of outputs [N, ...] and its targets show; None where they do not tell."""
    if not isinstance(target, torch.Tensor) or not output.dim() or not len(output) or len(output) != len(target):
        return None
    channels = output.shape[1] if output.dim() > 1 else 1
    if target.numel() * channels == output.numel() and channels > 1:
        whole = not target.is_floating_point() or bool((target == target.round()).all())
        return "classes" if whole else None
    if target.numel() != output.numel():
        return None
    if channels > 1 and target.is_floating_point() and _are_shares(target.view_as(output)):
        return "classes"
    return "binary" if bool(((target == 0) | (target == 1)).all()) else "numbers"


def _are_shares(target: torch.Tensor) -> bool:
    return bool((target >= 0).all() & ((target.sum(1) - 1).abs() < 1e-3).all())


def losses(output: torch.Tensor, target: torch.Tensor, kind: Kind) -> torch.Tensor:
    """The loss of every sample [N], in nats, as a mean over its positions."""
    x = output.to(torch.promote_types(output.dtype, torch.float32))
    if kind == "classes":
        labels, known = _labels(x, target)
        each = F.cross_entropy(x, labels, reduction="none") * known
    else:
        y = target.reshape(x.shape).to(x.dtype)
        known = y.isfinite()
        y = torch.where(known, y, 0.0)
        own = F.binary_cross_entropy_with_logits(x, y, reduction="none") if kind == "binary" else (x - y).square() / 2
        each = own * known
    return each.flatten(1).mean(1) if each.dim() > 1 else each


def right(output: torch.Tensor, target: torch.Tensor, kind: Kind) -> torch.Tensor:
    """1 for every sample [N] that is answered right, or the share of its positions that are; not for numbers."""
    if kind == "classes":
        labels, known = _labels(output, target)
        wanted = labels.argmax(1) if labels.shape == output.shape else labels
        found = (output.argmax(1) == wanted) & known
    else:
        found = (output > 0) == (target.reshape(output.shape) > 0.5)
    return found.float().flatten(1).mean(1) if found.dim() > 1 else found.float()


def _labels(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels [N, ...] (or shares [N, C, ...]) that cross entropy takes, and which of them are of a class at all."""
    if target.numel() == output.numel():
        return target.view_as(output), torch.ones((), dtype=torch.bool, device=output.device)
    labels = target.reshape(output.shape[:1] + output.shape[2:]).long()
    known = (labels >= 0) & (labels < output.shape[1])
    return torch.where(known, labels, 0), known


def sampled_loss(output: torch.Tensor, kind: Kind, chance: torch.Tensor) -> torch.Tensor:
    """The summed loss of targets drawn from the network's own answers, one for each of `chance` (uniform on [0, 1)).

    chance: as many as `sample_count` says, in the order of samples; the gradient's second moment is the Fisher matrix.
    """
    if kind == "classes":
        scores = output.float().movedim(1, -1).flatten(0, -2)
        with torch.no_grad():
            below = scores.cpu().double().softmax(-1).cumsum(-1)
            ends = chance.unsqueeze(-1) * below[:, -1:]
            targets = torch.searchsorted(below, ends, right=True).squeeze(-1).clamp_max(scores.shape[-1] - 1)
        return F.cross_entropy(scores, targets.to(scores.device), reduction="sum")
    x = output.float().flatten()
    if kind == "binary":
        hit = (chance < x.detach().cpu().double().sigmoid()).float().to(x.device)
        return F.binary_cross_entropy_with_logits(x, hit, reduction="sum")
    noise = torch.special.ndtri(chance.clamp(1e-12, 1 - 1e-12)).float().to(x.device)  # y = x + a standard normal number
    residual: torch.Tensor = x - (x.detach() + noise)
    return residual.square().sum() / 2


def sample_count(output: torch.Tensor, kind: Kind) -> int:
    """How many targets are drawn for a batch."""
    return output.numel() // output.shape[1] if kind == "classes" else output.numel()


def agreement(output: torch.Tensor, target: torch.Tensor, kind: Kind) -> float:
    """The cosine between the gradient that `output` got in training and that of its likelihood; NaN if it got none.

    Near 1: the training's loss is this one; about 0: it is another, as with embeddings held against each other.
    """
    if output.grad is None:
        return float("nan")
    with torch.enable_grad():
        own = output.detach().clone().requires_grad_()
        (wanted,) = torch.autograd.grad(losses(own, target, kind).sum(), own)
    return float(F.cosine_similarity(output.grad.double().flatten(), wanted.double().flatten(), dim=0))
