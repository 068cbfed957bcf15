"""Least squares: every layer that loses inputs is fitted anew to what it answered before the cut.

He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, 2017 (arXiv:1707.06168), second step. Layer
by layer, in order of execution, at a few random places of every image,

    W', b' = argmin |Y - [X_S, 1] [W'ᵀ; b']|²

X_S: patches of the surviving inputs in the network as repaired so far; Y: what the layer answered in the whole network,
so that errors of earlier layers are made up for by later ones. Where a shortcut Y1 is added to the answer and is there
already, what the cut did to it is made up for as well: Y <- Y + (Y1 - Y1') sqrt(var + eps) / gamma, with the
scale of the batch norm between layer and sum, if there is one.

Where this differs from the paper, and why:
    A ridge pulls towards the weights as they were and not towards zero, so that what few images say nothing about
    stays. Where a layer has neither a bias nor a batch norm behind it, there is no constant. Layers that run more than
    once, or read channels in groups, are left as they are. Put it before `batchnorm`: it fits a layer's own answers,
    which a norm measured anew no longer belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateur._hints import few
from secateur._progress import follow
from secateur._settings import Section
from secateur.repair.base import Case, Pairs, Reader, Repair, RepairRow
from secateur.repair.masking import along
from secateur.statistics.gather import pair, rows, untouched
from secateur.statistics.lockstep import Standing, Stop, together, visits
from secateur.statistics.maps import MapSums, map_sums
from secateur.statistics.narrow import narrow, taken
from secateur.statistics.samples import PatchSums, Sampler, least_squares, patches_at, ridge_for
from secateur.statistics.shortcuts import shortcuts


class FitSettings(Section):
    """How layers are fitted to their former answers, here and by methods that go layer by layer.

    Defaults: the paper's positions; the ridge of the specification.
    """

    images: int = Field(5000, ge=1, description="most calibration images used")
    positions: int = Field(10, ge=1, description="random output positions of each, for each layer")
    per_column: int = Field(
        10, ge=0, description="patches for each weight of a filter, at least: more positions of few images"
    )
    ridge: float = Field(
        1e-6,
        ge=0,
        le=1,
        description="pull towards the weights as they were, over the mean diagonal; more if images are few",
    )
    shortcuts: bool = Field(True, description="also make up for what happened to the shortcut added to an answer")


class LeastSquaresSettings(FitSettings):
    """What a fit needs, and where its random positions come from."""

    seed: int = Field(0, ge=0, description="of the positions")


class LeastSquares(Repair):
    """Fit every layer that loses inputs to its former answers."""

    name = "least_squares"
    Config = LeastSquaresSettings
    settings: LeastSquaresSettings

    def apply(self, case: Case, batches: Pairs) -> None:
        """One pass over all images at once, held up in front of every layer."""
        s = self.settings
        shown = [inputs for inputs, _ in limited(batches, s.images, case.dense)]
        whole = case.fitted(case.readers)
        readers = {reader.name: reader for reader in whole}
        runs = visits(case.dense, shown[0], readers)
        readers = {name: reader for name, reader in readers.items() if runs.get(name) == 1}
        left = [reader.name for reader in whole if reader.name not in readers]
        if left:
            case.notes.append(f"Least squares leaves layers that do not run just once as they are: {few(left)}.")
        norms = {name: reader.norm for name, reader in readers.items()}
        held = shortcuts(case.dense, shown[0], readers, norms) if s.shortcuts else {}
        layers = [case.dense.get_submodule(name) for name in readers]
        counts = [rows(inputs) for inputs in shown]
        sampler = Sampler(counts, s.positions, s.seed, per_column=s.per_column, layers=layers)
        stops = together((case.dense, case.model), shown, readers, held)
        with ExitStack() as stack:
            for reader in readers.values():
                layer = case.model.get_submodule(reader.name)
                stack.callback(narrow(layer, partial(_inputs, case, reader), _outputs(case, reader)))
            for stop in follow("layers", stops, len(readers)):
                self._fit(case, readers[stop.layer], stop, sampler)

    def _fit(self, case: Case, reader: Reader, stop: Stop, sampler: Sampler) -> None:
        layer: Any = case.model.get_submodule(reader.name)
        has_constant = case.add_constant(reader, torch.zeros(len(layer.weight), device=layer.weight.device))
        inputs, outputs = _inputs(case, reader), _outputs(case, reader)
        moments = patch_sums(case.model, stop, sampler, reader.norm, inputs, outputs)
        constant = fit(layer, moments, inputs[None], ridge=self.settings.ridge, constant=has_constant, outputs=outputs)
        if has_constant:
            if layer.bias is None:  # a bias is part of what was fitted, and what a norm takes away is not
                constant = constant - case.added(reader).to(constant)
            case.add_constant(reader, constant)


def _inputs(case: Case, reader: Reader) -> torch.Tensor:
    """Which inputs of a layer stay, a mask."""
    return torch.from_numpy(reader.inputs).to(next(case.model.parameters()).device)


def _outputs(case: Case, reader: Reader) -> torch.Tensor:
    """Which outputs of a layer stay, a mask; the others are lost, and have no say in how strong the pull is."""
    weight: Any = case.model.get_submodule(reader.name).weight
    kept = case.slices[f"{reader.name}.weight"][0]
    if kept is None:
        return torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    return along(kept, 0, weight).flatten()


@torch.no_grad()
def fit(
    layer: Any,
    moments: PatchSums,
    inputs: torch.Tensor,
    *,
    ridge: float,
    constant: bool,
    outputs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give a layer the weights nearest to the answers, zero where inputs go; returns the constant [outputs].

    moments: of all inputs, or, of a layer that is not grouped, of those that stay. inputs: which stay, [groups, inputs
    of a group]. ridge: at least; see `ridge_for`. constant: whether there is one. outputs: those that moments are of
    and that are fitted, a mask; None: all.
    """
    kernel = layer.weight[0, 0].numel()
    stays = inputs.repeat_interleave(kernel, 1)
    weight = layer.weight.flatten(1)
    seen = stays[0] if moments.x.shape[1] < weight.shape[1] else torch.ones_like(stays[0])
    made = torch.ones_like(weight[:, 0], dtype=torch.bool) if outputs is None else outputs
    kept, before = stays[:, seen], weight[made][:, seen]
    chosen = ridge_for(moments, before, kept, ridge=ridge, constant=constant)
    fitted, shift = least_squares(moments, before, kept, ridge=chosen, constant=constant)
    weight = torch.zeros_like(weight)
    weight[made] = weight[made].index_copy(1, seen.nonzero().squeeze(1), fitted.to(weight))
    layer.weight.copy_(weight.view_as(layer.weight))
    return shift.new_zeros(len(weight)).index_copy(0, made.nonzero().squeeze(1), shift)


