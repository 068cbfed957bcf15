"""What can be set of DCP-CAC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from secateur.errors import ConfigError
from secateur.methods.contract import Settings


class DCPCACSettings(Settings):
    """All defaults are the design's; the paper's values are unknown."""

    metric: Literal["auto", "accuracy", "loss", "gradient"] = Field(
        "auto", description="what a sample's answer is worth: right or wrong, its loss, or the first order of its loss"
    )
    rate: float | None = Field(
        None, ge=0, lt=1, description="probability that a channel is off for a sample; null: 0.1, gradient: 0.02"
    )
    trunk: float | None = Field(
        None, ge=0, lt=1, description="the same for sums of several layers, which many read; null: 0.05, gradient: 0.01"
    )
    answers: Literal["auto", "classes", "binary", "numbers"] = Field(
        "auto", description="what the output is: class scores, scores of yes or no, quantities; auto: by the targets"
    )
    memory: int | None = Field(None, ge=1, description="steps that are remembered; null: five epochs, or what it takes")
    evidence: int | None = Field(
        None, ge=1, description="samples an estimate takes; null: 20000 with the channel off, gradient: 2000 with it on"
    )
    start: float = Field(0.05, ge=0, lt=1, description="share of the steps after which pruning begins")
    end: float = Field(0.4, gt=0, le=1, description="share of the steps after which the budget should be reached")
    every: int | None = Field(None, ge=1, description="steps between two events; null: an epoch")
    cap: float = Field(0.2, gt=0, le=1, description="largest share of a group that goes at once; at least one channel")
    double: Literal["no", "channels", "flops"] = Field(
        "no", description="DCPH: begin with doubled widths, prune half of the channels, or to half the widths' flops"
    )

    @model_validator(mode="after")
    def _in_order(self) -> DCPCACSettings:
        if self.start >= self.end:
            raise ValueError(f"start is {self.start} and end is {self.end}: let pruning end after it begins")
        return self

    def model_arguments(self, reference: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """DCPH begins with a network twice as wide."""
        if self.double == "no":
            return dict(given)
        if not reference.startswith("zoo:"):
            raise ConfigError(
                f"method.double cannot double the widths of {reference}: take a zoo: network, or build one with "
                'doubled widths and prune half of it with secateur.methods.create("dcpcac", ...).'
            )
        return {**given, "width": 2 * given.get("width", 1.0)}
