"""The optimal brain surgeon: what removing weights, rows or columns of a layer costs where the loss curves as A ⊗ G.

Removing the weights S at a minimum, while all others of the layer move to their best places, raises the loss by

    dL_S = ½ w_Sᵀ ([H⁻¹]_SS)⁻¹ w_S    and takes the update    d = -[H⁻¹]_:S ([H⁻¹]_SS)⁻¹ w_S ,    H = A ⊗ G .

With A' = A⁻¹ and G' = G⁻¹ every block of H⁻¹ that is needed is a product of small blocks, so H is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from secateur._protocols import IntArray
from secateur.errors import ConfigError
from secateur.methods.nap.kfac import Layer

Form = Literal["obs", "obd", "sum"]
Damping = Literal["relative", "split"]

_TINY = 1e-30


@dataclass(eq=False)
class Curvature:
    """One layer with damped factors, in double precision where that is needed.

    inputs: A [groups, splits, width + 1, width + 1]; the last column stands for the bias, and is nothing where the
        layer has none. gradients: G [groups, outputs, outputs].
    weights: W [groups, splits, outputs, width + 1]; the bias stands in the last split.
    """

    layer: Layer
    inputs: torch.Tensor
    gradients: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(
        cls,
        layer: Layer,
        inputs: torch.Tensor,
        gradients: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        damping: float = 1e-3,
        kind: Damping = "relative",
    ) -> Curvature:
        """From factors as `Factors` holds them.

        damping: "relative": A + ε (tr A / n) I and G + ε (tr G / m) I; "split": Tikhonov, A + π √ε I and
            G + (√ε / π) I with π² = (tr A / n) / (tr G / m).
        """
        if weight.device.type == "mps":  # which has no double precision
            inputs, gradients, weight = inputs.cpu(), gradients.cpu(), weight.cpu()
            bias = None if bias is None else bias.cpu()
        groups, splits, width = layer.groups, layer.splits, layer.width
        wide = inputs.double().reshape(groups, splits, width + 1, width + 1)
        used = torch.ones(splits, width + 1, dtype=torch.bool, device=wide.device)
        used[: splits if bias is None else splits - 1, -1] = False
        wide = wide * (used[:, :, None] & used[:, None, :])
        slope = gradients.double().clone()
        if not bool(torch.isfinite(wide).all() & torch.isfinite(slope).all()):
            raise ConfigError(f"The curvature of {layer.name} is not finite: look at the data and the weights.")
        mean_a = wide.diagonal(dim1=2, dim2=3).sum(-1) / used.sum(-1)  # [groups, splits]
        mean_g = slope.diagonal(dim1=1, dim2=2).mean(-1)  # [groups]
        if kind == "relative":
            add_a, add_g = damping * mean_a, damping * mean_g
        else:
            pi = (mean_a.mean(1).clamp_min(_TINY) / mean_g.clamp_min(_TINY)).sqrt()
            add_a, add_g = (damping**0.5 * pi)[:, None].expand_as(mean_a), damping**0.5 / pi
        _diagonal(wide).add_(add_a.clamp_min(_TINY)[..., None])
        _diagonal(wide).masked_fill_(~used, 1.0)  # a column that is not there changes nothing
        _diagonal(slope).add_(add_g.clamp_min(_TINY)[..., None])
        rows = weight.new_zeros(groups, splits, layer.outputs, width + 1, dtype=torch.float64)
        rows[..., :-1] = weight.detach().reshape(groups, layer.outputs, splits, width).transpose(1, 2)
        if bias is not None:
            rows[:, -1, :, -1] = bias.detach().view(groups, layer.outputs)
        return cls(layer, wide, slope, rows)

    @cached_property
    def inverse_inputs(self) -> torch.Tensor:
        """A'."""
        return inverse(self.inputs.flatten(0, 1), self.layer.name).view_as(self.inputs)

    @cached_property
    def inverse_gradients(self) -> torch.Tensor:
        """G'."""
        return inverse(self.gradients, self.layer.name)

    # ------------------------------------------------------------------------------------------------------- scores

    def single(self) -> torch.Tensor:
        """dL_ij = W_ij² / (2 G'_ii A'_jj) of every weight [groups · outputs, columns]; biases are left out."""
        a = _diagonal(self.inverse_inputs)[:, :, None, :]
        g = _diagonal(self.inverse_gradients)[:, None, :, None]
        return self._matrix(self.weights.square() / (2.0 * g * a))

    def rows(self, form: Form = "obs") -> torch.Tensor:
        """dL_i = (W_i A W_iᵀ) / (2 G'_ii) of every output, bias included [groups · outputs]."""
        if form == "sum":  # ignores that they go together
            return self.single().sum(1)
        power = ((self.weights @ self.inputs) * self.weights).sum((1, 3))  # W_i A W_iᵀ
        if form == "obd":  # nothing else moves
            return (0.5 * power * _diagonal(self.gradients)).flatten()
        return (0.5 * power / _diagonal(self.inverse_gradients)).flatten()

    def columns(self, sets: IntArray, form: Form = "obs") -> torch.Tensor:
        """dL_C = ½ tr(G W_C ([A']_CC)⁻¹ W_Cᵀ) of sets of columns [sets, k], summed over groups [sets]."""
        index = torch.from_numpy(sets).to(self.weights.device)
        if form == "sum":
            singles = self.single().view(self.layer.groups, self.layer.outputs, -1).sum((0, 1))
            return singles[index].sum(1)
        source = self.inputs if form == "obd" else self.inverse_inputs
        result = self.weights.new_zeros(len(index))
        for group in range(self.layer.groups):
            w = self._matrix(self.weights).view(self.layer.groups, self.layer.outputs, -1)[group].T[index]  # [s, k, m]
            power = w @ self.gradients[group] @ w.mT  # W_Cᵀ G W_C, [sets, k, k]
            square = self._square(source[group], index)
            if form == "obs":
                result += 0.5 * torch.linalg.solve(square, power).diagonal(dim1=1, dim2=2).sum(-1)
            else:
                result += 0.5 * (square * power).sum((1, 2))
        return result

    # ------------------------------------------------------------------------------------------------------ updates

    def without_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """W after the rows P (a mask [groups · outputs]) are gone: W - G'_:P ([G']_PP)⁻¹ W_P."""
        result = self.weights.clone()
        for group, gone in enumerate(rows.view(self.layer.groups, -1)):
            inner = self.inverse_gradients[group]
            moved = inner[:, gone] @ torch.linalg.solve(inner[gone][:, gone], result[group][:, gone])
            result[group] -= moved
            result[group][:, gone] = 0.0
        return result

    def without_columns(self, columns: torch.Tensor) -> torch.Tensor:
        """W after the columns C (a mask [columns]) are gone from all groups: W - W_C ([A']_CC)⁻¹ A'_C:."""
        result = self.weights.clone()
        for split, gone in enumerate(columns.view(self.layer.splits, -1)):
            at = gone.nonzero().squeeze(1)
            for group in range(self.layer.groups if len(at) else 0):
                inner, w = self.inverse_inputs[group, split], result[group, split]
                w -= torch.linalg.solve(inner[at][:, at], w[:, at], left=False) @ inner[at]
                w[:, at] = 0.0
        return result

    def without(self, gone: torch.Tensor) -> torch.Tensor:
        """W after single weights (a mask [groups · outputs, columns]) are gone, each row by itself.

        Rows are free of each other where G is diagonal: w_i - A'_:S ([A']_SS)⁻¹ w_iS.
        """
        layer, result = self.layer, self.weights.clone()
        parts = gone.view(layer.groups, layer.outputs, layer.splits, layer.width).transpose(1, 2)
        for group, split, row in parts.any(-1).nonzero().tolist():
            at = parts[group, split, row].nonzero().squeeze(1)
            inner, w = self.inverse_inputs[group, split], result[group, split, row]
            w -= inner[:, at] @ torch.linalg.solve(inner[at][:, at], w[at])
            w[at] = 0.0
        return result

    def split(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight matrix [groups · outputs, columns] and the bias [groups · outputs] in such a W."""
        return self._matrix(weights), weights[:, -1, :, -1].flatten()

    def _matrix(self, values: torch.Tensor) -> torch.Tensor:
        return values[..., :-1].transpose(1, 2).reshape(self.layer.groups * self.layer.outputs, self.layer.columns)

    def _square(self, inner: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """[sets, k, k] of a matrix kept as blocks [splits, width + 1, width + 1]; zero between two blocks."""
        block, at = index // self.layer.width, index % self.layer.width
        same = block[:, :, None] == block[:, None, :]
        return inner[block[:, :, None], at[:, :, None], at[:, None, :]] * same


def inverse(matrices: torch.Tensor, name: str) -> torch.Tensor:
    """Inverses of symmetric positive definite matrices [n, k, k].

    In double precision: damping of a thousandth of the mean eigenvalue leaves condition numbers of a million, at which
    single precision has no digit to give.
    """
    small = matrices.shape[-1] <= 128
    result = torch.empty_like(matrices)
    for part, into in [(matrices, result)] if small else zip(matrices.split(1), result.split(1), strict=True):
        lower, failed = torch.linalg.cholesky_ex(part)
        if bool(failed.any()):
            raise ConfigError(f"The curvature of {name} cannot be inverted: raise damping, or show more data.")
        into.copy_(torch.cholesky_inverse(lower))
    return result


def _diagonal(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)
