"""Everything that can be wrong with a run, found before anything is written: data, model, method, budget, packages.

What it returns can make the network and the method afresh at any time. Every stage begins from that and from files,
never from what another stage left in memory, so that a run that was interrupted goes the same way as one that was not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._files import said
from secateur._hints import install
from secateur._settings import validated
from secateur.allocate import MEASURED, Constraints
from secateur.allocate.presets import align_of
from secateur.data import Data, open_data
from secateur.errors import ConfigError, InputError, ModelError
from secateur.graph import Cost
from secateur.graph.modules import as_call
from secateur.latency import Watcher
from secateur.methods import Method, MethodRow, method, plug_in
from secateur.methods.kit.measured import Measured
from secateur.models import MODELS
from secateur.recipe import TRAINING, Recipe
from secateur.repair import repairs
from secateur.runs.calibration import calibration
from secateur.runs.trials import held_out
from secateur.runtime import EXPORTERS, QUANTISERS
from secateur.runtime.engines import ENGINES
from secateur.runtime.named import Named, Wish, network
from secateur.tasks import Classification, Task, create
from secateur.training import Engine, learning_rate
from secateur.training.checks import check_fit
from secateur.training.devices import accelerator
from secateur.training.losses import TaskLoss
from secateur.training.optimisers import check_optimiser
from secateur.training.trackers import check_trackers

#: Which stages a run has, in order, by when its method acts; those the recipe leaves out are skipped.
STAGES: Mapping[str, tuple[str, ...]] = {
    "while training": ("pretrain", "train", "prune", "finetune", "export", "latency", "report"),
    "after training": ("train", "prune", "finetune", "longer", "export", "latency", "report"),
    "before training": ("prune", "train", "export", "latency", "report"),
}


@dataclass(frozen=True)
class Prepared:
    """A recipe whose parts have been tried."""

    recipe: Recipe
    data: Data
    task: Task
    row: MethodRow
    arguments: Mapping[str, Any]  # of the model's factory, with what the data decide
    model_class: str
    dense: Cost
    steps: int | None  # of the optimiser while the method is at work
    notes: tuple[str, ...] = ()  # about the weights the network begins with, and what has no effect

    @property
    def stages(self) -> tuple[str, ...]:
        """What will be done, in order."""
        skipped = [name for name in TRAINING if getattr(self.recipe, name) is None]
        skipped += [name for name in ("longer", "latency") if not getattr(self.recipe, name)]
        return tuple(name for name in STAGES[self.row.acts] if name not in skipped)

    @property
    def begins_trained(self) -> bool:
        """Whether the network has been trained before a method that acts while training begins."""
        return _begins_trained(self.recipe)

    @property
    def shapes(self) -> list[list[int]]:
        """Of the example inputs."""
        return [list(shape) for shape in self.network().shapes]

    @property
    def settings(self) -> dict[str, Any]:
        """Of the method, defaults included."""
        return validated(self.row.config, self.recipe.method.settings, "method").model_dump(mode="json")

    def network(self) -> Named:
        """The network with the weights it starts from, always the same."""
        return network_of(self.recipe, self.arguments, self.data)

    def method(self, loaded: Named, watch: Watcher | None = None) -> Method:
        """The method at work on such a network; `watch` is told of layer shapes that are measured."""
        return _method(self.recipe, self.row, self.data, loaded, self.steps, watch)


def prepare(recipe: Recipe, watch: Watcher | None = None) -> Prepared:
    """Try everything a recipe names.

    watch: told of layer shapes that are measured, where the budget bounds a latency.

    Raises:
        SecateurError: one sentence for the first thing that cannot be.
    """
    for plugin in recipe.plugins:
        plug_in(plugin)
    row = method(recipe.method.name)
    settings = validated(row.config, recipe.method.settings, "method")
    asked = repairs([each.model_dump() for each in recipe.repair])  # refuses what there is not
    _check_stages(recipe, row)
    _check_packages(recipe)
    accelerator(recipe.engine)
    task = create(recipe.task.name, **recipe.task.settings)
    row.check_task(task)
    for each in recipe.trainings.values():
        TaskLoss(task, each)  # refuses what the task has not, and a package that is missing
    data = open_data(recipe.data, recipe.seed, task)
    row.check_task(task, data.example)
    if recipe.model.input_size is not None and recipe.model.input_size != tuple(data.input_size):
        raise ConfigError(
            f"model.input_size is {_size(recipe.model.input_size)}, and the images of {data.name} are "
            f"{_size(data.input_size)}: leave model.input_size out, or set data.options.size where the data have it."
        )
    arguments = settings.model_arguments(recipe.model.reference, _arguments(recipe, data, task))
    loaded = network_of(recipe, arguments, data)
    _check_output(recipe, loaded, data, task)
    engine = Engine(data, recipe.engine, seed=recipe.seed, batch_size=recipe.data.batch_size, task=task)
    for name, stage in recipe.trainings.items():
        check_optimiser(stage, name)
        learning_rate(stage, 0, max(engine.steps_per_epoch, 1))  # refuses a schedule that is too short
    steps = engine.steps(recipe.train) if recipe.train is not None and row.acts == "while training" else None
    name = type(loaded.model).__name__
    made = _method(recipe, row, data, loaded, steps, watch)
    made.check_repairs(asked)
    notes = loaded.notes
    if made.searches():
        held_out(data)
    elif recipe.search != type(recipe.search)():
        notes = (*notes, f"What the recipe says under search has no effect: the method {row.name} tries no networks.")
    return Prepared(recipe, data, task, row, arguments, name, made.graph.cost(), steps, notes)


# ---------------------------------------------------------------------------------------------------------- the recipe


def _check_stages(recipe: Recipe, row: MethodRow) -> None:
    """What does not go together with when the method acts."""
    when = f"the method {row.name} acts {row.acts}"
    if row.acts != "after training" and recipe.train is None:
        raise ConfigError(f"train is missing, and {when}: give train, such as train: {{epochs: 10}}.")
    if row.acts != "while training" and recipe.pretrain is not None:
        raise ConfigError(f"pretrain is given, but {when}: put its epochs into train, and leave pretrain out.")
    if row.acts == "before training" and recipe.finetune is not None:
        raise ConfigError(
            f"finetune is given, but {when}, so that train is of the narrow network already: put its epochs into train."
        )
    if recipe.longer and (row.acts != "after training" or recipe.finetune is None):
        without = when if row.acts != "after training" else "there is no finetune"
        raise ConfigError(
            f"longer gives the dense network the epochs of finetune, but {without}: leave it out"
            + (", or compare with dense by secateur compare." if row.acts != "after training" else ".")
        )
    if recipe.allocator == MEASURED and (row.acts != "after training" or recipe.normalise is not None):
        unfit = f"normalise is {recipe.normalise}" if row.acts == "after training" else when
        raise ConfigError(
            f"allocator is measured, which makes the scores of a trained network comparable itself, but {unfit}: leave "
            "one of them out."
        )
    distilled = recipe.finetune is not None and recipe.finetune.distill.weight > 0
    if distilled and row.acts == "while training" and not _begins_trained(recipe):
        raise ConfigError(
            f"finetune.distill has no teacher: {when}, and no dense network is trained before; give pretrain, or "
            "model.weights, or leave distill out."
        )
    for name, stage in recipe.trainings.items():
        if stage.select == "best" and not recipe.data.validation:
            raise ConfigError(
                f"{name}.select is best, but data.validation is 0: hold some images out, such as 0.1, or select: last."
            )


def _begins_trained(recipe: Recipe) -> bool:
    return recipe.pretrain is not None or recipe.model.begins_trained


_PACKAGES = ("accelerate", "yaml", "jinja2")  # of every run


def _check_packages(recipe: Recipe) -> None:
    """A package that is missing at the end of a run would be missed too late."""
    missing = next((name for name in _PACKAGES if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise ConfigError(f"{missing} is not installed: {install('train')}.")
    exports = [(row, f"set export.{name}: false") for name, row in EXPORTERS.items() if getattr(recipe.export, name)]
    if recipe.search.workers > 1 and importlib.util.find_spec("ray") is None:
        raise ConfigError(f"ray is not installed: {install('ray')}, or set search.workers: 1.")
    int8 = [(QUANTISERS[name], f"leave {name} out of export.int8") for name in recipe.export.int8]
    for row, otherwise in (*exports, *int8):
        if row.missing is not None:
            raise ConfigError(f"{row.missing} is not installed: {row.install}, or {otherwise}.")
    for name in recipe.latency.names(onnx=recipe.export.onnx) if recipe.latency is not None else ():
        if (sentence := ENGINES[name].missing()) is not None:
            raise ConfigError(f"{sentence.rstrip('.')}, or leave {name} out of latency.runtimes.")
    check_trackers(recipe.engine.trackers)


# ----------------------------------------------------------------------------------------------------------- the model

_SHOWN = 8  # images of a data set that was not made for the task, so that more than one class may be among them


def _arguments(recipe: Recipe, data: Data, task: Task) -> dict[str, Any]:
    """The factory's arguments; what the data decide for a zoo network may be left out."""
    given = dict(recipe.model.arguments)
    if not recipe.model.reference.startswith("zoo:"):
        return given
    outputs = task.outputs(data.classes)
    decided = {"in_channels": data.input_size[0]} | ({"num_classes": outputs} if outputs is not None else {})
    for key, value in decided.items():
        if given.get(key, value) != value:
            raise ConfigError(
                f"model.arguments.{key} is {given[key]}, and the data {data.name} say {value}: leave it out."
            )
    # what is the factory's default anyway is left out too, so that the reference stays short
    usual = {"num_classes": 10, "in_channels": _usual_channels(recipe.model.reference)}
    return given | {key: value for key, value in decided.items() if value != usual[key]}


