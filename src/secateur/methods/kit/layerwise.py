"""Going through a network layer by layer: at each, choose which of the channels it reads first stay, and fit it anew.

What a layer reads comes from the network as pruned so far, what it should answer from the whole one. All calibration
images are one pass, held up in front of every layer (`secateur.statistics.lockstep`); in front of the first layers,
where that would take more than `MEMORY`, they come batch by batch instead, anew for each layer. The model itself is
left alone; what was fitted is put into the copy that is cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._hints import few
from secateur._progress import follow
from secateur._protocols import BoolArray, IntArray
from secateur.errors import ConfigError, ModelError
from secateur.graph.modules import clone_module
from secateur.graph.norms import sources
from secateur.graph.readers import readers
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.kit.floors import keep_streams
from secateur.methods.kit.shares import proportional, unspent
from secateur.plan import Plan
from secateur.repair.base import Case, Reader
from secateur.repair.least_squares import FitSettings, fit, limited, patch_sums
from secateur.statistics.gather import count
from secateur.statistics.lockstep import Made, Stop, crowded, together
from secateur.statistics.narrow import narrow, uses_its_weight
from secateur.statistics.samples import PatchSums, Sampler, readable
from secateur.statistics.shortcuts import shortcuts

#: Bytes that activations of all images may take at once.
MEMORY = 4 << 30


class LayerwiseSettings(FitSettings, Settings):
    """What such methods have in common."""

    streams: bool = Field(False, description="cut residual streams too; else only if the budget is out of reach")
    shares: dict[str, float] = Field(
        default_factory=dict, description="{module pattern: how much larger the share is that stays}; 1 for the others"
    )


@dataclass
class Work:
    """One calibration under way. shown: inputs of all batches; widths: how many channels of every group stay."""

    case: Case
    shown: list[Any]
    targets: list[Any]
    loss: Loss
    sampler: Sampler
    widths: dict[str, int]


class Layerwise(Method):
    """The way through the layers; a subclass chooses."""

    settings: LayerwiseSettings
    comparable = "none"

    def prepare(self) -> None:
        """See which layers read which channels, and how many of them may stay."""
        self._tables, others = readers(self.graph)
        runs = Counter(call.module for call in self.graph.recording.calls if call.weight is not None)
        widths = self.graph.widths()
        starts = (np.cumsum(widths) - widths).tolist()
        self._channels = {
            g.name: np.arange(a, a + g.width, dtype=np.int64) for g, a in zip(self.graph.groups, starts, strict=True)
        }
        for name, table in list(self._tables.items()):
            layer = self.model.get_submodule(name)
            if runs[name] != 1 or not readable(layer) or not uses_its_weight(layer):
                others += [group for group, mine in self._channels.items() if np.isin(mine, table).any()]
                del self._tables[name]
        self._keep_whole(list(dict.fromkeys(others)))
        norms = sources(self.graph).of
        self._norms = {layer: norm for norm, layer in norms.items() if layer is not None}
        self._masks: dict[str, BoolArray] = {}
        self._fitted: dict[str, torch.Tensor] = {}
        if self.normalise != "none":
            self.notes.append(f"Scores are compared as they are, so normalise={self.normalise!r} was not applied.")
            self.normalise = "none"

    def _keep_whole(self, others: list[str]) -> None:
        """Keep what cannot be chosen from, and residual streams if the budget allows."""
        if len(others) == len(self.graph.groups):
            raise ModelError(
                f"The method {self.name!r} looks at convolutions and linear layers that run once, and none of the "
                f"channels of {type(self.model).__name__} is read by such layers alone: choose another method."
            )
        if others:
            self.notes.append(
                "Groups that something else reads as well, or a layer that computes its weights anew, stay whole: "
                f"{few(others)}."
            )
            self.constraints = self.constraints.keeping(others)
        if not self.settings.streams:
            keep_streams(self)

    def _widths(self) -> dict[str, int]:
        return proportional(self.graph, self.graph.cost(), self.budget, self.constraints, self.settings.shares)

    def _check_reach(self) -> None:
        self._widths()

    # ------------------------------------------------------------------------------------------------- from the data

    @torch.no_grad()
    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Choose and fit all layers in one pass over all images at once."""
        work = self._work(batches, loss)
        self._masks = {name: np.ones(len(mine), dtype=np.bool_) for name, mine in self._channels.items()}
        self._survey(work)
        chosen: set[str] = set()
        fitted: set[str] = set()
        with ExitStack() as stack:
            for name in self._tables:
                stack.callback(narrow(work.case.model.get_submodule(name), partial(self._read, work, name, fitted)))
            for stop in follow("layers", self._stops(work, list(self._tables)), len(self._tables)):
                self._visit(work, stop, chosen)
                fitted.add(stop.layer)
        self._remember(work.case.model)

    def _read(self, work: Work, name: str, fitted: set[str]) -> torch.Tensor | None:
        """Which inputs a layer has weights for, once it is fitted: None, all."""
        layer: Any = work.case.model.get_submodule(name)
        return self._inputs(layer, self._tables[name])[0] if name in fitted and _groups(layer) == 1 else None

    def _work(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> Work:
        s = self.settings
        pairs = list(limited(batches, s.images, self.model))
        if not pairs:
            raise ConfigError(f"The method {self.name!r} has been shown no batch: give at least one (inputs, target).")
        shown = [inputs for inputs, _ in pairs]
        case = Case(self._copy(), self._copy, self.graph, Plan({}))
        case.model.eval()
        layers = [case.dense.get_submodule(name) for name in self._tables]
        counts = [count(inputs) for inputs in shown]
        if sum(counts) < s.images:
            self._say(f"The method {self.name!r} looks at up to {s.images} images and was shown {sum(counts)}.")
        sampler = Sampler(counts, s.positions, self.seed, per_column=s.per_column, layers=layers)
        return Work(case, shown, [target for _, target in pairs], loss, sampler, self._widths())

    def _copy(self) -> nn.Module:
        return clone_module(self.model, lambda tensor: tensor.detach().clone())

    def _say(self, note: str) -> None:
        """Put a sentence into the notes, once."""
        self.notes += [note] if note not in self.notes else []

    def _stops(self, work: Work, layers: Sequence[str]) -> Iterable[Stop]:
        """All images in front of one layer after the other, in the whole network and in the one as pruned so far."""
        held = shortcuts(work.case.dense, work.shown[0], layers, self._norms) if self.settings.shortcuts else {}
        return self._together((work.case.dense, work.case.model), work, layers, held)

    def _together(
        self, models: Sequence[nn.Module], work: Work, layers: Sequence[str], held: Mapping[str, Made]
    ) -> Iterable[Stop]:
        """`lockstep.together`, within `MEMORY`."""
        anew = crowded(models[0], work.shown, layers, MEMORY / len(models))
        if anew and len(models) > 1:
            self._say(
                f"All images together would take more than {MEMORY / 2**30:g} GiB in front of the first {len(anew)} "
                f"of {len(layers)} layers: for each of these they go through the network anew."
            )
        return together(models, work.shown, layers, held, anew)

    def _survey(self, work: Work) -> None:
        """Learn from the whole network, before anything is chosen."""

    def _choose(self, work: Work, stop: Stop, moments: PatchSums, group: str, width: int) -> BoolArray:
        """The mask of one group that `stop.layer` is the first to read."""
        raise NotImplementedError

    def _visit(self, work: Work, stop: Stop, chosen: set[str]) -> None:
        """Choose the channels that this layer reads first, and fit its weights for those that stay."""
        layer: Any = work.case.model.get_submodule(stop.layer)
        layer.weight.mul_(self._kept_of(layer, stop.layer))  # without what went before
        fresh = [g for g, mine in self._channels.items() if g not in chosen and np.isin(mine, self._table(stop)).any()]
        chosen.update(fresh)
        fresh = [group for group in fresh if work.widths[group] < len(self._channels[group])]
        moments = self._moments(work, stop, anew=bool(fresh))
        for group in fresh:
            self._masks[group] = self._choose(work, stop, moments, group, work.widths[group])
        self._fit(work, stop, moments, anew=bool(fresh))

    def _moments(self, work: Work, stop: Stop, *, anew: bool) -> PatchSums:
        """Of what the layer reads and should answer. anew: channels are to be chosen with them, so of all there are."""
        layer: Any = work.case.model.get_submodule(stop.layer)
        inputs = None if anew or _groups(layer) > 1 else self._inputs(layer, self._table(stop))[0]
        return patch_sums(work.case.model, stop, work.sampler, self._norms.get(stop.layer), inputs)

    def _table(self, stop: Stop) -> IntArray:
        return self._tables[stop.layer]

    def _fit(self, work: Work, stop: Stop, moments: PatchSums, *, anew: bool) -> None:
        """Least squares on what stays. anew: channels have been chosen just now."""
        layer: Any = work.case.model.get_submodule(stop.layer)
        constant, inputs = self._has_constant(stop.layer), self._inputs(layer, self._table(stop))
        amount = fit(layer, moments, inputs, ridge=self.settings.ridge, constant=constant)
        if constant:
            self._shift(work.case, stop.layer, amount)

    def _has_constant(self, layer: str) -> bool:
        norm: Any = self.model.get_submodule(self._norms[layer]) if layer in self._norms else None
        return self.model.get_submodule(layer).bias is not None or (norm is not None and norm.running_mean is not None)

    def _shift(self, case: Case, layer: str, amount: torch.Tensor) -> None:
        """Add a constant to what a layer answers."""
        module: Any = case.model.get_submodule(layer)
        inputs = np.ones(module.weight.shape[1], dtype=np.bool_)
        case.add_constant(Reader(layer, inputs, self._norms.get(layer)), amount)

    def _inputs(self, layer: Any, table: IntArray) -> torch.Tensor:
        """Which inputs of a layer are channels that stay, [groups, inputs of a group]."""
        kept = np.concatenate([self._masks[g.name] for g in self.graph.groups] + [np.ones(1, dtype=np.bool_)])
        return torch.from_numpy(kept[table]).view(_groups(layer), -1).to(layer.weight.device)

    def _columns(self, layer: Any, table: IntArray) -> torch.Tensor:
        """Which columns of a layer's weights belong to channels that stay, [groups, columns]."""
        return self._inputs(layer, table).repeat_interleave(layer.weight[0, 0].numel(), 1)

    def _kept_of(self, layer: Any, name: str) -> torch.Tensor:
        """The same in the shape of the weights."""
        columns = self._columns(layer, self._tables[name])
        return columns.repeat_interleave(len(layer.weight) // len(columns), 0).view_as(layer.weight)

    def _remember(self, model: nn.Module) -> None:
        """Keep what was fitted: weights, and constants in biases or running means."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        layers = [*self._tables, *(layer for layer in self._norms if layer not in self._tables)]
        names = [f"{layer}.{what}" for layer in layers for what in ("weight", "bias")]
        names += [f"{norm}.running_mean" for norm in self._norms.values()]
        self._fitted = {name: tensors[name].detach().clone() for name in names if name in tensors}

    # --------------------------------------------------------------------------------------------------- the result

    def plan(self) -> Plan:
        """The channels chosen."""
        self._need_data()
        plan = Plan({name: mask.copy() for name, mask in self._masks.items()})
        why = "the next channels would not fit, or give a group more than its share"
        left = unspent(self.graph, self.budget, plan.widths, why)
        plan.provenance.update({"criterion": self.name, "budget": self.budget.as_dict(), **left})
        return plan

    def _need_data(self) -> None:
        if not self._masks:
            raise ConfigError(
                f"The method {self.name!r} has seen no data: call collect(batches, loss) before finish()."
            )

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Put the fitted weights in."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, value in self._fitted.items():
            tensors[name].copy_(value)


def _groups(layer: Any) -> int:
    """Of a convolution; a linear layer is one."""
    return int(getattr(layer, "groups", 1))
