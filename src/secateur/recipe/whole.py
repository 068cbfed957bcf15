"""A whole recipe: its sections together, read from YAML with overrides from the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from secateur import _yaml
from secateur._settings import Section, shown, validated
from secateur.budget import Budget
from secateur.errors import ConfigError
from secateur.recipe.fields import Words
from secateur.recipe.parts import (
    ConstraintsConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    Repairs,
    TaskConfig,
)
from secateur.recipe.running import EngineConfig, ExportConfig, LatencyConfig, SearchConfig
from secateur.recipe.training import Training
from secateur.recipes import located


def _budget(value: Any) -> Any:
    """Any form of a budget that `Budget.parse` knows, in its one written form."""
    return str(Budget.parse(value))


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
    allocator: Literal["global", "uniform", "per_cost", "measured"] | None = Field(
        default=None,
        description="How scores become widths, for methods that give scores; measured: on calibration images, after "
        "training; null: as the method has it, often global.",
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
    longer: bool = Field(
        default=False,
        description="Whether the dense network is given the epochs of finetune too and measured, so that the narrow "
        "one is compared with one trained as long; of methods that act after training.",
    )
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

    @property
    def trainings(self) -> dict[str, Training]:
        """The stages that train, by name, in order."""
        return {name: stage for name in TRAINING if (stage := getattr(self, name)) is not None}

    @classmethod
    def read(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """Read a YAML file, with overrides such as "budget=flops=0.4" or "finetune.epochs=20".

        path: of the file, or recipe:NAME for one that comes with the package.

        Raises:
            ConfigError: one sentence that names the file or the key, the value and the remedy.
        """
        file = located(path)
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
