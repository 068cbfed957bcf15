"""What a form is: a layer of the result that is computed another way, as data in the plan.

Above the graph, below plans: a plan names forms, surgery builds and proves them, methods ask for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class LayerForm:
    """How one layer of the cut network is computed.

    kind: a key of `FORMS`. data: JSON, in terms of the layer as it is after the cut.
    tensors: weights that the form has and the layer has not, by name; they are the network's, and no part of a plan's
    file. Without them they are as the kind begins with, until weights are loaded.
    """

    kind: str
    data: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Parts:
    """What a form is made of beside the layer and its data.

    tensors: of `LayerForm`. taken: the layers that `FormKind.takes` names, in that order.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    taken: tuple[nn.Module, ...] = ()


class FormKind(Protocol):
    """One way to compute a layer; one file and one row of `FORMS` each."""

    summary: str  # for reports: what such a layer does, in a few words
    built: type[nn.Module]  # the class of what `build` gives
    #: Whether what it computes depends on the image, so that costs and times are means over images; such layers save
    #: with one image at a time.
    per_input: bool

    def refused(self, runtime: str) -> str | None:
        """Why a runtime cannot run what is built, in a sentence; None where it may."""

    def check(self, data: Mapping[str, Any]) -> None:
        """Raise ValueError, with the end of a sentence, unless these are sound data of this kind."""

    def takes(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        """Layers behind this one that become part of it, by name; what is left in their places passes its input on."""

    def build(self, layer: nn.Module, data: Mapping[str, Any], parts: Parts = ...) -> nn.Module:
        """What takes the cut layer's place, with the same inputs and outputs; ValueError where the data do not fit."""

    def reference(self, layer: nn.Module, data: Mapping[str, Any], parts: Parts = ...) -> nn.Module:
        """The plain way to compute the same, for the proof."""

    def drawn(self, data: Mapping[str, Any], generator: torch.Generator, dtype: torch.dtype) -> LayerForm:
        """The same with random tensors of its own, for the proof."""

    def plain(self, built: nn.Module) -> nn.Module:
        """What computes the same as a built one without the form's way, where that does not pay or does not run."""

    def rivals(self, built: nn.Module) -> list[nn.Module]:
        """Layers than which a built one must be faster to be kept."""

    def macs(self, dense: int, data: Mapping[str, Any], rows: int) -> int:
        """Multiply-accumulates, at most, of a cut layer that would have `dense` of them in `rows` of a batch."""

    def params(self, weights: int, data: Mapping[str, Any]) -> int:
        """Elements of what stands for the weight of the cut layer, which has so many."""