def patch_sums(
    model: nn.Module,
    stop: Stop,
    sampler: Sampler,
    norm: str | None,
    inputs: torch.Tensor | None = None,
    outputs: torch.Tensor | None = None,
) -> PatchSums:
    """The moments of what a layer reads now and of what it should answer to that.

    model: the one that reads, of those that stand there the last; the first one answers.
    inputs, outputs: of a layer that is not grouped, the ones looked at (masks); None: all.
    """
    standing = stop.batches()
    first = next(standing)
    layer: Any = model.get_submodule(stop.layer)
    each, batches = sampler.few(layer, first.inputs[0]), chain((first,), standing)
    like = _like(layer, first.inputs[-1][:1], sampler, inputs)
    blocks = samples(model, stop.layer, batches, sampler, norm, inputs, outputs, maps=like is not None)
    return PatchSums.of(blocks, each) if like is None else map_sums(layer, blocks, like, halves=bool(each))


def _like(layer: Any, x: torch.Tensor, sampler: Sampler, inputs: torch.Tensor | None) -> torch.Tensor | None:
    """What this layer reads, if whole maps of it are less work than patches."""
    if not isinstance(layer, _ConvNd) or layer.groups > 1 or layer.padding_mode != "zeros" or x.dtype != torch.float32:
        return None
    like = x if inputs is None else taken(x, 1, inputs.nonzero().squeeze(1))
    return like if sampler.whole(layer, x) and MapSums.may_pay(layer, like) and MapSums(layer, like).pays else None


