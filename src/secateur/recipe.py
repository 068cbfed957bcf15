"""Recipes: everything a run does, as one YAML page that is checked whole before anything happens.

    recipe = Recipe.read("recipes/cifar10-resnet56-bwcp.yaml", ["budget=flops=0.4", "finetune.epochs=20"])

The classes below are the schema; their descriptions are the documentation (docs/recipes.md). Paths in a recipe are
relative to the current directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from secateur import _yaml
from secateur._hints import nearest
from secateur._settings import Section, shown, validated
from secateur.allocate.presets import AUTO, PRESETS
from secateur.budget import Budget
from secateur.errors import ConfigError


def _listed(value: Any) -> Any:
    """One word where a list of words is asked for is a list of one."""
    return (value,) if isinstance(value, str) else _fixed(value)


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    """A list of names that has any, and none of them twice."""
    if not names or len(set(names)) < len(names):
        raise ValueError("give one name at least, and each once")
    return names


def _fixed(value: Any) -> Any:
    """YAML's lists become tuples, which a frozen recipe can hold."""
    return tuple(value) if isinstance(value, list) else value


def _budget(value: Any) -> Any:
    """Any form of a budget that `Budget.parse` knows, in its one written form."""
    return str(Budget.parse(value))


def _aligned(value: Any) -> Any:
    """A positive whole number, or the name of a preset."""
    if isinstance(value, str) and value in (*PRESETS, AUTO):
        return value
    if type(value) is not int or value < 1:
        raise ValueError(
            f"{shown(value)} is no alignment: give a whole number from 1, or one of {', '.join((*PRESETS, AUTO))}"
        )
    return value


#: Names of data sets; `secateur.data.DATASETS` has a row for each.
DATA = ("digits", "cifar10", "cifar100", "fashion_mnist", "folder", "npz", "hf", "webdataset")


def _data_set(name: str) -> str:
    """A name of `DATA`, or an import path."""
    if name in DATA or ":" in name:
        return name
    close = nearest(name, DATA)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"{shown(name)} is no data set: {hint}Choose one of {', '.join(DATA)}, or file.py:build")


def _several(value: Any) -> Any:
    """One section, or the word that stands for it, where a list of them is asked for is a list of one."""
    return (value,) if isinstance(value, str | Mapping) else _fixed(value)


Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_fixed)]
Quantisers = Annotated[tuple[Literal["onnxruntime", "openvino"], ...], BeforeValidator(_listed)]
Runtime = Literal["pytorch", "compiled", "onnxruntime", "openvino", "executorch"]
Runtimes = Annotated[tuple[Runtime, ...], BeforeValidator(_listed), AfterValidator(_once)]
Size = Annotated[tuple[int, int, int], BeforeValidator(_fixed)]


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


class DataConfig(Section):
    """Which images; a name alone may stand for the whole section."""

    name: Annotated[str, AfterValidator(_data_set)] = Field(
        description="The data set, or the form in which it lies at `path`: digits, cifar10, cifar100, fashion_mnist, "
        "folder, npz, hf, webdataset; or an import path to data of your own: mypkg.data:build, file.py:build."
    )
    path: str | None = Field(default=None, description="File or folder with the data; digits needs none.")
    train_images: int | None = Field(
        default=None, ge=1, description="Train on so many images only, chosen by the seed."
    )
    validation: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the training images held out to watch and to select by."
    )
    batch_size: int = Field(default=128, ge=1, le=1_000_000, description="Images a step, over all processes together.")
    augment: Words | None = Field(
        default=None, description="Names of augmentations; null: the data set's own, []: none."
    )
    workers: int = Field(default=0, ge=0, le=256, description="Processes that read images; data in memory need none.")
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


Repairs = Annotated[tuple[RepairConfig, ...], BeforeValidator(_several)]


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


class Distil(Section):
    """Learning from the trained dense network."""

    weight: float = Field(
        default=0.0, ge=0, le=1, description="Share of the loss that follows the teacher; 0: no teacher."
    )
    temperature: float = Field(default=4.0, gt=0, description="Softens the teacher's and the student's outputs.")


class Training(Section):
    """One stage of training."""

    epochs: int = Field(default=10, ge=1, le=1_000_000, description="Passes over the training images.")
    optimiser: Literal["sgd", "adamw"] = Field(default="sgd", description="What takes the steps.")
    lr: float = Field(default=0.1, gt=0, description="Highest learning rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of SGD.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum, of SGD.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Pull of the weights towards zero.")
    decay_norm: bool = Field(default=True, description="Whether it acts on norms and biases too; BWCP needs it to.")
    schedule: Literal["cosine", "step", "constant", "onecycle"] = Field(
        default="cosine", description="How the learning rate goes on after the warm-up."
    )
    milestones: Numbers = Field(
        default=(0.5, 0.75), description="Of schedule step: fractions of the stage where it falls."
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="Of schedule step: what it is multiplied by there.")
    warmup: float = Field(default=0.0, ge=0, description="Epochs, also fractions, in which the rate rises from zero.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    mixup: float = Field(default=0.0, ge=0, description="Alpha of mixup; 0: off.")
    ema: float = Field(default=0.0, ge=0, lt=1, description="Decay of a moving average of the weights; 0: off.")
    clip: float | None = Field(default=None, gt=0, description="Largest norm of the gradient; null: any.")
    distill: Distil = Field(default=Distil(), description="Of finetune: the dense network as teacher.")
    select: Literal["last", "best"] = Field(
        default="last", description="Which weights the stage gives on: the last, or the best on the validation images."
    )

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
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0: set momentum: 0.9, or nesterov: false")
        return self

    def _without_effect(self, switch: str, needed: str, keys: Sequence[str]) -> None:
        chosen = getattr(self, switch)
        for key in keys:
            if chosen != needed and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} does nothing with {switch} {chosen}: leave it out, or set {switch}: {needed}")


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
    tensorboard: bool = Field(default=False, description="Write metrics for TensorBoard too.")
    sync_norm: bool = Field(default=True, description="Batch statistics over all processes together.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: the GPU if there is one.")


