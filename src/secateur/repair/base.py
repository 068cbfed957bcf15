"""The contract every repair keeps: a change of the surviving weights, made before the cut, usable after any criterion.

A repair works on a copy of the network as wide as the original in which everything the plan removes is zero, so that it
computes what the cut network will. What it writes into places that go is lost.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from secateur._hints import few
from secateur._protocols import BoolArray
from secateur._settings import Section, validated
from secateur.batches import Batches
from secateur.errors import ConfigError
from secateur.graph import Graph
from secateur.graph.channels import module_of
from secateur.graph.modules import clone_module
from secateur.graph.norms import sources
from secateur.plan import Plan
from secateur.repair.masking import Slices, alive, apply_masks
from secateur.statistics.narrow import uses_its_weight

Pairs = Iterable[tuple[Any, Any]]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NoOptions(Section):
    """For a repair without options."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A convolution (not grouped) or linear layer that loses inputs.

    inputs: which stay, along dimension 1 of its weight. norm: the batch norm that alone reads what it makes, or None.
    """

    name: str
    inputs: BoolArray
    norm: str | None

    def columns(self, weight: torch.Tensor) -> torch.Tensor:
        """Which columns of `weight.flatten(1)` stay."""
        return torch.from_numpy(self.inputs).repeat_interleave(weight[0, 0].numel()).to(weight.device)


class Case:
    """One network under repair.

    model: as wide as the original, zero where the plan cuts; repairs change it in place.
    original: makes the network before the cut. graph: its trace. plan: which channels stay.
    slices: kept indices of every tensor that is narrowed, by name. notes: sentences for the report.
    """

    def __init__(
        self,
        model: nn.Module,
        original: Callable[[], nn.Module],
        graph: Graph,
        plan: Plan,
        norms: Mapping[str, str] | None = None,
    ) -> None:
        """norms: `norms_of` the graph, where it is known already."""
        self.model, self.graph, self.plan = model, graph, plan
        self.slices: Slices = graph.slices(plan)
        self.notes: list[str] = []
        self._original, self._norms = original, norms
        self.clear()

    @cached_property
    def dense(self) -> nn.Module:
        """The network before the cut, to compare with; on the model's device."""
        device = next(self.model.parameters()).device
        return clone_module(self._original(), lambda tensor: tensor.detach().to(device)).eval()

    @cached_property
    def norms(self) -> Mapping[str, str]:
        """The norm that alone reads what a layer makes, by the layer."""
        return norms_of(self.graph) if self._norms is None else self._norms

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """The layers that lose inputs, in order of execution."""
        first = self.graph.recording.first_use
        found = []
        for name, module in self.model.named_modules():
            kept = self.slices.get(f"{name}.weight")
            if not isinstance(module, LAYERS) or getattr(module, "groups", 1) != 1 or kept is None or kept[1] is None:
                continue
            inputs = np.zeros(module.weight.shape[1], dtype=np.bool_)
            inputs[kept[1]] = True
            found.append(Reader(name, inputs, self.norms.get(name)))
        return tuple(sorted(found, key=lambda reader: first.get(f"{reader.name}.weight", 0)))

    def fitted(self, readers: Iterable[Reader]) -> tuple[Reader, ...]:
        """Those of these layers whose weights can be fitted; a note names what loses inputs and cannot."""
        found = [reader for reader in readers if uses_its_weight(self.dense.get_submodule(reader.name))]
        others = [*self._computed(), *(reader.name for reader in readers if reader not in found)]
        if others:
            said = (
                f"Layers whose weights are computed anew (standardised, normalised) were not repaired: {few(others)}."
            )
            self.notes += [said] if said not in self.notes else []
        return tuple(found)

    def _computed(self) -> list[str]:
        """Layers that lose inputs of a weight that is no parameter, and so are no readers."""
        names = [module_of(name) for name, kept in self.slices.items() if len(kept) > 1 and kept[1] is not None]
        modules = {name: self.dense.get_submodule(name) for name in dict.fromkeys(names)}
        return [name for name, m in modules.items() if isinstance(m, LAYERS) and "weight" not in m._parameters]

    def clear(self) -> None:
        """Set what the plan removes to zero, again if a repair wrote there."""
        apply_masks(self.model, alive(self.slices, dict(self.model.named_parameters())))

    @torch.no_grad()
    def add_constant(self, reader: Reader, amount: torch.Tensor) -> bool:
        """Add [outputs] to what a layer makes: to its bias, or to what its norm takes away; False where neither is."""
        layer: Any = self.model.get_submodule(reader.name)
        if layer.bias is not None:
            layer.bias += amount.to(layer.bias)
            return True
        norm: Any = None if reader.norm is None else self.model.get_submodule(reader.norm)
        if norm is None or norm.running_mean is None:
            return False
        norm.running_mean -= amount.to(norm.running_mean)
        return True

    def added(self, reader: Reader) -> torch.Tensor:
        """What repairs have added so far to what a layer makes, [outputs], in the place that `add_constant` takes."""
        layer, before = (model.get_submodule(reader.name) for model in (self.model, self.dense))
        now: Any = layer.bias
        was: Any = before.bias
        if now is None:
            norm, origin = (model.get_submodule(reader.norm or "") for model in (self.model, self.dense))
            now, was = origin.running_mean, norm.running_mean
        found: torch.Tensor = now - was
        return found


