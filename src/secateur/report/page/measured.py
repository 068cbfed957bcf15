"""metrics.jsonl, latency.json and verification.json as the report reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from secateur.report.page.fields import Count, Document, Milliseconds, Rows, Table
from secateur.report.page.results import Proof


class Epoch(Document):
    """One line of metrics.jsonl."""

    stage: str
    epoch: Count
    seconds: float | None = None
    train_loss: float | None = None
    train_quality: float | None = None
    validation_loss: float | None = None
    validation_quality: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    method: Table[float | None] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _by_task(cls, value: Any) -> Any:
        """The headline goes by its own name in the file."""
        if not isinstance(value, Mapping):
            return value
        name = value.get("headline", "accuracy")
        return {**value, **{f"{part}_quality": value.get(f"{part}_{name}") for part in ("train", "validation")}}


class Times(Document):
    """Spread of one network's latency."""

    median_ms: Milliseconds | None = None
    p10_ms: Milliseconds | None = None
    p90_ms: Milliseconds | None = None


class SkippedRow(Document):
    """A runtime that could not run the networks."""

    runtime: str
    reason: str | None = None


class Interval(Document):
    """Dense time over pruned time, paired."""

    median: Annotated[float, Field(gt=0)]
    low: Annotated[float, Field(gt=0)] | None = None
    high: Annotated[float, Field(gt=0)] | None = None


class RuntimeRow(Document):
    """Latency on one runtime."""

    runtime: str
    dense: Times | None = None
    pruned: Times | None = None
    ratio: Interval | None = None
    noisy: bool = False
    said: str | None = None

    @property
    def apart(self) -> bool:
        """Whether the times differ by more than chance: the interval of their paired ratio leaves 1 out."""
        if self.ratio is None:
            return False
        low, high = self.ratio.low or self.ratio.median, self.ratio.high or self.ratio.median
        return high < 1 or low > 1


class LayerTimes(Document):
    """Time of one layer, dense and pruned."""

    name: str
    kind: str | None = None
    dense_ms: Milliseconds | None = None
    pruned_ms: Milliseconds | None = None


class Latency(Document):
    """latency.json."""

    wanted: ClassVar[str | None] = "secateur.latency"
    batch_size: Any = None
    threads: Any = None
    repeats: Any = None
    date: Any = None
    device: Any = None
    versions: Any = None
    runtimes: Rows[RuntimeRow] = Field(default_factory=list)
    skipped: Rows[SkippedRow] = Field(default_factory=list)
    layers: Rows[LayerTimes] = Field(default_factory=list)


class Exported(Document):
    """Agreement of an exported file with the network."""

    max_relative_error: float | None = None
    tolerance: float | None = None
    dynamic_batch: bool | None = None
    reason: str | None = None  # why not dynamic


class Checks(Document):
    """verification.json, apart from the proof of the cut, which may stand in it directly or under "verification"."""

    verification: Proof | None = None
    onnx: Exported | None = None
    pt2: Exported | None = None
    openvino: Exported | None = None
    executorch: Exported | None = None
