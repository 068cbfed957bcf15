"""Distillation: all surviving weights are moved together until the cut network answers as the whole one did.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (arXiv:1503.02531). What layers are fitted to one by
one is their own answers, and what is left of each error is carried on to all layers behind. Here Adam lowers, on the
images that repairs are shown and without their labels,

    e(y', y) = |y' - y|² / |y|²                        y: of the whole network, y': of the cut one
    e(answers) + inner · mean of e over inner layers   what such a layer reads, where all its channels stay

so that it is training, though on few images and with nothing told but what the network itself answers. Batch norms keep
their statistics, and dropout is off. One image in eight is held out: if the error on these has not fallen in the end,
the weights stay as they were.

Where this differs from the paper, and why: squared errors in place of softened class scores, which serve any output;
what inner layers read is compared too (as in FitNets, arXiv:1412.6550), without a regressor: the channels are the same.
Steps are in proportion to the size of the weights of each tensor (as in LAMB, arXiv:1904.00962), or a rate that suits a
small network would ruin a wide one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._progress import follow
from secateur._settings import Section
from secateur.graph.cut import alive_slots, cut
from secateur.graph.modules import call_with_copies
from secateur.graph.nests import output_tensors
from secateur.repair.base import LAYERS, Case, Pairs, Repair, RepairRow
from secateur.repair.least_squares import limited
from secateur.repair.renewal import renew

#: One image in so many is held out.
_EVERY = 8
#: Steps in which the rate rises: the first of Adam are of full length whatever the gradient.
_RISING = 10
#: Weights that are smaller on average, zero perhaps, move as if they were of this size.
_SMALL = 1e-2


class DistillationSettings(Section):
    """How long, and how fast."""

    steps: int = Field(300, ge=1, description="steps of Adam")
    batch: int = Field(8, ge=1, description="images in each, where inputs are one tensor; else batches as they come")
    rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="a step over the root mean square of the weights it moves; falls along a cosine after ten steps",
    )
    inner: float = Field(1.0, ge=0, description="weight of what inner layers read, beside the answers")
    images: int = Field(5000, ge=1, description="most calibration images used")
    seed: int = Field(0, ge=0, description="of the order of images")


def relative_error(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """|y' - y|² / |y|²; where y is zero, |y'|² itself."""
    energy = before.square().sum()
    return (now - before).square().sum() / torch.where(energy > 0, energy, 1.0)


class Distillation(Repair):
    """Train the surviving weights towards the answers of the network before the cut."""

    name = "distillation"
    Config = DistillationSettings
    settings: DistillationSettings

    @torch.no_grad()
    def apply(self, case: Case, batches: Pairs) -> None:
        """Steps of a narrow copy, whose weights are then put back into their places."""
        s = self.settings
        images = _Images([inputs for inputs, _ in limited(batches, s.images, case.dense)], s.batch, s.seed)
        alive = alive_slots(case.graph.solution, case.plan.masks)
        graph = case.graph
        made = cut(case.model, graph.example_inputs, graph.recording, graph.solution, alive, inplace=False)
        pupil = _Pupil(case.dense, made.model.eval(), _whole_inputs(case), s.inner)
        before = pupil.error(images.held)
        self._train(pupil, images)
        after = pupil.error(images.held)
        if not after < before:  # NaN is not
            case.notes.append(
                f"Distillation left the weights as they were: the error on images held out went from {before:.3g} to "
                f"{after:.3g}; show more images or lower its rate."
            )
            return
        case.notes.append(f"Distillation took the error on images held out from {before:.3g} to {after:.3g}.")
        renew(case.model, graph, case.plan, made.model.state_dict())

    def _train(self, pupil: _Pupil, images: _Images) -> None:
        s = self.settings
        weights = [p.requires_grad_() for p in pupil.narrow.parameters() if p.is_floating_point() and p.numel()]
        sizes = [max(float(weight.square().mean().sqrt()), _SMALL) for weight in weights]
        adam = torch.optim.Adam([{"params": [weight]} for weight in weights])
        for step, inputs in zip(follow("steps", range(s.steps), s.steps), images.shuffled(), strict=False):
            rate = s.rate * min(1, (step + 1) / _RISING) * _cosine(step / s.steps)
            for group, size in zip(adam.param_groups, sizes, strict=True):
                group["lr"] = rate * size
            with torch.enable_grad():
                loss = pupil.loss(inputs)
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            if not bool(torch.isfinite(loss)):
                return
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            adam.step()


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _whole_inputs(case: Case) -> list[str]:
    """Convolutions (not grouped) and linear layers that keep all their inputs."""
    narrowed = {reader.name for reader in case.readers}
    return [
        name
        for name, module in case.model.named_modules()
        if isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1 and name not in narrowed
    ]


class _Pupil:
    """The narrow network beside the whole one, which it is to answer like."""

    def __init__(self, dense: nn.Module, narrow: nn.Module, layers: Sequence[str], inner: float) -> None:
        self.narrow, self._dense, self._layers, self._inner = narrow, dense, layers if inner else (), inner

    def loss(self, inputs: Any) -> torch.Tensor:
        """Of one batch: the mean over answers and, weighted, that over inner layers."""
        with torch.no_grad():
            wanted, read = self._run(self._dense, inputs)
        given, reads = self._run(self.narrow, inputs)
        total = _mean([relative_error(a, b) for a, b in zip(given, wanted, strict=True)])
        pairs = [pair for name in self._layers for pair in zip(reads[name], read[name], strict=True)]
        return total + self._inner * _mean([relative_error(a, b) for a, b in pairs]) if pairs else total

    def error(self, batches: Sequence[Any]) -> float:
        """The mean of the loss over batches."""
        return sum(float(self.loss(inputs)) for inputs in batches) / len(batches)

    def _run(self, model: nn.Module, inputs: Any) -> tuple[list[torch.Tensor], dict[str, list[torch.Tensor]]]:
        """Answers, and what every layer read, call by call."""
        reads: dict[str, list[torch.Tensor]] = {name: [] for name in self._layers}
        with _reading(model, self._layers, lambda name, x: reads[name].append(x)):
            args, keywords = call_with_copies(inputs)
            answers = [t for t in output_tensors(model(*args, **keywords)) if t.is_floating_point()]
        return answers, reads


@contextmanager
def _reading(model: nn.Module, layers: Sequence[str], note: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Inside, `note(name, input)` hears of every call of a layer."""
    with ExitStack() as stack:
        for name in layers:

            def hook(module: nn.Module, args: Any, keywords: Any, name: str = name) -> None:
                note(name, args[0] if args else keywords["input"])

            stack.callback(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).mean()


