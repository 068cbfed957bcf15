"""Whether a network that is saved will be loaded as itself, tried before anything is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur._files import said, shown
from secateur.errors import ModelError, RunError, SecateurError
from secateur.graph.modules import as_call, clone_module, map_tensors, output_tensors
from secateur.runtime.stored import Stored


class _NotCompared(Exception):
    """Why what a network answers cannot be compared."""


def check_again(content: Stored, fresh: nn.Module, narrow: nn.Module) -> str:
    """RunError unless `load` will make the network of the folder again, and one that computes the same.

    Returns:
        a sentence where what they compute could not be compared; else nothing.
    """
    try:
        if (problem := content.misfit(fresh)) is not None:
            raise ValueError(problem.replace(" in the file", " here").replace("missing from the file", "missing here"))
        content.put_into(fresh)
        inputs = content.inputs.make()
        found = _answers(fresh, inputs)
    except (SecateurError, RuntimeError, ValueError, TypeError) as error:
        raise RunError(
            f"The network has other layers than {shown(content.reference)} cut by this plan, so it could not be loaded "
            f"again ({said(error)}): save it before layers are fused, replaced or converted, and do that after "
            "loading; or export it with secateur.runtime.export_pt2, which needs no code."
        ) from error
    try:
        same = _same(found, _own_answers(narrow, inputs))
    except _NotCompared as why:
        return (
            f"Names and shapes of the network's tensors are those of {shown(content.reference)} cut by this plan; "
            f"whether it computes the same was not compared, for {why}."
        )
    if not same:
        raise RunError(
            f"The network computes something else than {shown(content.reference)} cut by this plan with the same "
            "weights, so it would be loaded as another: save it before its code, activations, hooks or settings of "
            "layers are changed, and do that after loading; or export it with secateur.runtime.export_pt2."
        )
    return ""


def _own_answers(narrow: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """What a copy of the network answers on the CPU; _NotCompared where that cannot be had, or is never the same."""
    try:
        twin = clone_module(narrow, lambda tensor: tensor.detach().to("cpu", copy=True).contiguous())
    except ModelError as error:
        raise _NotCompared(f"it cannot be copied ({said(error)})") from error
    try:
        once, again = _answers(twin, inputs), _answers(twin, inputs)
    except MemoryError:
        raise
    except Exception as error:  # its own code may raise anything: for a GPU or autocast alone, or in somebody's hook
        raise _NotCompared(f"it does not run by itself on the CPU ({type(error).__name__}: {said(error)})") from error
    if not _same(once, again):
        raise _NotCompared("it answers the same inputs otherwise every time")
    return once


@torch.no_grad()
def _answers(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """What a network on the CPU answers in evaluation; noise that it draws is the same every time."""
    args, keywords = as_precise(as_call(inputs), model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [tensor.clone() for tensor in output_tensors(model.eval()(*args, **keywords))]


def _same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    if [(t.shape, t.dtype) for t in found] != [(t.shape, t.dtype) for t in wanted]:
        return False
    for one, other in zip(found, wanted, strict=True):
        exact = torch.finfo(one.dtype).eps ** 0.5 if one.is_floating_point() else 0.0
        most = float(other.double().abs().nan_to_num().max()) if other.numel() and exact else 0.0
        if not torch.allclose(one.double(), other.double(), rtol=exact, atol=exact * most, equal_nan=True):
            return False
    return True


def as_precise(inputs: Any, model: nn.Module) -> Any:
    """Signature with numbers as precise as those of the model."""
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return map_tensors(inputs, lambda tensor: tensor.to(kind) if tensor.is_floating_point() else tensor)
