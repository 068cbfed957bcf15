"""From a stage's settings to PyTorch's optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError
from secateur.methods.contract import Method
from secateur.methods.hands import without_decay
from secateur.recipe import Training


def make_optimiser(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters that are trained.

    Weight decay pulls on every parameter, those of norms and the biases too, as in the papers' code: methods that read
    the scales of batch norm count on it. With `decay_norm: false` parameters of one dimension are left out, and always
    those that a method calls `undecayed`.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("The model has no parameters to train: set requires_grad on those that are to be trained.")
    if training.decay_norm:
        groups: list[dict[str, Any]] = [{"params": parameters}]
    else:
        kinds = ([p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1])
        decays = (training.weight_decay, 0.0)
        groups = [{"params": kind, "weight_decay": d} for kind, d in zip(kinds, decays, strict=True) if kind]
    undecayed = [p for part in module.modules() if isinstance(part, Method) for p in part.undecayed()]
    groups = without_decay(undecayed, groups)
    if training.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=training.lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = rate
