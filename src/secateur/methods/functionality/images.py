"""Images that excite channels most, by gradient ascent on the image, and how strongly the output hangs on each channel.

A channel is seen where it is first read: behind its norm and activation, whatever code applies them. The network is
run no further than that. In evaluation samples do not meet, so that a chunk of channels is one batch of images.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_max, global_sum
from secateur._protocols import IntArray
from secateur.errors import ConfigError
from secateur.graph.channels import Member
from secateur.graph.modules import map_tensors, output_tensors
from secateur.methods.kit.answers import kind_of
from secateur.statistics.gather import Collector, count, untouched

Objective = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class View:
    """Where a group is seen: at `index[c]` of what `reader` reads; `before`: the layer or norm in front of that.

    The channels of `before` are `dim` and `inside[c]`; it stands in where an activation lets nothing through.
    """

    reader: str
    index: IntArray
    before: str
    dim: int
    inside: IntArray


@dataclass(frozen=True)
class Ascent:
    """How images climb.

    steps: of length `rate` (L2) along the gradient. sigma: of the Gaussian blur after each step, in pixels; 0: none.
    low, high: [colours], what pixels may be; None: anything. momentum: share of a step that the next goes on with, in
    steps that get shorter along half a cosine, from twice `rate`; 0: all are of the same length.
    """

    steps: int
    rate: float
    sigma: float = 0.4
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    momentum: float = 0.0

    def length(self, step: int) -> float:
        """Of one step, counted from 0."""
        return self.rate * (1 + math.cos(math.pi * step / self.steps) if self.momentum else 1.0)


def ascend(objective: Objective, start: torch.Tensor, ascent: Ascent) -> torch.Tensor:
    """Images [n, colours, height, width] from `start` that make objective(images) [n] large, each its own."""
    images = start.detach().clone()
    onward = torch.zeros_like(images)
    for step in range(ascent.steps):
        with torch.enable_grad():
            images.requires_grad_()
            (gradient,) = torch.autograd.grad(objective(images).sum(), images)
        length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        onward = ascent.momentum * onward + gradient / (length + 1e-8)
        images = blurred(images.detach() + ascent.length(step) * onward, ascent.sigma)
        if ascent.low is not None:
            images = torch.maximum(images, ascent.low.to(images).view(-1, 1, 1))
        if ascent.high is not None:
            images = torch.minimum(images, ascent.high.to(images).view(-1, 1, 1))
    return images


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images under a Gaussian of 3x3 pixels."""
    if sigma <= 0:
        return images
    line = torch.exp(-(torch.arange(-1.0, 2.0) ** 2) / (2 * sigma**2)).to(images)
    kernel = (line[:, None] * line / line.sum() ** 2).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def directions(images: torch.Tensor, *, anywhere: bool = False) -> torch.Tensor:
    """Unit vectors [n, pixels] to compare images by: without the mean of each colour, of length 1 (or 0).

    anywhere: the magnitudes of their spectra instead, which are the same wherever a texture lies.
    """
    flat = images - images.mean((2, 3), keepdim=True)
    if anywhere:
        flat = torch.fft.fft2(flat).abs()
    flat = flat.flatten(1)
    result: torch.Tensor = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return result


class _Enough(Exception):
    """All that was to be seen has been seen."""


class Maps:
    """The activations of one group's channels, as far as the network must run for them."""

    def __init__(self, model: nn.Module, view: View) -> None:
        self.model, self.view = model, view
        self._channels: IntArray = np.empty(0, dtype=np.int64)
        self._own = self._inside = torch.empty(0)

    @contextmanager
    def open(self) -> Iterator[Maps]:
        """Inside, the network stops where the group is read."""
        reader, before = (self.model.get_submodule(name) for name in (self.view.reader, self.view.before))
        handles = [
            before.register_forward_hook(self._before),
            reader.register_forward_pre_hook(self._read, with_kwargs=True),
        ]
        try:
            with untouched(self.model):
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def of(self, channels: IntArray) -> Objective:
        """The objective a_i of channel i = channels[n] for image n: the mean of its map.

        Where the activation in front of the map lets nothing through, that of what comes before it.
        """

        def objective(images: torch.Tensor) -> torch.Tensor:
            self._channels = channels
            with suppress(_Enough):
                self.model(images.clone())  # which a forward may write over
            return torch.where(self._own > 0, self._own, self._inside)

        return objective

    def _dim(self) -> int:
        return -1 if isinstance(self.model.get_submodule(self.view.reader), nn.Linear) else 1

    def _before(self, module: nn.Module, args: Any, output: Any) -> None:
        # now, for what follows may write into it
        self._inside = _means(output_tensors(output)[0], self.view.dim, self.view.inside[self._channels])

    def _read(self, module: nn.Module, args: Any, keywords: Any) -> None:
        maps = args[0] if args else keywords["input"]
        self._own = _means(maps, self._dim(), self.view.index[self._channels])
        raise _Enough


