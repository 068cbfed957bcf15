"""What a network costs on average, where layers compute what the image asks for.

The method has seen images and noted the mean in the plan's provenance; nothing else knows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from secateur.errors import PlanError
from secateur.forms.base import LayerForm
from secateur.forms.kinds import FORMS
from secateur.graph.modules import map_tensors

_KEY = "expected"


@dataclass(frozen=True)
class Expected:
    """Multiply-accumulates of one forward pass of the example inputs, on average over images."""

    macs: int
    spread: int  # standard deviation from image to image, of as many images as the example inputs have
    images: int  # that were counted

    def __str__(self) -> str:
        """The end of a sentence."""
        return f"the mean over {self.images} images, with a standard deviation of {self.spread / self.macs:.1%}"


class Noted(Protocol):
    """A `Plan`."""

    @property
    def forms(self) -> Mapping[str, LayerForm]: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...


def note_of(counts: torch.Tensor) -> dict[str, Any]:
    """What a method notes in its plan's provenance, to be added to it.

    counts: multiply-accumulates of every image it has seen [images].
    """
    each = counts.double()
    return {_KEY: {"macs": each.mean().item(), "spread": each.std(correction=0).item(), "images": len(each)}}


def expected(plan: Noted, example_inputs: Any) -> Expected | None:
    """The mean cost that is noted in a plan, for as many images as the example inputs have; None if none depends on it.

    Args:
        plan: with the note of its method. example_inputs: what it is called with; their number of images counts.

    Raises:
        PlanError: the plan's provenance does not say it.
    """
    if not any(FORMS[form.kind].per_input for form in plan.forms.values()):
        return None
    match plan.provenance.get(_KEY):
        case {"macs": float(macs), "spread": float(spread), "images": int(images)} if images > 0 and macs > 0:
            if math.isfinite(macs) and 0 <= spread < math.inf:
                number = rows(example_inputs)
                return Expected(round(number * macs), round(number * spread), images)
    raise PlanError(
        "The plan has layers whose cost depends on the image and does not say what they cost on average: the file was "
        "damaged or edited."
    )


def rows(example_inputs: Any) -> int:
    """Images in example inputs: dimension 0 of the first tensor that has one."""
    found: list[torch.Tensor] = []
    map_tensors(example_inputs, found.append)
    return next((len(tensor) for tensor in found if tensor.dim()), 1)
