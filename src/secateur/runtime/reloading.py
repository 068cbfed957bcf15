"""Whether a network that is saved will be loaded as itself, tried before anything is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur._files import said, shown
from secateur.errors import RunError, SecateurError
from secateur.graph.modules import as_call, clone_module, map_tensors, output_tensors
from secateur.runtime.stored import Stored


def check_again(content: Stored, fresh: nn.Module, narrow: nn.Module) -> None:
    """RunError unless `load` will make the network of the folder again, and one that computes the same."""
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
    wanted = _own_answers(narrow, inputs)
    if wanted is not None and not _same(found, wanted):
        raise RunError(
            f"The network computes something else than {shown(content.reference)} cut by this plan with the same "
            "weights, so it would be loaded as another: save it before its code, activations, hooks or settings of "
            "layers are changed, and do that after loading; or export it with secateur.runtime.export_pt2."
        )


def _own_answers(narrow: nn.Module, inputs: Any) -> list[torch.Tensor] | None:
    """What a copy of the network answers on the CPU; None where that cannot be had, or is never the same."""
    try:
        twin = clone_module(narrow, lambda tensor: tensor.detach().to("cpu", copy=True).contiguous())
        once, again = _answers(twin, inputs), _answers(twin, inputs)
    except Exception:  # of a network that runs under autocast alone, or on a GPU, or of somebody's hook
        return None
    return once if _same(once, again) else None


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
