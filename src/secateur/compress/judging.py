"""How good a network is, on images that are held out: by a metric, or by how closely it agrees with the original.

Below the search: what a task is (its loss, its metric) is said here once, for everything that trains or compares.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import nn

from secateur.compress.held_out import Pair, Source, rows_of
from secateur.errors import ConfigError
from secateur.graph.modules import as_call
from secateur.graph.nests import map_tensors
from secateur.prune import cross_entropy

Loss = Callable[[Any, Any], torch.Tensor]
Metric = Callable[[Any, Any], Any]
_ENOUGH = 50  # held-out images from which on a share of right ones tells networks apart
AGREEMENT = "agreement"


@dataclass(frozen=True)
class Task:
    """What a network is for: loss(output, target), and a metric of a batch, averaged over images, higher = better."""

    loss: Loss
    metric: Metric
    name: str
    proportion: bool = False  # whether the metric is a share of images, whose uncertainty is known


def task_of(loss: Loss | None, metric: Metric | None) -> Task:
    """Classification where nobody says otherwise; with a loss alone, the metric is its negative."""
    if loss is None and metric is None:
        return Task(cross_entropy, top1, "accuracy", proportion=True)
    if metric is None:
        assert loss is not None
        given = loss
        return Task(given, lambda output, target: -given(output, target), "minus the loss")
    return Task(loss or cross_entropy, metric, getattr(metric, "__name__", "metric").strip("<>"))


def top1(output: Any, target: Any) -> torch.Tensor:
    """The share of class scores [n, classes, ...] whose largest is the target's [n, ...]."""
    cross_entropy(output, target)  # refuses what is no classification
    right = target if target.shape != output.shape else target.argmax(1)
    return (output.argmax(1) == right).float().mean()


def call(model: nn.Module, inputs: Any) -> Any:
    """The network's answer to inputs of any form, on the device where its weights are."""
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    args, keywords = as_call(inputs)
    return model(*_to(args, device), **_to(keywords, device))


def to_device_of(model: nn.Module, value: Any) -> Any:
    """A target where the network is."""
    return _to(value, next((t.device for t in model.parameters()), torch.device("cpu")))


def _to(value: Any, device: torch.device) -> Any:
    return map_tensors(value, lambda tensor: tensor.to(device))


def agreement(output: Any, original: Any) -> torch.Tensor:
    """1 - |output - original| / |original|, over all numbers of all outputs: 1 where they are the same."""
    return 1 - _distance(output, original).sqrt()


def imitation(output: Any, original: Any) -> torch.Tensor:
    """|output - original|² / |original|², a loss without targets."""
    return _distance(output, original)


def _distance(output: Any, original: Any) -> torch.Tensor:
    pairs = list(zip(_numbers(output), _numbers(original), strict=True))
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        raise ConfigError(
            "The network's outputs cannot be compared with the original's, as their sizes differ from call to call: "
            "pass metric=(a function of output and target), and loss=."
        )
    gone = torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs]).sum()
    whole = torch.stack([b.float().square().sum() for _, b in pairs]).sum()
    return gone / whole.clamp_min(1e-12)


def _numbers(output: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(output, lambda tensor: found.append(tensor) or tensor)
    return [tensor for tensor in found if tensor.is_floating_point()]


class Judge:
    """Compares networks on the held-out images: by the task's metric, or by agreement with the original.

    `unit` is what a figure is; `note` says why it is an agreement, where it is.
    """

    def __init__(self, source: Source, task: Task, original: nn.Module) -> None:
        self.task, self._source, self._original = task, source, original
        self.labelled = source.shown is not None and all(target is not None for _, target in self._pairs(1))
        self.note = self._why()
        self.unit = AGREEMENT if self.note else task.name

    def __call__(self, model: nn.Module) -> float:
        """The mean over held-out images, higher = better; not finite where the network's answers are not."""
        return self.by_metric(model) if self.unit != AGREEMENT else self._mean(model, self._agreement)

    def by_metric(self, model: nn.Module) -> float:
        """The task's metric, also where networks are told apart by agreement."""
        return self._mean(model, lambda output, inputs, target: self.task.metric(output, target))

    def interval(self, value: float) -> tuple[float, float] | None:
        """Wilson's 95% interval of a share of the held-out images; None for other figures."""
        if not self.task.proportion or self.unit == AGREEMENT:
            return None
        found = binomtest(round(value * self._source.held_count), self._source.held_count)
        low, high = found.proportion_ci(method="wilson")
        return float(low), float(high)

    def original_of(self, inputs: Any) -> Any:
        """What the original says of a batch."""
        with _evaluating(self._original), torch.no_grad():
            return call(self._original, inputs)

    def _agreement(self, output: Any, inputs: Any, target: Any) -> torch.Tensor:
        return agreement(output, self.original_of(inputs))

    def _mean(self, model: nn.Module, figure: Callable[[Any, Any, Any], Any]) -> float:
        total, images = 0.0, 0
        with _evaluating(model), torch.no_grad():
            for inputs, target in self._source.held():
                rows = rows_of(inputs)
                total += rows * float(figure(call(model, inputs), inputs, to_device_of(model, target)))
                images += rows
        return total / images if images else math.nan

    def _pairs(self, most: int) -> Iterable[Pair]:
        return (pair for pair, _ in zip(self._source.held(), range(most), strict=False))

    def _why(self) -> str:
        count = self._source.held_count
        if self._source.shown is None:
            return (
                "No data were given: only methods that need none were tried, they were compared on noise by how closely "
                "they agree with the original, nothing was repaired or trained, and what the cut costs in accuracy is "
                "not known. Some hundred images of the task, even without labels, make the result much better."
            )
        if not self.labelled:
            return (
                f"The images have no labels: networks were compared by how closely they agree with the original on "
                f"{count} held-out images, and trained to imitate it."
            )
        if self.task.proportion and count < _ENOUGH:
            return (
                f"{self._source.count + count} images are few: on the {count} that are held out one is worth "
                f"{100 / count:.0f} points, so networks were compared by how closely they agree with the original."
            )
        return ""


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then every module's own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