class Recipe(Section):
    """Everything a run does."""

    name: str = Field(min_length=1, description="What the run is called.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Same recipe, seed and kind of processor: same plan and, on the CPU, weights.",
    )
    model: ModelConfig = Field(description="Which network.")
    data: DataConfig = Field(description="Which images.")
    task: TaskConfig = Field(default=TaskConfig(), description="What the network is for; see docs/tasks.md.")
    method: MethodConfig = Field(description="How channels are chosen.")
    plugins: Words = Field(
        default=(),
        description="Methods of your own: .py files, modules or module:Class; imported before all else.",
    )
    budget: Annotated[str, BeforeValidator(_budget)] = Field(
        description="What may remain: flops=0.5, params=2M or several, separated by commas; also activations, peak, "
        "latency=0.6@onnxruntime."
    )
    constraints: ConstraintsConfig = Field(default=ConstraintsConfig(), description="What no plan may do.")
    allocator: Literal["global", "uniform", "per_cost"] | None = Field(
        default=None,
        description="How scores become widths, for methods that give scores; null: as the method has it, often global.",
    )
    normalise: Literal["none", "mean", "max", "sum", "standard", "gauss", "lamp"] | None = Field(
        default=None, description="How the scores of different groups become comparable; null: as the method has it."
    )
    repair: Repairs = Field(
        default=(),
        description="What is done to the surviving weights before the cut, in this order: names of `secateur repairs`, "
        "or {name: ..., with settings}.",
    )
    pretrain: Training | None = Field(
        default=None, description="Plain training before a method that acts while training; null: none."
    )
    train: Training | None = Field(
        default=None,
        description="The method acts here if it acts while training; else this trains the dense network, or the narrow "
        "one for a method that acts before training.",
    )
    finetune: Training | None = Field(default=None, description="Training of the narrow network; null: none.")
    search: SearchConfig = Field(
        default=SearchConfig(), description="How networks are tried, by methods that search such as acp."
    )
    export: ExportConfig = Field(default=ExportConfig(), description="Which files others can run.")
    latency: LatencyConfig | None = Field(
        default=LatencyConfig(), description="How speed is compared; null: not at all."
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="How the machine is used.")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """What no method could make sense of."""
        if self.train is None and not self.model.begins_trained:
            raise ValueError(
                "train is missing and model.weights names no trained network: give train, such as train: {epochs: 10}, "
                "or model.trained: true where the factory returns trained weights"
            )
        for name in ("pretrain", "train"):
            stage: Training | None = getattr(self, name)
            if stage is not None and stage.distill.weight:
                raise ValueError(
                    f"{name}.distill has no teacher, as nothing is cut yet: leave it out, or use finetune.distill"
                )
        return self

    @classmethod
    def read(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """Read a YAML file, with overrides such as "budget=flops=0.4" or "finetune.epochs=20".

        Raises:
            ConfigError: one sentence that names the file or the key, the value and the remedy.
        """
        file = Path(path)
        try:
            text = file.read_bytes().decode("utf-8")
        except OSError as error:
            raise ConfigError(f"The recipe {str(file)!r} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise ConfigError(f"The recipe {str(file)!r} is not UTF-8 text: give a YAML file.") from error
        return cls.parse(text, overrides, what=f"The recipe {str(file)!r}")

    @classmethod
    def parse(cls, text: str, overrides: Sequence[str] = (), *, what: str = "The recipe") -> Recipe:
        """Read YAML text; otherwise as `read`."""
        data = _yaml.parse(text, what)
        if not isinstance(data, dict):
            raise ConfigError(f"{what} is no list of keys and values: begin with name, model, data, method, budget.")
        for override in overrides:
            data = _overridden(data, override)
        return validated(cls, data)

    def changed(self, overrides: Sequence[str]) -> Recipe:
        """This recipe with overrides such as "export.onnx=false"; otherwise as `read`."""
        return self.parse(self.to_yaml(), overrides)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, defaults included, as plain data."""
        return self.model_dump(mode="python")

    def to_yaml(self) -> str:
        """Return the recipe in full, defaults included; `parse` reads it back as the same recipe."""
        return _yaml.dump(self.to_dict())


#: The stages of a recipe that train.
TRAINING = ("pretrain", "train", "finetune")
_SHORT = {
    "model": "reference",
    "data": "name",
    "method": "name",
    "task": "name",
}  # sections that one word may stand for


def _overridden(data: Mapping[str, Any], override: str) -> dict[str, Any]:
    """`data` with one "a.b=c" set; sections on the way are made where there are none."""
    path, sign, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not sign or not all(keys):
        raise ConfigError(f"--set {shown(override)} is not understood: write a.b=value, such as train.epochs=20.")
    value = _yaml.parse(text, f"--set {shown(override)}")
    result = dict(data)
    here = result
    for depth, key in enumerate(keys[:-1]):
        inner = here.get(key)
        if depth == 0 and key in _SHORT and isinstance(inner, str):
            inner = {_SHORT[key]: inner}
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(
                f"--set {shown(override)} is not possible: {'.'.join(keys[: depth + 1])} is {shown(inner)}, which has "
                "no keys in it."
            )
        here[key] = dict(inner or {})
        here = here[key]
    here[keys[-1]] = value
    return result
