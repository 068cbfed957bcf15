"""What a form is: a layer of the result that is computed another way, as data in the plan.

Above the graph, below plans: a plan names forms, surgery builds and proves them, methods ask for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


@dataclass(frozen=True)
class LayerForm:
    """How one layer of the cut network is computed.

    kind: a key of `FORMS`. data: JSON, in terms of the layer as it is after the cut.
    """

    kind: str
    data: Mapping[str, Any]


class FormKind(Protocol):
    """One way to compute a layer; one file and one row of `FORMS` each."""

    summary: str  # for reports: what such a layer does, in a few words
    built: type[nn.Module]  # the class of what `build` gives

    def check(self, data: Mapping[str, Any]) -> None:
        """Raise ValueError, with the end of a sentence, unless these are sound data of this kind."""

    def build(self, layer: nn.Module, data: Mapping[str, Any]) -> nn.Module:
        """What takes the cut layer's place, with the same inputs and outputs; ValueError where the data do not fit."""

    def reference(self, layer: nn.Module, data: Mapping[str, Any]) -> nn.Module:
        """The plain way to compute the same, for the proof."""

    def plain(self, built: nn.Module) -> nn.Module:
        """An ordinary layer that computes what a built one does, for runtimes where the form does not pay."""

    def macs(self, dense: int, data: Mapping[str, Any]) -> int:
        """Multiply-accumulates, of a cut layer that would have `dense` of them."""

    def params(self, weights: int, data: Mapping[str, Any]) -> int:
        """Elements of what stands for the weight of the cut layer, which has so many."""
