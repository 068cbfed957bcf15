"""What can be set of NAP."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from secateur.methods.contract import Settings


class NAPSettings(Settings):
    """Defaults as in the specification; the paper's own are mostly unknown."""

    mode: Literal["channel", "weight"] = Field("channel", description="cut channels, or set single weights to zero")
    fisher: Literal["sampled", "empirical"] = Field(
        "sampled",
        description="targets drawn from the network's own output, or the labels, which fade as they fit",
    )
    answers: Literal["auto", "classes", "binary", "numbers"] = Field(
        "auto", description="what the output is: class scores, scores of yes or no, quantities; auto: by the targets"
    )
    side: Literal["producer", "consumer", "both"] = Field(
        "producer", description="layers whose loss counts: those that make a channel, those that read it"
    )
    form: Literal["obs", "obd", "sum"] = Field(
        "obs", description="the rest of the layer moves to its best place; nothing moves; each weight as if alone"
    )
    rounds: int = Field(10, ge=1, le=1000, description="rounds of pruning and fine-tuning")
    start: float = Field(0.0, ge=0, lt=1, description="share of training before the first round begins")
    end: float = Field(0.4, gt=0, le=1, description="share of training by which the last round has pruned")
    round_ratio: float = Field(
        0.5, gt=0, le=1, description="most of what is left of a group that goes in one round; the last makes up for it"
    )
    batches: int = Field(100, ge=1, description="most batches of statistics for one round")
    stat_every: int = Field(10, ge=1, description="steps between two of them; fewer where a round is short")
    decay: float = Field(0.95, gt=0, le=1, description="of the running averages, per batch")
    damping: float = Field(1e-3, ge=0, description="ε")
    damping_kind: Literal["relative", "split"] = Field(
        "relative",
        description="ε times the mean eigenvalue of each factor, or √ε split between the two (Tikhonov)",
    )
    normalize: Literal["none", "layer_sum"] = Field(
        "none", description="divide scores by their layer's sum, which makes the method a uniform one"
    )
    max_prune_ratio: float = Field(0.95, gt=0, le=1, description="most of a group's channels that may go")
    weight_update: bool = Field(False, description="move the surviving weights as the formula says")
    compensate: bool = Field(True, description="the mean of a removed channel moves into what reads it")
    positions: int | None = Field(None, ge=1, description="output positions of an image looked at; null: all")
    largest: int = Field(8192, ge=1, description="columns beyond which A is kept as blocks on its diagonal")

    @model_validator(mode="after")
    def _in_order(self) -> NAPSettings:
        if self.start >= self.end:
            raise ValueError("the rounds must end after they start: set start below end")
        return self