def _means(maps: torch.Tensor, dim: int, index: IntArray) -> torch.Tensor:
    """[n]: the mean over positions of sample n's map at index[n]."""
    last = maps.movedim(dim, -1)
    rows = last.reshape(len(index), -1, last.shape[-1]).mean(1)
    return rows.gather(1, torch.from_numpy(np.ascontiguousarray(index)).to(rows.device)).mean(1)


@torch.no_grad()
def maximise(
    model: nn.Module,
    view: View,
    start: torch.Tensor,
    ascent: Ascent,
    *,
    chunk: int = 64,
    layout: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """Images [width, colours, height, width], one for each channel of a group, all from `start` [colours, ...].

    chunk: channels in one batch; it bounds memory, and the images do not depend on it. layout: of images in memory.
    """
    chunks = np.split(np.arange(len(view.index)), range(chunk, len(view.index), chunk))
    with Maps(model, view).open() as maps:
        starts = (start.expand(len(c), *start.shape).contiguous(memory_format=layout) for c in chunks)
        return torch.cat([ascend(maps.of(c), s, ascent) for c, s in zip(chunks, starts, strict=True)])


class Gamma(Collector):
    """Sums over samples of γ: how strongly Z, what the loss given to `gather` means for one sample, hangs on a channel.

    sums: float64 [channels], group by group.
    """

    gradients: ClassVar[bool] = True

    def __init__(self, kind: Literal["gradient", "taylor"]) -> None:
        self.kind = kind
        self.sums: list[torch.Tensor] = []
        self.samples = 0

    def see(self, output: Any, target: Any) -> None:
        """Count samples."""
        self.samples += len(output_tensors(output)[0])

    def total(self) -> None:
        """Add up over processes."""
        self.sums = [global_sum(total) for total in self.sums]
        if self.sums:
            self.samples = int(global_sum(torch.tensor(self.samples, device=self.sums[0].device)))

    def means(self) -> list[torch.Tensor]:
        """γ of every channel, group by group."""
        return [total / max(self.samples, 1) for total in self.sums]


class Contribution(Gamma):
    """γ from maps: the mean over positions of |dZ / dA| (or |A dZ / dA|), for every view's channels.

    Memory: one number a channel, and one backward pass.
    """

    def __init__(self, views: Sequence[View], kind: Literal["gradient", "taylor"] = "gradient") -> None:
        super().__init__(kind)
        self.views = views
        self._positions: dict[str, int] = {}  # of what stands before each view: pooling behind it changes nothing

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hook behind what comes before, and in front of every reader."""
        device = next(model.parameters()).device
        self.sums = [torch.zeros(len(view.index), dtype=torch.float64, device=device) for view in self.views]
        for name, dim in {view.before: view.dim for view in self.views}.items():
            yield model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name, dim=dim: self._size(name, dim, output)
            )
        for name in dict.fromkeys(view.reader for view in self.views):
            layer = model.get_submodule(name)
            dim = -1 if isinstance(layer, nn.Linear) else 1
            yield layer.register_forward_pre_hook(
                lambda _, args, keywords, name=name, dim=dim: self._read(name, dim, args, keywords), with_kwargs=True
            )

    def _size(self, name: str, dim: int, output: Any) -> None:
        tensor = output_tensors(output)[0]
        self._positions[name] = tensor.numel() // (tensor.shape[0] * tensor.shape[dim])

    def _read(self, name: str, dim: int, args: Any, keywords: Any) -> None:
        maps: torch.Tensor = args[0] if args else keywords["input"]
        if maps.requires_grad:
            kept = maps.detach().clone() if self.kind == "taylor" else None
            maps.register_hook(lambda slope: self._add(name, dim, slope, kept))

    def _add(self, name: str, dim: int, slope: torch.Tensor, maps: torch.Tensor | None) -> None:
        size = (slope if maps is None else slope * maps).abs().movedim(dim, -1)
        sums = size.reshape(-1, size.shape[-1]).sum(0, dtype=torch.float64)
        for view, total in zip(self.views, self.sums, strict=True):
            if view.reader == name:
                index = torch.from_numpy(np.ascontiguousarray(view.index)).to(sums.device)
                total += sums[index].sum(1) / self._positions[view.before]


class WeightContribution(Gamma):
    """γ from weights: the mean of |dZ / dW| (or |W dZ / dW|) over a channel's weights in a kernel, added over kernels.

    Absolute values are those of single samples, so that batches must be of one, as `singly` makes them: the result is
    the same whatever their size was, in any network, for gradients are autograd's own.
    Memory: the activations of one sample, and one gradient of the kernels.
    """

    def __init__(self, kernels: Sequence[Sequence[Member]], kind: Literal["gradient", "taylor"] = "gradient") -> None:
        """kernels: of each group, the places in parameters of the weights that make its channels."""
        super().__init__(kind)
        self.kernels = kernels
        self._parameters: dict[str, nn.Parameter] = {}

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Let gradients of the kernels be taken; `gather` puts the flags back, and the handles what was in `grad`."""
        self._parameters = {m.name: model.get_parameter(m.name) for members in self.kernels for m in members}
        self.sums = []
        for members in self.kernels:
            device = self._parameters[members[0].name].device
            self.sums.append(torch.zeros(len(members[0].index), dtype=torch.float64, device=device))
        for parameter in self._parameters.values():
            yield _Aside(parameter)
            parameter.requires_grad_()

    def see(self, output: Any, target: Any) -> None:
        """Add |dZ / dW| of one sample."""
        super().see(output, target)
        if len(output_tensors(output)[0]) != 1:
            raise ConfigError("Gradients of weights are those of one sample: pass batches of one, singly(batches).")
        for members, total in zip(self.kernels, self.sums, strict=True):
            for member in members:
                parameter = self._parameters[member.name]
                if parameter.grad is not None:  # else it took no part
                    size = (parameter.grad if self.kind == "gradient" else parameter.grad * parameter.detach()).abs()
                    rows = size.movedim(member.dim, 0).flatten(1).mean(1, dtype=torch.float64)
                    total += rows[torch.from_numpy(np.ascontiguousarray(member.index)).to(rows.device)].mean(1)
        for parameter in self._parameters.values():
            parameter.grad = None


class _Aside(RemovableHandle):
    """The gradient of a parameter is put aside until this is removed."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__(OrderedDict())  # of no hooks: there is something else to undo
        self._parameter, self._before = parameter, parameter.grad
        parameter.grad = None

    def remove(self) -> None:
        self._parameter.grad = self._before


def singly(batches: Iterable[Any]) -> Iterator[Any]:
    """The same samples in batches of one each. What is no pair is passed on, for `gather` to complain about."""
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            yield batch
            continue
        samples = count(batch[0])
        for number in range(samples):
            yield map_tensors(batch, partial(_sample, number, samples))


def _sample(number: int, samples: int, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[number : number + 1] if tensor.dim() and len(tensor) == samples else tensor


class Extremes(Collector):
    """The smallest and largest value of every colour: what pixels may be."""

    low: torch.Tensor
    high: torch.Tensor

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Look at what the network is given."""
        self._found: list[torch.Tensor] = []
        yield model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: nn.Module, args: Any, keywords: Any) -> None:
        images = output_tensors([args, keywords])[0].detach().transpose(0, 1).flatten(1)
        self._found = [torch.stack([*self._found, torch.stack([images.amax(1), -images.amin(1)])]).amax(0)]

    def total(self) -> None:
        """The extremes of all processes; one that saw nothing gives way."""
        found = self._found[0] if self._found else None
        if found is None:
            raise ConfigError("There are fewer batches than processes: give at least one batch to each.")
        both = global_max(found)
        self.high, self.low = both[0], -both[1]


def true_logit(output: Any, target: Any) -> torch.Tensor:
    """The mean logit of the true classes, or of the predicted ones where targets do not tell: for `gather`."""
    logits = output_tensors(output)[0]
    if logits.dim() < 2:
        raise ConfigError(
            f"The output is {tuple(logits.shape)} and not [samples, classes, ...], so that there is no logit to look "
            "at: choose another method."
        )
    if logits.dim() == 2 and kind_of(logits, target) == "classes":
        labels = (target.view_as(logits).argmax(1) if target.numel() == logits.numel() else target.flatten()).long()
        known = (labels >= 0) & (labels < logits.shape[1])
        own = logits.gather(1, torch.where(known, labels, 0)[:, None])[:, 0]
        return torch.where(known, own, logits.amax(1)).mean()
    return logits.amax(1).mean()