def norms_of(graph: Graph) -> dict[str, str]:
    """The norm that alone reads what a layer makes, by the layer."""
    return {layer: norm for norm, layer in sources(graph).of.items() if layer is not None}


class Repair:
    """One repair with its settings; a subclass overrides `apply`."""

    name: ClassVar[str]
    Config: ClassVar[type[Section]] = NoOptions

    def __init__(self, **settings: Any) -> None:
        """Check the settings; ConfigError for one that is unknown or out of range."""
        self.settings = validated(self.Config, settings, f"repair {self.name}")

    def apply(self, case: Case, batches: Pairs) -> None:
        """Change `case.model` in place.

        batches: (inputs, target), on any device, which may be gone through several times; targets are not looked at.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class RepairRow:
    """One repair for lists, documentation and the test matrix."""

    name: str
    summary: str
    paper: str
    year: int
    arxiv: str
    needs: Literal["nothing", "calibration"]
    fidelity: str
    factory: type[Repair]


def require_repairs(given: object) -> None:
    """ConfigError for names, or anything else, in place of a sequence of repairs."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(each, Repair) for each in given):
        raise ConfigError(f"{given!r:.60} are no repairs: give objects, such as secateur.repair.repairs('batchnorm').")


@torch.no_grad()
def mend(
    model: nn.Module,
    original: Callable[[], nn.Module],
    graph: Graph,
    plan: Plan,
    repairs: Sequence[Repair],
    batches: Iterable[Any],
) -> list[str]:
    """Apply repairs to `model`, a plain copy that is not yet cut, in place; returns sentences for the report.

    original: makes the network before the cut, for repairs that compare with it.
    graph: its trace. plan: which channels stay. repairs: in the order they are applied.
    batches: what they look at, in any form that `Batches` reads.
    """
    if not repairs:
        return []
    case, shown = Case(model, original, graph, plan), Batches(batches, graph.example_inputs)
    modes = [(module, module.training) for module in model.modules()]
    try:
        for repair in repairs:
            model.eval()
            repair.apply(case, _Shown(shown, repair.name))
            case.clear()
    finally:
        for module, mode in modes:
            module.training = mode
    plan.provenance["repairs"] = [{"name": r.name, **r.settings.model_dump(mode="json")} for r in repairs]
    return case.notes


class _Shown:
    """Batches as one repair sees them: refused when it looks and there are none."""

    def __init__(self, batches: Batches, name: str) -> None:
        self._batches, self._name = batches, name

    def __length_hint__(self) -> int:
        return operator.length_hint(self._batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        none = True
        for batch in self._batches:
            none = False
            yield batch
        if none:
            raise ConfigError(
                f"The repair {self._name!r} learns from data and none are given: pass batches of (inputs, target), "
                "which are data= of prune, and --data KIND:PATH on the command line."
            )
