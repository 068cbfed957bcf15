"""What a network is for: its loss, how good it is, what a batch means. Knows neither methods nor training.

The engine, evaluations, methods' calibration and reports go through this interface alone, so that a task of one's own
(`mypkg.tasks:Mine`, or an object) is worth as much as those that are built in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils.data import default_collate

from secateur._distributed import global_sum
from secateur._settings import Section, validated
from secateur.batches import pair_of
from secateur.errors import ConfigError, DataError, ModelError
from secateur.graph.modules import as_call, map_tensors

Unit = Literal["share", "number", "dB"]


class TaskSettings(Section):
    """Base of the tasks' settings: unknown names and impossible values are refused."""


class Task:
    """One task; a subclass gives `loss` and either `per_sample` or `metrics`, and what differs from the rest.

    The loss of a batch is the mean of its samples' losses, so that parts of a batch, in micro-batches or on several
    processes, add up to the whole; a loss that compares samples with each other sets `adds_up` to False.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[TaskSettings]] = TaskSettings
    #: The metric that stands for the task: a key of what `evaluate` gives.
    headline: str = "loss"
    higher_is_better: bool = False
    #: How the headline is written: a share of 1 as a percentage, decibels, or a plain number.
    unit: Unit = "number"
    #: Whether targets name no class of a sample, so that methods which go by classes have nothing to go by.
    label_free: bool = True
    #: Whether answers [N, C, ...] are scores of C classes, of which the highest is meant.
    scores: bool = False
    #: Whether a model in evaluation gives an answer that the loss can be taken of.
    judges: bool = True
    #: Whether the loss of a batch is the mean of the losses of its samples.
    adds_up: bool = True
    #: Whether blending two samples, inputs and loss alike (mixup), makes sense.
    mixes: bool = False
    #: What of a sample's target lies on its image, and is moved with it by augmentations.
    marks: Literal["none", "mask", "boxes", "image"] = "none"
    #: Sentences that a report should have.
    notes: tuple[str, ...] = ()

    def __init__(self, **settings: Any) -> None:
        """Keep the settings; ConfigError for one that is unknown or impossible."""
        self.settings = validated(self.Config, settings, "task")

    # ---------------------------------------------------------------------------------------------- what a task says

    def batch(self, batch: Any) -> tuple[Any, Any]:
        """(inputs, targets) of one batch; by default a pair as it is, or a dict's usual names.

        Raises:
            InputError: it has no targets, or which is which cannot be told.
        """
        return pair_of(batch)

    def collate(self, samples: list[Any]) -> Any:
        """Samples of a data set become a batch; by default as PyTorch does it, tensor on tensor."""
        return default_collate(samples)

    def answer(self, model: Callable[..., Any], inputs: Any, targets: Any) -> Any:
        """What the model says in training mode; by default of the inputs alone."""
        args, keywords = as_call(inputs)
        return model(*args, **keywords)

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """One number to be made small: the mean over the samples of a batch."""
        raise NotImplementedError

    def metrics(self) -> Mapping[str, Any]:
        """New metrics of torchmetrics' kind (`update`, `compute`), by name; they see what `measured` gives."""
        return {}

    def measured(self, answer: Any, targets: Any) -> tuple[Any, ...]:
        """What the metrics are updated with."""
        return answer, targets

    def per_sample(self, answer: Any, targets: Any) -> torch.Tensor | None:
        """The headline of every sample [N], where it is a mean over samples; it is then watched in training too."""
        return None

    def judged(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[torch.Tensor, Any]:
        """(loss, answer) of a model in evaluation mode."""
        args, keywords = as_call(inputs)
        answer = model(*args, **keywords)
        self.check(answer, targets)
        return self.loss(answer, targets), answer

    def check(self, answer: Any, targets: Any) -> None:
        """Refuse, in a sentence, what is no answer to this task, and take from the first what was left open.

        Raises:
            ModelError: the model answers something else. DataError: the targets are unusable.
        """
        if not isinstance(answer, torch.Tensor):
            raise ModelError(
                f"The model gives a {type(answer).__name__}, and the task {self.name} needs one tensor: switch off "
                "auxiliary outputs, wrap the model, or give a task of your own."
            )
        if not answer.dim() or len(answer) != self.samples(targets):
            raise ModelError(
                f"The model gives a tensor of {_size(answer)} for {self.samples(targets)} samples, and the task "
                f"{self.name} needs as many rows."
            )

    def samples(self, targets: Any) -> int:
        """How many samples a batch of targets belongs to."""
        return len(targets)

    def classes(self, targets: Any) -> torch.Tensor | None:
        """The class of every sample [N]; None where the task is `label_free`."""
        return None

    def outputs(self, classes: int | None) -> int | None:
        """How many numbers a network ends in for data of so many classes; None: the data do not decide it."""
        return None

    def smoothed(self, share: float) -> Task:
        """The same task, its targets softened by a share (label smoothing); ConfigError where that means nothing."""
        if share:
            raise ConfigError(f"label_smoothing means nothing for the task {self.name}: leave it out.")
        return self

    def distilled(self, answer: Any, taught: Any, temperature: float) -> torch.Tensor:
        """How far an answer is from a teacher's, the mean over samples; ConfigError where a task has no such thing."""
        raise ConfigError(f"The task {self.name} has nothing that a teacher could hand on: set distill.weight to 0.")

    # --------------------------------------------------------------------------------------------- what it is used for

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """Loss and metrics of a model, in evaluation mode, on batches in any form that `batch` reads.

        The model is left in the mode it was in, and stays on its device; several processes share the batches.

        Returns:
            {"loss": ..., headline: ..., ...}.

        Raises:
            SecateurError: there is no batch, or the model does not answer this task.
        """
        found = Evaluator(self)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        modes = [(part, part.training) for part in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    inputs, targets = map_tensors(self.batch(batch), lambda tensor: tensor.to(device))
                    found.see(model, inputs, targets)
        finally:
            for part, mode in modes:
                part.training = mode
        return found.result()

    def better(self, new: float, old: float) -> bool:
        """Whether a headline is better than another."""
        return new > old if self.higher_is_better else new < old

    def shown(self, value: float | None) -> str:
        """A headline as people read it: "94.1%", "31.20 dB", "0.01234"."""
        return shown(value, self.unit)

    def describe(self) -> dict[str, Any]:
        """What a report must know, as JSON values."""
        return {
            "name": self.name or type(self).__name__,
            "headline": self.headline,
            "higher_is_better": self.higher_is_better,
            "unit": self.unit,
        }


class Evaluator:
    """Follows a model over batches and says how good it is at a task, over all processes together."""

    def __init__(self, task: Task) -> None:
        self.task, self.samples = task, 0
        self._sums: torch.Tensor | None = None  # of the loss, of the headline sample by sample
        self._metrics: Mapping[str, Any] | None = None

    def see(self, model: nn.Module, inputs: Any, targets: Any) -> None:
        """Follow one batch; the model is in evaluation mode, and both are on one device."""
        loss, answer = self.task.judged(model, inputs, targets)
        each = self.task.per_sample(answer, targets)
        count = self.task.samples(targets)
        exact = torch.float32 if loss.device.type == "mps" else torch.float64
        numbers = torch.stack([loss.to(exact) * count, each.to(exact).sum() if each is not None else loss.to(exact)])
        self._sums = numbers if self._sums is None else self._sums + numbers
        self.samples += count
        if self._metrics is None:
            self._metrics = self.task.metrics()
        for metric in self._metrics.values():
            if hasattr(metric, "to"):
                metric.to(loss.device)
            metric.update(*self.task.measured(answer, targets))

    def result(self, *, alone: bool = False) -> dict[str, float]:
        """{"loss": ..., headline: ..., ...}; ConfigError where no batch was seen.

        alone: of this process only.
        """
        device = self._sums.device if self._sums is not None else torch.device("cpu")
        sums = self._sums if self._sums is not None else torch.zeros(2, dtype=torch.float64)
        own = torch.cat([sums, sums.new_tensor([self.samples])])
        loss, headline, samples = (own if alone else global_sum(own)).tolist()
        self.samples = int(samples)
        if not self.samples:
            raise ConfigError("There are no data to evaluate on: give at least one batch of (inputs, targets).")
        found = {"loss": loss / samples}
        for name, metric in (self._metrics or {}).items():
            if alone and hasattr(metric, "sync_on_compute"):
                metric.sync_on_compute = False
            value = metric.to(device).compute() if hasattr(metric, "to") else metric.compute()
            found.update(_numbers(name, value))
        return {self.task.headline: found.get(self.task.headline, headline / samples)} | found


def _numbers(name: str, value: Any) -> dict[str, float]:
    """What a metric computed: one number, or several by their own names."""
    if isinstance(value, Mapping):
        pairs = {key: torch.as_tensor(inner) for key, inner in value.items()}
        return {key: float(inner) for key, inner in pairs.items() if inner.numel() == 1}
    return {name: float(value)}


def fitted(answer: torch.Tensor, targets: torch.Tensor, task: str) -> torch.Tensor:
    """Targets in the shape of the answers, as numbers of theirs; DataError where there are more or fewer."""
    if answer.numel() != targets.numel():
        raise DataError(
            f"The model gives {_size(answer)} and the targets are {_size(targets)}: the task {task} needs as many "
            "targets as answers."
        )
    return targets.reshape(answer.shape).float()


def shown(value: float | None, unit: str) -> str:
    """A metric in words; "-" for one that was not measured.

    value: as measured. unit: "share" (of 1, shown in percent), "dB", or another.
    """
    if value is None or value != value:
        return "-"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:.2f} dB" if unit == "dB" else f"{value:.4g}"


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "no dimension"
