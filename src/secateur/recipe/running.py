"""How a run goes about its work: the search's trials, the exports, the timing, the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from secateur._hints import nearest
from secateur._settings import Section, shown
from secateur.recipe.fields import listed


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    """A list of names that has any, and none of them twice."""
    if not names or len(set(names)) < len(names):
        raise ValueError("give one name at least, and each once")
    return names


Quantisers = Annotated[tuple[Literal["onnxruntime", "openvino"], ...], BeforeValidator(listed)]
#: What a latency may be measured on.
Runtime = Literal["pytorch", "compiled", "onnxruntime", "openvino", "executorch"]
Runtimes = Annotated[tuple[Runtime, ...], BeforeValidator(listed), AfterValidator(_once)]

#: Trackers that Accelerate knows, by name, each with the package it needs.
TRACKERS: Mapping[str, str] = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "aim": "aim",
    "comet_ml": "comet_ml",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
    "trackio": "trackio",
}


def _tracker_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of `TRACKERS`, or import paths."""
    for name in names:
        if name not in TRACKERS and ":" not in name:
            close = nearest(name, TRACKERS)
            hint = f"did you mean {close[0]!r}? Choose" if close else "choose"
            raise ValueError(f"{shown(name)} is no tracker: {hint} among {', '.join(TRACKERS)}, or file.py:Mine")
    if len(set(names)) < len(names):
        raise ValueError("name each tracker once")
    return names


Trackers = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(_tracker_names)]


class SearchConfig(Section):
    """How methods that search train and measure a network they try."""

    images: int | None = Field(
        default=2048,
        ge=1,
        description="Images in an epoch of a trial's training, and held-out images it is measured on, at most; null: "
        "all.",
    )
    epochs: int | None = Field(
        default=None, ge=1, description="Of a trial's training, where it is trained; null: as the method has it."
    )
    lr: float = Field(default=0.05, gt=0, description="Learning rate of a trial's training, constant.")
    batch: int = Field(default=64, ge=2, le=1_000_000, description="Images a step of a trial's training.")
    workers: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Networks tried at a time, each by a process on a Ray cluster; 1: one after the other, no Ray.",
    )
    address: str = Field(
        default="local", description="Of the Ray cluster: local (one on this machine, for this run), auto or HOST:PORT."
    )


class ExportConfig(Section):
    """Which files others can run."""

    onnx: bool = Field(default=True, description="Write model.onnx.")
    pt2: bool = Field(default=True, description="Write model.pt2 (torch.export): runs without the model's code.")
    openvino: bool = Field(default=False, description="Write model.xml and model.bin, for OpenVINO.")
    executorch: bool = Field(default=False, description="Write model.pte, for ExecuTorch with XNNPACK.")
    int8: Quantisers = Field(
        default=(),
        description="Write the network in whole numbers of 8 bits too, calibrated with data.calibration_images, by the "
        "quantisers of onnxruntime (model.int8.onnx) and openvino (model.int8.xml and .bin), and test its accuracy.",
    )


class LatencyConfig(Section):
    """How the speed of dense and pruned network is compared."""

    batch_size: int = Field(default=1, ge=1, le=1_000_000, description="Images at a time.")
    repeats: int = Field(default=30, ge=3, le=1_000_000, description="Measurements of each network, in turn.")
    threads: int = Field(default=1, ge=1, le=1024, description="Threads of the CPU.")
    runtimes: Runtimes | None = Field(
        default=None,
        description="On what they are timed; null: pytorch, and onnxruntime if export.onnx.",
    )

    def names(self, *, onnx: bool) -> tuple[str, ...]:
        """The runtimes to time on, in a run that writes ONNX or does not."""
        return self.runtimes or (("pytorch", "onnxruntime") if onnx else ("pytorch",))


class EngineConfig(Section):
    """How the machine is used."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Numbers in which layers compute; auto: bf16 where the processor computes in it (AVX512-BF16, AMX, "
        "GPUs), else fp32. Weights, statistics and the proof stay in fp32.",
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        default="auto",
        description="How images lie in memory; auto: channels_last on a CPU and with fewer bits, if the network can.",
    )
    compile: bool = Field(
        default=False, description="torch.compile the network in stages in which no method is at work."
    )
    accumulate: int = Field(default=1, ge=1, description="Batches are computed in so many parts, to save memory.")
    checkpoint_minutes: float = Field(
        default=10.0, gt=0, description="A checkpoint is written this often, and every epoch."
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, description="How many stay; a damaged one falls back to the one before."
    )
    trackers: Trackers = Field(
        default=(),
        description="Where metrics go besides: tensorboard (into the run's folder), wandb, mlflow, aim, comet_ml, "
        "clearml, dvclive, swanlab, trackio, or a GeneralTracker of Accelerate's of your own: file.py:Mine.",
    )
    sync_norm: bool = Field(default=True, description="Batch statistics over all processes together.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: the GPU if there is one.")

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, value: Any) -> Any:
        """`tensorboard: true`, as recipes of earlier releases have it."""
        if not isinstance(value, Mapping) or not isinstance(value.get("tensorboard"), bool):
            return value
        given = {key: inner for key, inner in value.items() if key != "tensorboard"}
        return {"trackers": ("tensorboard",), **given} if value["tensorboard"] else given