def _usual_channels(reference: str) -> int | None:
    row = MODELS.get(reference.partition(":")[2])
    return row.input_size[0] if row is not None else None


def network_of(recipe: Recipe, arguments: Mapping[str, Any], data: Data) -> Named:
    """The network of a recipe with the weights it starts from; arguments: of its factory."""
    config = recipe.model
    weights = None if config.weights is None else Path(config.weights)
    shapes = [(1, *data.input_size)] if data.example is None else []
    wish = Wish(dict(arguments), None, shapes, weights, None, recipe.seed, config.ema, config.trust, data.example)
    return network(config.reference, wish)


def _method(
    recipe: Recipe, row: MethodRow, data: Data, loaded: Named, steps: int | None, watch: Watcher | None
) -> Method:
    allocator: Any = recipe.allocator
    if allocator == MEASURED:
        allocator = Measured(calibration(recipe, data.train, torch.device("cpu")), recipe.seed)
    made = row.factory(
        loaded.model,
        loaded.inputs,
        budget=recipe.budget,
        steps=steps,
        seed=recipe.seed,
        constraints=Constraints(**{**recipe.constraints.model_dump(), "align": align_of(recipe.constraints.align)}),
        allocator=allocator,
        normalise=recipe.normalise,
        watch=watch,
        **recipe.method.settings,
    )
    assert isinstance(made, Method)
    return made


