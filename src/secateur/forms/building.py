"""Forms in a model: built in place of the cut layers, taken out again, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from secateur._files import shown
from secateur.errors import PlanError
from secateur.forms.base import LayerForm, Parts
from secateur.forms.kinds import FORMS
from secateur.graph import Cost, Graph
from secateur.graph.channels import Bools

Tensors = Mapping[str, Mapping[str, torch.Tensor]]


class Formed(Protocol):
    """Anything with masks by group and forms by layer: a `Plan`."""

    @property
    def masks(self) -> Mapping[str, Bools]: ...
    @property
    def forms(self) -> Mapping[str, LayerForm]: ...


def build_into(model: nn.Module, forms: Mapping[str, LayerForm], *, plain: bool = False) -> None:
    """Put what the forms build in place of the layers of a cut `model`.

    Args:
        model: a network after the cut, changed in place. forms: by layer.
        plain: put their plain references there instead.

    Raises:
        PlanError: there is no such layer, or it is another than the form is for; the model is then as it was.
    """
    taken = [name for form in forms.values() for name in FORMS[form.kind].takes(form.data)]
    if twice := [name for name in taken if name in forms or taken.count(name) > 1]:
        raise PlanError(f"The plan gives the layer {shown(twice[0])} to two forms: make a new plan.")
    made = {name: _made(model, name, form, plain=plain) for name, form in forms.items()}
    for name in taken:  # the forms hold them
        _replace(model, name, nn.Identity().train(model.get_submodule(name).training))
    for name, layer in made.items():
        _replace(model, name, layer)


def _made(model: nn.Module, name: str, form: LayerForm, *, plain: bool) -> nn.Module:
    kind = FORMS[form.kind]
    try:
        if not name:
            raise ValueError("it is the whole network")
        layer = model.get_submodule(name)
        parts = Parts(form.tensors, tuple(model.get_submodule(taken) for taken in kind.takes(form.data)))
        made = kind.reference(layer, form.data, parts) if plain else kind.build(layer, form.data, parts)
    except AttributeError as error:
        raise PlanError(
            f"The plan gives a form to the layer {shown(name)}, which this network does not have: make a new plan."
        ) from error
    except ValueError as error:
        raise PlanError(
            f"The plan's form of the layer {shown(name)} does not fit this network ({error}): make a new plan for it."
        ) from error
    return made.train(layer.training)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Under every name that the layer has."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for local, child in parent.named_children():
            if child is old:
                setattr(parent, local, new)


def formed(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """The layers of `model` that are computed another way: name, kind and module."""
    for name, module in model.named_modules():
        for kind, row in FORMS.items():
            if type(module) is row.built:
                yield name, kind, module


def touched(forms: Mapping[str, LayerForm]) -> list[str]:
    """The layers that have these forms, and those that became part of them."""
    return [*forms, *(name for form in forms.values() for name in FORMS[form.kind].takes(form.data))]


def plainly(model: nn.Module, names: Mapping[str, str]) -> None:
    """Put ordinary layers that compute the same in place of formed ones.

    model: changed in place. names: of the layers, with their kinds.
    """
    for name, kind in names.items():
        _replace(model, name, FORMS[kind].plain(model.get_submodule(name)))


def cost(graph: Graph, plan: Formed) -> Cost:
    """The cost of the network that a plan makes, its forms counted; what they keep in memory counts as the layer's.

    Forms whose cost depends on the image count as where they save nothing.

    graph: of the original. plan: masks and forms.
    """
    whole = graph.cost(plan)
    if not plan.forms:
        return whole
    dense, rows, slices, tensors = dense_macs(graph, plan), _rows(graph), graph.slices(plan), graph.tensors()
    macs, params = whole.macs, whole.params
    for name, form in plan.forms.items():
        kind, own = FORMS[form.kind], dense.get(name, 0)
        shape = tensors[f"{name}.weight"].shape
        kept = slices.get(f"{name}.weight", (None,) * len(shape))
        weights = int(np.prod([n if k is None else len(k) for n, k in zip(shape, kept, strict=True)], dtype=np.int64))
        macs += kind.macs(own, form.data, rows.get(name, 0)) - own
        params += kind.params(weights, form.data) - weights
    return replace(whole, macs=macs, params=params)


def formed_macs(graph: Graph, plan: Formed) -> dict[str, int]:
    """Multiply-accumulates of every layer that a plan leaves, forms counted.

    graph: of the original. plan: masks and forms.
    """
    dense, rows = dense_macs(graph, plan), _rows(graph)
    return {
        name: FORMS[plan.forms[name].kind].macs(macs, plan.forms[name].data, rows[name]) if name in plan.forms else macs
        for name, macs in dense.items()
    }


def dense_macs(graph: Graph, plan: Formed | None) -> dict[str, int]:
    """Multiply-accumulates of every layer at the plan's widths, its form left out.

    graph: of the original. plan: None for the whole network.
    """
    found: dict[str, float] = {}
    for call, macs in zip(graph.costs.mac_calls, graph.costs.macs_by_call(graph.widths(plan)), strict=True):
        name = graph.recording.calls[int(call)].module
        found[name] = found.get(name, 0.0) + float(macs)
    return {name: round(macs) for name, macs in found.items()}


def _rows(graph: Graph) -> dict[str, int]:
    """Rows of the batch that every layer with products gets, over all of its calls."""
    found: dict[str, int] = {}
    for call in (graph.recording.calls[int(number)] for number in graph.costs.mac_calls):
        found[call.module] = found.get(call.module, 0) + (call.shapes[0][0] if call.shapes and call.shapes[0] else 1)
    return found
