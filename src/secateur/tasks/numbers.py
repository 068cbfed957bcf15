"""Numbers and images as answers: regression and super-resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from secateur.tasks._library import torchmetrics
from secateur.tasks.base import Task, TaskSettings, fitted

Distance = Literal["mse", "l1", "huber"]
_DISTANCES: Mapping[str, Callable[..., torch.Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


class RegressionSettings(TaskSettings):
    """How far an answer is from its target."""

    loss: Distance = Field(default="mse", description="What is made small: squared or absolute errors, or Huber's.")


class Regression(Task):
    """Numbers of any shape, and as many targets; the root of the mean squared error, and the mean absolute one."""

    name, headline, mixes = "regression", "RMSE", True
    Config = RegressionSettings
    settings: RegressionSettings

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """The distance that the settings name, a mean over all numbers."""
        return _DISTANCES[self.settings.loss](answer.float(), fitted(answer, targets, self.name))

    def check(self, answer: Any, targets: Any) -> None:
        """As many targets as answers."""
        super().check(answer, targets)
        fitted(answer, targets, self.name)

    def metrics(self) -> Mapping[str, Any]:
        """RMSE and MAE, over all numbers."""
        library = torchmetrics("regression")
        return {"RMSE": library.MeanSquaredError(squared=False), "MAE": library.MeanAbsoluteError()}

    def measured(self, answer: Any, targets: Any) -> tuple[Any, ...]:
        """Both in one row."""
        return answer.float().flatten(), fitted(answer, targets, self.name).flatten()

    def distilled(self, answer: Any, taught: Any, temperature: float) -> torch.Tensor:
        """The squared distance from the teacher's numbers; there is nothing to soften."""
        return F.mse_loss(answer.float(), taught.float())


class SuperResolutionSettings(TaskSettings):
    """Images as answers."""

    loss: Distance = Field(default="l1", description="What is made small: squared or absolute errors, or Huber's.")
    peak: float = Field(default=1.0, gt=0, description="The largest value of a pixel; the least is 0.")


class SuperResolution(Task):
    """Images [N, C, H, W] and the ones they should be; the peak signal-to-noise ratio, a mean over images."""

    marks = "image"
    name, headline, higher_is_better, unit, mixes = "super_resolution", "PSNR", True, "dB", True
    Config = SuperResolutionSettings
    settings: SuperResolutionSettings

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """The distance that the settings name, a mean over all pixels."""
        return _DISTANCES[self.settings.loss](answer.float(), fitted(answer, targets, self.name))

    def check(self, answer: Any, targets: Any) -> None:
        """Images of the size of their targets."""
        super().check(answer, targets)
        fitted(answer, targets, self.name)

    def metrics(self) -> Mapping[str, Any]:
        """10 log10(peak² / MSE) of every image, averaged."""
        ratio = torchmetrics("image").PeakSignalNoiseRatio
        return {"PSNR": ratio(data_range=self.settings.peak, dim=(1, 2, 3), reduction="elementwise_mean")}

    def measured(self, answer: Any, targets: Any) -> tuple[Any, ...]:
        """Pixels within their range."""
        return answer.float().clamp(0, self.settings.peak), fitted(answer, targets, self.name)

    def distilled(self, answer: Any, taught: Any, temperature: float) -> torch.Tensor:
        """The same distance from the teacher's images; there is nothing to soften."""
        return _DISTANCES[self.settings.loss](answer.float(), taught.float())
