"""How good a network is, on images that are held out: by its task's metric, or by how it agrees with the original."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from secateur.compress.held_out import Source, rows_of
from secateur.errors import ConfigError
from secateur.graph.modules import Inputs, as_call
from secateur.graph.nests import map_tensors
from secateur.methods.hands import check_loss
from secateur.prune import cross_entropy
from secateur.tasks import Evaluator, Task, create, shown
from secateur.tasks.chance import wilson

Loss = Callable[[Any, Any], torch.Tensor]
Metric = Callable[[Any, Any], Any]
_ENOUGH = 50  # held-out images from which on a share of right ones tells networks apart
AGREEMENT = "agreement"


def task_of(task: str | Task | None, loss: Loss | None, metric: Metric | None) -> Task:
    """The task of a name, or of functions: with a loss alone it is what is judged by; classification by default."""
    if task is not None and (loss is not None or metric is not None):
        raise ConfigError("task= and loss= or metric= are both given: a task has its own loss and metric.")
    for what, given in (("loss", loss), ("metric", metric)):
        if given is not None:
            check_loss(given, what)
    return Given(loss, metric) if loss is not None or metric is not None else create(task or "classification")


class Given(Task):
    """A task of functions: loss(output, target), and metric(output, target), the mean over a batch, higher = better."""

    name = "given"

    def __init__(self, loss: Loss | None, metric: Metric | None) -> None:
        """loss: cross entropy if None. metric: the loss if None."""
        super().__init__()
        self._loss, self._metric = loss or cross_entropy, metric
        self.higher_is_better = metric is not None
        self.headline = "loss" if metric is None else getattr(metric, "__name__", "metric").strip("<>")

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """What was given."""
        return self._loss(answer, targets)

    def metrics(self) -> Mapping[str, Any]:
        """The metric, averaged over samples."""
        return {} if self._metric is None else {self.headline: _Mean(self._metric)}

    def check(self, answer: Any, targets: Any) -> None:
        """Whatever the functions take."""

    def samples(self, targets: Any) -> int:
        """The length of the first tensor."""
        return rows_of(targets)


class _Mean:
    """A metric of batches, averaged over their samples; of torchmetrics' kind."""

    def __init__(self, metric: Metric) -> None:
        self._metric, self._total, self._samples = metric, 0.0, 0

    def update(self, answer: Any, targets: Any) -> None:
        count = rows_of(targets)
        self._total += count * float(self._metric(answer, targets))
        self._samples += count

    def compute(self) -> torch.Tensor:
        return torch.tensor(self._total / max(self._samples, 1), dtype=torch.float64)


def moved(model: nn.Module, inputs: Any, target: Any = None) -> tuple[Inputs, Any]:
    """Inputs and target where the network's weights are."""
    device = next((t.device for t in model.parameters()), torch.device("cpu"))

    def to(value: Any) -> Any:
        return map_tensors(value, lambda tensor: tensor.to(device))

    args, keywords = as_call(inputs)
    return Inputs(*to(args), **to(keywords)), to(target)


def call(model: nn.Module, inputs: Any) -> Any:
    """The network's answer to inputs of any form."""
    there, _ = moved(model, inputs)
    return model(*there.args, **there.kwargs)


def agreement(output: Any, original: Any) -> torch.Tensor:
    """1 - |output - original| / |original|, over all numbers of all outputs: 1 where they are the same."""
    return 1 - imitation(output, original).sqrt()


def imitation(output: Any, original: Any) -> torch.Tensor:
    """|output - original|² / |original|², a loss without targets; ConfigError for outputs of changing sizes."""
    ours, theirs = _numbers(output), _numbers(original)
    if not ours or [a.shape for a in ours] != [b.shape for b in theirs]:
        raise ConfigError(
            "The network's outputs cannot be compared with the original's, as they have no numbers or their sizes "
            "differ: give labelled data and task=, or metric=(a function of output and target) and loss=."
        )
    gone = torch.stack([(a.float() - b.float()).square().sum() for a, b in zip(ours, theirs, strict=True)]).sum()
    whole = torch.stack([b.float().square().sum() for b in theirs]).sum()
    return gone / whole.clamp_min(1e-12)


def _numbers(output: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            found.append(tensor)
        return tensor

    map_tensors(output, keep)
    return found


class Judge:
    """Compares networks on the held-out images: by the task's headline metric, or by agreement with the original.

    A figure is higher where the network is better: a metric of which less is better has its sign changed, and `unit`,
    its name, says so. `note` says why it is an agreement, where it is.
    """

    def __init__(self, source: Source, task: Task, original: nn.Module) -> None:
        """source: the images. task: what the network is for. original: what others are compared with."""
        self.task, self._source, self._original = task, source, original
        first = next(iter(source.held()), (None, None))
        self.labelled = source.shown is not None and first[1] is not None
        self.note = self._why()
        self._sign = 1.0 if task.higher_is_better else -1.0
        own = task.headline if task.higher_is_better else f"minus {task.headline}"
        self.unit = AGREEMENT if self.note else own
        self.percent = self.unit == AGREEMENT or task.unit == "share"

    def __call__(self, model: nn.Module) -> float:
        """The figure of a network; not finite where its answers are not."""
        with evaluating(model), torch.no_grad():
            if self.unit == AGREEMENT:
                return self._agreement(model)
            found = Evaluator(self.task)
            for inputs, target in self._source.held():
                found.see(model, *moved(model, inputs, target))
            return self._sign * found.result()[self.task.headline]

    def told(self, figure: float) -> str:
        """A figure as people read it."""
        return shown(figure, "share" if self.percent else self.task.unit)

    def points(self, better: float, worse: float) -> float:
        """How much better one figure is than another: in hundredths of a share, else in the metric's own unit."""
        return (better - worse) * (100.0 if self.percent else 1.0)

    def interval(self, figure: float) -> tuple[float, float] | None:
        """Wilson's 95% interval of a share of images that are right; None for other figures."""
        if self.task.headline != "accuracy" or self.unit == AGREEMENT:
            return None
        return wilson(figure, self._source.held_count)

    def alike(self, better: float, worse: float) -> bool:
        """Whether the difference of two figures can be chance, by Wilson's interval of as many images; else False."""
        if self.unit == AGREEMENT or self.task.unit != "share" or not 0 <= better <= 1:
            return better == worse
        return worse >= wilson(better, self._source.held_count)[0]

    def original_of(self, inputs: Any) -> Any:
        """What the original says of a batch."""
        with evaluating(self._original), torch.no_grad():
            return call(self._original, inputs)

    def _agreement(self, model: nn.Module) -> float:
        total, images = 0.0, 0
        for inputs, _ in self._source.held():
            rows = rows_of(inputs)
            total += rows * float(agreement(call(model, inputs), self.original_of(inputs)))
            images += rows
        return total / images if images else math.nan

    def _why(self) -> str:
        count = self._source.held_count
        if self._source.shown is None:
            return (
                "No data are given: only methods that need none are tried, they are compared on noise by how closely "
                "they agree with the original, nothing is repaired or trained, and what the cut costs in "
                f"{self.task.headline} is not known. Some hundred images of the task, even without labels, make the "
                "result much better."
            )
        if not self.labelled:
            return (
                "The images have no labels: networks are compared by how closely they agree with the original on "
                f"{count} held-out images, and trained to imitate it."
            )
        if self.task.unit == "share" and count < _ENOUGH:
            return (
                f"{self._source.count + count} images are few: networks are compared by how closely they agree with "
                f"the original, as one of the {count} images that are held out is worth {100 / count:.0f} points of "
                f"{self.task.headline}."
            )
        return ""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then every module's own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