def samples(
    model: nn.Module,
    layer: str,
    standing: Iterable[Standing],
    sampler: Sampler,
    norm: str | None,
    inputs: torch.Tensor | None = None,
    outputs: torch.Tensor | None = None,
    *,
    maps: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Patches of what a layer reads now, and what it should answer to them (its bias taken away), batch by batch.

    maps: not patches, but the inputs themselves.
    """
    now: Any = model.get_submodule(layer)
    last = isinstance(now, nn.Linear)
    scale = norm_scale(None if norm is None else model.get_submodule(norm))
    reads, makes = (None if mask is None or bool(mask.all()) else mask for mask in (inputs, outputs))
    numbers = now.weight[0].numel() * getattr(now, "groups", 1)
    for number, batch in enumerate(standing):
        answer, x = batch.answer, batch.inputs[-1]
        first, second = batch.held[0], batch.held[-1]
        for part, places in sampler.places(now, number, x).parts(numbers):
            wanted = places.values(answer[part], channels_last=last)
            if first is not None and second is not None:
                was, became = (places.values(held[part], channels_last=last) for held in (first, second))
                wanted = wanted + (was - became) * scale
            if now.bias is not None:
                wanted = wanted - now.bias
            if maps:
                seen = x[part] if reads is None else taken(x[part], 1, reads.nonzero().squeeze(1))
            else:
                seen = patches_at(now, x[part], places, reads)
            yield seen, wanted if makes is None else wanted[:, makes]


def norm_scale(norm: Any) -> torch.Tensor | float:
    """What a difference behind a batch norm is in front of it; zero where the norm lets nothing through."""
    if norm is None:
        return 1.0
    if norm.running_var is None:
        return 0.0
    deviation = (norm.running_var + norm.eps).sqrt()
    if norm.weight is None:
        return torch.as_tensor(deviation)
    closed = norm.weight.abs() < 1e-6 * deviation
    return torch.where(closed, 0.0, deviation / torch.where(closed, 1.0, norm.weight))


def limited(batches: Pairs, images: int, model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Whole batches, (inputs, target) on the model's device, until there are so many images.

    On a CPU, images lie with their channels together, in which convolutions and patches take about half the time,
    unless the model's code does not run on such.
    """
    device = next(model.parameters()).device
    seen, together = 0, device.type == "cpu"
    for batch in batches:
        if seen >= images:
            return
        inputs, target = pair(batch, device)
        together = together and isinstance(inputs, torch.Tensor) and inputs.ndim == 4
        if together and not seen:
            together = _runs(model, inputs[:1].to(memory_format=torch.channels_last))
        seen += rows(inputs)
        yield (inputs.to(memory_format=torch.channels_last) if together else inputs), target


def _runs(model: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether the model takes such inputs; what else is wrong with them shows where all are used."""
    try:
        with untouched(model), torch.no_grad():
            model(inputs.clone())
    except (RuntimeError, ValueError):  # ValueError: a norm over the batch, of one image
        return False
    return True


ROW = RepairRow(
    name="least_squares",
    summary="layers that lose inputs, fitted to their former outputs by least squares",
    paper="Channel Pruning for Accelerating Very Deep Neural Networks",
    year=2017,
    arxiv="1707.06168",
    needs="calibration",
    fidelity="written from the official code and a re-implementation, without the paper's text: reconstruction, "
    "sampling, bias and shortcut correction; added here: a ridge that pulls towards the old weights",
    factory=LeastSquares,
)