def _check_output(recipe: Recipe, loaded: Named, data: Data, task: Task) -> None:
    """The network takes the data's images and answers its task."""
    name, size = recipe.model.reference, _size(data.input_size)
    output = _forward(loaded.model, loaded.inputs, name, f"{size} images of {data.name}")
    outputs = task.outputs(data.classes)
    if outputs is not None and isinstance(task, Classification):
        if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 1:
            shape = _size(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ModelError(
                f"{name} answers an image with {shape}, and training needs one number for each class, 1x{outputs}: "
                "wrap the model so that it returns that alone."
            )
        if output.shape[1] != outputs:
            raise ConfigError(
                f"{name} tells {output.shape[1]} classes apart, and the data {data.name} have {outputs}: set the "
                f"argument of its factory, such as model.arguments: {{num_classes: {outputs}}}."
            )
    if data.example is not None or not isinstance(task, Classification):
        check_fit(loaded.model, *next(iter(data.train.batches(2 if data.example is not None else _SHOWN))), task)
        task.metrics()  # imports what judges


@torch.no_grad()
def _forward(model: nn.Module, inputs: Any, name: str, what: str) -> Any:
    training = model.training
    try:
        args, keywords = as_call(inputs)
        return model.eval()(*args, **keywords)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise InputError(f"{name} does not run with {what}: {said(error)}; choose another model or size.") from error
    finally:
        model.train(training)


def _size(shape: Any) -> str:
    return "x".join(map(str, shape))
