"""Where a stage of training stands: all that a checkpoint holds and brings back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.methods.contract import Method
from secateur.recipe import Training
from secateur.training.averages import Average
from secateur.training.machine import Machine
from secateur.training.optimisers import make_optimiser
from secateur.training.tally import Tally


@dataclass
class Position:
    """Where a stage stands: epochs done, batches of the next one, optimiser steps in all, seconds."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Best:
    """The best epoch so far; weights are kept only if they may be selected."""

    epoch: int
    headline: float
    loss: float
    checkpoint: str
    weights: dict[str, torch.Tensor]
    method: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "headline": self.headline, "loss": self.loss, "checkpoint": self.checkpoint}


class Standing:
    """What changes while one stage lasts and decides how it goes on."""

    def __init__(
        self, engine: Machine, name: str, module: nn.Module, training: Training, method: Method | None
    ) -> None:
        self.engine, self.name, self.module, self.training, self.method = engine, name, module, training, method
        self.device = engine.device
        self.steps = engine.steps_per_epoch
        self.optimiser = make_optimiser(module, training)
        self.average = Average(module, training.ema) if training.ema else None
        if method is not None and self.average is not None:
            method.followers.append(self.average.follow)
        self.position = Position()
        self.best: Best | None = None
        self.tally = Tally(self.device)
