"""How a stage trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from secateur._settings import Section, shown
from secateur.recipe import steps
from secateur.recipe.fields import Numbers

Optimiser = Annotated[
    Literal["sgd", "adamw"] | steps.Chosen,
    BeforeValidator(steps.reader("optimiser", "{name: RMSprop, alpha: 0.95}")),
]
Schedule = Annotated[
    Literal["cosine", "step", "constant", "onecycle"] | steps.Chosen,
    BeforeValidator(steps.reader("schedule", "{name: CosineAnnealingWarmRestarts, T_0: 10}")),
]
_TRIED = 1000  # epochs, or 100 steps of one epoch, in which a schedule is tried out


class Distil(Section):
    """Learning from the trained dense network."""

    weight: float = Field(
        default=0.0, ge=0, le=1, description="Share of the loss that follows the teacher; 0: no teacher."
    )
    temperature: float = Field(default=4.0, gt=0, description="Softens the teacher's and the student's outputs.")

    @model_validator(mode="after")
    def _consistent(self) -> Distil:
        """No setting without effect."""
        if not self.weight and self.temperature != type(self).model_fields["temperature"].default:
            raise ValueError("temperature does nothing without a teacher: set weight above 0, or leave it out")
        return self


class Training(Section):
    """One stage of training."""

    epochs: int = Field(default=10, ge=1, le=1_000_000, description="Passes over the training images.")
    optimiser: Optimiser = Field(
        default="sgd",
        description="What takes the steps; or a class of torch.optim or timm.optim with its arguments: {name: NAdam, "
        "betas: [0.9, 0.99]}.",
    )
    lr: float = Field(default=0.1, gt=0, description="Highest learning rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of SGD.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum, of SGD.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Pull of the weights towards zero.")
    decay_norm: bool = Field(default=True, description="Whether it acts on norms and biases too; BWCP needs it to.")
    schedule: Schedule = Field(
        default="cosine",
        description="How the learning rate goes on after the warm-up; or a class of torch.optim.lr_scheduler or "
        "timm.scheduler with its arguments, and per: step or epoch: {name: StepLR, step_size: 30, per: epoch}.",
    )
    milestones: Numbers = Field(
        default=(0.5, 0.75), description="Of schedule step: fractions of the stage where it falls."
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="Of schedule step: what it is multiplied by there.")
    warmup: float = Field(default=0.0, ge=0, description="Epochs, also fractions, in which the rate rises from zero.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    mixup: float = Field(default=0.0, ge=0, description="Alpha of mixup; 0: off.")
    cutmix: float = Field(
        default=0.0,
        ge=0,
        description="Alpha of CutMix, by torchvision; 0: off; beside mixup a batch has one of them.",
    )
    ema: float = Field(default=0.0, ge=0, lt=1, description="Decay of a moving average of the weights; 0: off.")
    clip: float | None = Field(default=None, gt=0, description="Largest norm of the gradient; null: any.")
    distill: Distil = Field(default=Distil(), description="Of finetune: the dense network as teacher.")
    select: Literal["last", "best"] = Field(
        default="last", description="Which weights the stage passes on: the last, or the best on the validation images."
    )

    @property
    def blends(self) -> bool:
        """Whether samples of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        """No setting without effect, nothing that cannot be."""
        if self.warmup >= self.epochs:
            raise ValueError(
                f"warmup of {self.warmup:g} epochs leaves none of {self.epochs}: make it shorter than the stage"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or not all(0 < m < 1 for m in self.milestones):
            raise ValueError(
                f"milestones {shown(self.milestones)} are not rising fractions of 1: write such as [0.5, 0.75]"
            )
        self._without_effect("schedule", "step", ("milestones", "gamma"))
        self._without_effect("optimiser", "sgd", ("momentum", "nesterov"))
        self._try_out()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0: set momentum: 0.9, or nesterov: false")
        return self

    def _try_out(self) -> None:
        """Classes that are named are there, and take the arguments that are given."""
        if isinstance(self.optimiser, steps.Chosen):
            from torch import nn, zeros

            weights = [nn.Parameter(zeros(2, 2, 3, 3)), nn.Parameter(zeros(2))]
            steps.optimiser(self.optimiser, weights, self.lr, self.weight_decay)
            usual = type(self).model_fields["weight_decay"].default
            if self.weight_decay != usual and not steps.takes_decay(self.optimiser):
                raise ValueError(f"weight_decay does nothing with optimiser {self.optimiser.name}: leave it out")
        if isinstance(self.schedule, steps.Chosen):
            by_step = self.schedule.arguments.get("per") == "step"
            steps.rates(self.schedule, self.lr, 1 if by_step else min(self.epochs, _TRIED), 100)

    def _without_effect(self, switch: str, needed: str, keys: Sequence[str]) -> None:
        chosen = getattr(self, switch)
        chosen = chosen.name if isinstance(chosen, steps.Chosen) else chosen
        for key in keys:
            if chosen != needed and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} does nothing with {switch} {chosen}: leave it out, or set {switch}: {needed}")
