"""Taking channels out of a model that keeps its shape: zeros in their place, and what can be done to hurt less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.methods.nap.curvature import Curvature
from secateur.methods.nap.kfac import Factors
from secateur.repair.masking import Slices, alive, along, apply_masks


@torch.no_grad()
def remove(
    model: nn.Module,
    slices: Slices,
    factors: Factors,
    curvature: Callable[[str], Curvature] | None,
    *,
    update: tuple[bool, bool] = (False, False),
    norms: Mapping[str, str] | None = None,
) -> None:
    """Set what a cut would take away to zero, in place.

    curvature: of a layer; None: nothing is known, and nothing else is done. update: whether the other rows of a
    layer that makes removed channels move to make up for them, and the other columns of one that reads them.
    norms: layer -> batch norm behind it. A channel is more than its row: behind its norm it has a mean, which what
    reads it would miss. That goes to the reader's bias, or without one to the running mean of its norm. None: it is
    lost.
    """
    masks = alive(slices, dict(model.named_parameters()))
    for name, layer in factors.layers.items() if curvature is not None else ():
        kept = slices.get(layer.weight)
        parameter = model.get_parameter(layer.weight)
        if kept is None or not bool(parameter[~masks[layer.weight]].any()):
            continue  # zero already
        gone = [None if rows is None else ~along(rows, dim, parameter).flatten() for dim, rows in enumerate(kept[:2])]
        new = _matrix(model, layer.weight), _bias(model, layer.bias)
        if update[0] and gone[0] is not None and curvature is not None:
            curve = _around(curvature(name), *new)
            new = curve.split(curve.without_rows(gone[0]))
        if gone[1] is not None:
            columns, read = gone[1].repeat_interleave(layer.kernel), new
            if update[1] and curvature is not None:
                curve = _around(curvature(name), *new)
                new = curve.split(curve.without_columns(columns))
            else:
                new = new[0].masked_fill(columns, 0.0), new[1]
            if norms is not None:
                lost = (read[0] - new[0]).view(layer.groups, layer.outputs, -1)
                missing = torch.einsum("gmc,gc->gm", lost, factors.means(name).to(lost)).flatten() + read[1] - new[1]
                if layer.bias is not None:
                    new = new[0], new[1] + missing
                elif name in norms:
                    _shift(model.get_submodule(norms[name]), missing)
        apply_masks(model, {}, layer.named(*new))
    apply_masks(model, masks)


def _shift(norm: Any, missing: torch.Tensor) -> None:
    if getattr(norm, "running_mean", None) is not None:
        norm.running_mean -= missing.to(norm.running_mean)


def _matrix(model: nn.Module, name: str) -> torch.Tensor:
    return model.get_parameter(name).detach().double().flatten(1)


def _bias(model: nn.Module, name: str | None) -> torch.Tensor:
    return model.get_parameter(name).detach().double() if name is not None else torch.zeros((), dtype=torch.float64)


def _around(curve: Curvature, weight: torch.Tensor, bias: torch.Tensor) -> Curvature:
    """The same curvature, around other weights."""
    layer = curve.layer
    rows = torch.zeros_like(curve.weights)
    rows[..., :-1] = weight.view(layer.groups, layer.outputs, layer.splits, layer.width).transpose(1, 2)
    if layer.bias is not None:
        rows[:, -1, :, -1] = bias.view(layer.groups, layer.outputs)
    curve.weights = rows
    return curve
