"""Objects in images, by any model whose forward in training takes targets and gives losses, as torchvision's do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from secateur._hints import install
from secateur.batches import listed
from secateur.errors import ModelError
from secateur.graph.modules import as_call
from secateur.tasks._library import torchmetrics
from secateur.tasks.base import Task, Unit

#: Packages with which torchmetrics computes mAP, by its names for them.
_BACKENDS = {"faster_coco_eval": "faster_coco_eval", "pycocotools": "pycocotools"}


class Detection(Task):
    """Images, and for each a dict of `boxes` [n, 4] (x1, y1, x2, y2) and `labels` [n]; mean average precision.

    In training the model is called with images and targets and gives a dict of losses; in evaluation with images alone,
    and gives for each a dict of `boxes`, `labels` and `scores`. Where no package for mAP is there, the loss stands for
    the task, and `notes` says so.
    """

    marks = "boxes"
    name, headline = "detection", "mAP"
    unit: Unit = "share"
    higher_is_better = True
    judges = False

    def __init__(self, **settings: Any) -> None:
        """Find out with what mAP can be computed."""
        super().__init__(**settings)
        self._backend = next((name for name, package in _BACKENDS.items() if importlib.util.find_spec(package)), None)
        if self._backend is None:
            self.headline, self.unit, self.higher_is_better = "loss", "number", False
            self.notes = (f"No mAP is computed, as faster-coco-eval is not installed: {install('detection')}.",)

    def batch(self, batch: Any) -> tuple[Any, Any]:
        """((images,), targets) where images are a list, as detectors take it; else a pair as it is."""
        images, targets = super().batch(batch)
        return ((list(images),) if listed(images) else images), list(targets)

    def collate(self, samples: list[Any]) -> Any:
        """Images may be of any size: a list of them, and a list of their targets."""
        images, targets = zip(*samples, strict=True)
        return list(images), list(targets)

    def answer(self, model: Callable[..., Any], inputs: Any, targets: Any) -> Any:
        """The losses of the training forward."""
        args, keywords = as_call(inputs)
        return model(*args, targets, **keywords)

    def loss(self, answer: Any, targets: Any) -> torch.Tensor:
        """The sum of the losses that the model gives; ModelError where it gives none."""
        losses = list(answer.values()) if isinstance(answer, Mapping) else [answer]
        if not losses or not all(isinstance(each, torch.Tensor) and each.numel() == 1 for each in losses):
            raise ModelError(
                "Detection needs a model whose forward in training, called with images and targets, gives a dict of "
                "losses, as torchvision's detectors do: wrap the model, or give a task of your own."
            )
        return torch.stack([each.reshape(()).float() for each in losses]).sum()

    def judged(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[torch.Tensor, Any]:
        """The training forward's loss, with norms and dropout as in evaluation, and what is found."""
        with _losing(model):
            loss = self.loss(self.answer(model, inputs, targets), targets)
        args, keywords = as_call(inputs)
        found = model(*args, **keywords)
        if not isinstance(found, list | tuple) or not all(isinstance(each, Mapping) for each in found):
            raise ModelError(
                f"Detection needs a dict of boxes, labels and scores for every image, and the model gives a "
                f"{type(found).__name__} in evaluation: wrap it, or give a task of your own."
            )
        return loss, found

    def check(self, answer: Any, targets: Any) -> None:
        """Losses, as training gives them."""
        self.loss(answer, targets)

    def metrics(self) -> Mapping[str, Any]:
        """Mean average precision over classes and overlaps from 0.5 to 0.95, and at 0.5."""
        return {} if self._backend is None else {"mAP": _Precision(self._backend)}

    def samples(self, targets: Any) -> int:
        """One dict an image."""
        return len(targets)


class _Precision:
    """torchmetrics' mAP under the names that a report has."""

    def __init__(self, backend: str) -> None:
        self._metric = torchmetrics("detection").MeanAveragePrecision(backend=backend)

    def update(self, found: Any, targets: Any) -> None:
        """Follow one batch, on the CPU, where the package computes."""
        kept = ("boxes", "labels", "scores")
        both = [
            [{k: v.detach().cpu() for k, v in one.items() if k in kept} for one in each] for each in (found, targets)
        ]
        self._metric.update(*both)

    def compute(self) -> dict[str, torch.Tensor]:
        """Over all that was seen."""
        values = self._metric.compute()
        return {"mAP": values["map"], "mAP at 0.5": values["map_50"]}


@contextmanager
def _losing(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in training mode, so that it gives losses, save what would then draw or learn."""
    modes = [(part, part.training) for part in model.modules()]
    for part, _ in modes:
        part.training = not isinstance(part, _BatchNorm | _DropoutNd)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
