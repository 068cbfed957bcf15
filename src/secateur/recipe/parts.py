"""What a run begins with: its network, its data, its task, its method and repairs, and what no plan may do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from secateur._hints import nearest
from secateur._settings import Section, shown
from secateur.allocate.presets import AUTO, PRESETS
from secateur.recipe.fields import Size, Words, several
from secateur.recipe.steps import Chosen

#: Names of data sets; `secateur.data.DATASETS` has a row for each.
DATA = ("digits", "cifar10", "cifar100", "npz", "folder", "torchvision", "hf", "webdataset")


def _data_set(name: str) -> str:
    """A name of `DATA`, or an import path."""
    if name in DATA or ":" in name:
        return name
    close = nearest(name, DATA)
    hint = f"did you mean {close[0]!r}? Choose" if close else "choose"
    raise ValueError(f"{shown(name)} is no data set: {hint} one of {', '.join(DATA)}, or file.py:build")


def _aligned(value: Any) -> Any:
    """A positive whole number, or the name of a preset."""
    if isinstance(value, str) and value in (*PRESETS, AUTO):
        return value
    if type(value) is not int or value < 1:
        raise ValueError(
            f"{shown(value)} is no alignment: give a whole number from 1, or one of {', '.join((*PRESETS, AUTO))}"
        )
    return value


class ModelConfig(Section):
    """Which network; a reference alone may stand for the whole section."""

    reference: str = Field(
        min_length=1,
        description="zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:factory, package.module:factory, or the "
        "folder of an earlier run or saved network, or hf:org/name on the Hub, to prune it again.",
    )
    arguments: dict[str, Any] = Field(
        default={}, description="Arguments of its factory; a zoo network takes classes and channels from the data."
    )
    weights: str | None = Field(
        default=None, description="A checkpoint with the weights to start from (.pth, .pt, .ckpt, .safetensors)."
    )
    ema: bool = Field(default=False, description="Take the moving average of the weights that the checkpoint holds.")
    trained: bool = Field(
        default=False, description="Whether the factory itself returns trained weights, so that train may be left out."
    )
    trust: bool = Field(
        default=False, description="Whether the Python code may be imported that a folder given as reference names."
    )
    input_size: Size | None = Field(
        default=None, description="[channels, height, width] of an image; null: the data's."
    )

    @property
    def begins_trained(self) -> bool:
        """Whether the network has trained weights to begin with; that of a folder has."""
        return (
            self.trained
            or self.weights is not None
            or self.reference.startswith("hf:")
            or Path(self.reference).is_dir()
        )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"reference": value} if isinstance(value, str) else value


def _augmentations(value: Any) -> Any:
    """A list of names, or of sections with a name and arguments; one alone is a list of one."""
    listed = several(value)
    if not isinstance(listed, tuple) or not all(isinstance(each, str | Mapping | Chosen) for each in listed):
        raise ValueError(f"{shown(value)} is no list of names: write such as [crop, flip, {{name: RandAugment}}]")
    if any(isinstance(each, Mapping) and not isinstance(each.get("name"), str) for each in listed):
        raise ValueError(f"{shown(value)} has one without a name: write such as {{name: RandAugment, magnitude: 7}}")
    return tuple(Chosen.model_validate(dict(each)) if isinstance(each, Mapping) else each for each in listed)


Augmentations = Annotated[tuple[str | Chosen, ...], BeforeValidator(_augmentations)]


class DataConfig(Section):
    """Which images; a name alone may stand for the whole section."""

    name: Annotated[str, AfterValidator(_data_set)] = Field(
        description="The data set, or its format at `path`: digits, cifar10, cifar100, npz, folder, "
        "torchvision, hf, webdataset; or an import path to data of your own: mypkg.data:build, file.py:build."
    )
    path: str | None = Field(default=None, description="File or folder with the data; digits needs none.")
    train_images: int | None = Field(
        default=None, ge=1, description="Train on so many images only, chosen by the seed."
    )
    validation: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the training images held out to watch and to select by."
    )
    batch_size: int = Field(default=128, ge=1, le=1_000_000, description="Images a step, over all processes together.")
    augment: Augmentations | None = Field(
        default=None,
        description="Names of augmentations, classes of torchvision.transforms.v2 with their arguments: {name: "
        "RandAugment, magnitude: 7}, or import paths; null: the data set's own, []: none.",
    )
    workers: int = Field(default=0, ge=0, le=256, description="Processes that read images; data in memory need none.")
    on_broken: Literal["error", "skip"] = Field(
        default="error",
        description="What becomes of an image that cannot be read: an error, or it is left out; all are then decoded "
        "before training, and those left out counted.",
    )
    calibration_images: int = Field(
        default=2048, ge=1, description="Training images shown to a method that needs calibration."
    )
    options: dict[str, Any] = Field(default={}, description="What only this kind of data set knows; see docs/data.md.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class MethodConfig(Section):
    """Which method, and its settings (`secateur methods NAME` lists them); a name alone may stand for the section."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1, description="A name of `secateur methods`.")

    @property
    def settings(self) -> dict[str, Any]:
        """What is given besides the name; the method's own Config checks it."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class TaskConfig(MethodConfig):
    """What the network is for, and its settings; a name alone may stand for the section."""

    name: str = Field(
        default="classification",
        min_length=1,
        description="classification, multilabel, binary, regression, segmentation, detection, super_resolution, "
        "metric_learning, or a task of your own: mypkg.tasks:Mine, file.py:Mine.",
    )


class RepairConfig(MethodConfig):
    """Which repair, and its settings; a name alone may stand for the section."""

    name: str = Field(min_length=1, description="A name of `secateur repairs`.")


Repairs = Annotated[tuple[RepairConfig, ...], BeforeValidator(several)]


class ConstraintsConfig(Section):
    """What no plan may do."""

    ignore: Words = Field(default=(), description="Patterns of layers whose outputs stay whole, such as layer4.*.")
    min_channels: int = Field(default=1, ge=1, description="Channels that stay in every group.")
    max_ratio: float = Field(default=1.0, ge=0, le=1, description="Largest share of a group that may go.")
    align: Annotated[int | str, BeforeValidator(_aligned)] = Field(
        default=1,
        description="Kept widths are multiples of this: a number, the name of a preset, or auto, that of this machine; "
        "1 with a latency budget: what its runtime computes in.",
    )