class _Images:
    """What is shown, in batches of a size of one's own where inputs are plain tensors, and what is held out."""

    def __init__(self, batches: Sequence[Any], size: int, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._size = size
        self._whole: torch.Tensor | None = None
        self._batches: list[Any] = []
        if all(isinstance(inputs, torch.Tensor) and inputs.ndim for inputs in batches):
            images = torch.cat(list(batches))
            held = torch.arange(1, len(images) + 1, device=images.device) % _EVERY == 0
            self._whole = images[~held]
            self.held: list[Any] = list(images[held].split(size)) or [images]
        else:
            self._batches = [b for k, b in enumerate(batches, 1) if k % _EVERY]
            self.held = list(batches[_EVERY - 1 :: _EVERY]) or list(batches)

    def shuffled(self) -> Iterator[Any]:
        """Batches without an end, all images once before any comes again."""
        while True:
            if self._whole is None:
                yield from (self._batches[k] for k in self._generator.permutation(len(self._batches)))
                continue
            order = torch.from_numpy(self._generator.permutation(len(self._whole))).to(self._whole.device)
            yield from (_ordered(self._whole, part) for part in order.split(self._size))


def _ordered(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Some of the images, lying in memory as all of them do."""
    together = images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last)
    return images[which].contiguous(memory_format=torch.channels_last if together else torch.contiguous_format)


ROW = RepairRow(
    name="distillation",
    summary="remaining weights trained, without labels, towards the outputs of the unpruned network",
    paper="Distilling the Knowledge in a Neural Network",
    year=2015,
    arxiv="1503.02531",
    needs="calibration",
    fidelity="squared errors of outputs and of the inputs of inner layers, on the calibration images, in place of "
    "softened class scores on a training set",
    factory=Distillation,
)
