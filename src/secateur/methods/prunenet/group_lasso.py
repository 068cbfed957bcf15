"""Group lasso in the norm of the data: which channels layers need to reproduce their own outputs, solved exactly.

For layers m that read channels u, with Sigma_m the covariance of what they read, C its block for one channel, and
sigma_m^2 = tr(W_m Sigma_m W_m^T):

    min_U  sum_m 1/2 tr((U_m - W_m) Sigma_m (U_m - W_m)^T) / sigma_m^2
           + lambda sum_u sqrt(sum_m tr(U_{m,u} C_{m,u} U_{m,u}^T) / sigma_m^2)

With C = R R, Uh = U R / sigma, Wh = W R / sigma and Sh = R^-1 Sigma R^-1, whose diagonal blocks are identities, the
exact minimum over one block is B_u = Uh_u + [(Wh - Uh) Sh]_u, shrunk by max(0, 1 - lambda / ||B_u||), with B_u stacked
over layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from secateur._protocols import FloatArray, IntArray
from secateur.repair.compensation import solve

#: By how much correlations are drawn towards none at first.
_DRAWN = 1e-6


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer: weight [outputs, columns], sigma [columns, columns], channels [width] with their columns [width, k].

    fixed: columns of no channel, which are not shrunk.
    """

    weight: torch.Tensor
    sigma: torch.Tensor
    parts: Sequence[tuple[IntArray, IntArray]]
    fixed: IntArray


class _Layer:
    """A layer in whitened coordinates; columns are put in the order of the parts, block after block."""

    def __init__(self, problem: Problem, width: int, ridge: float) -> None:
        weight, sigma = problem.weight, problem.sigma
        device = sigma.device
        self.scale = float(((weight @ sigma) * weight).sum().clamp_min(0).sqrt())  # sigma_m
        order = torch.from_numpy(np.concatenate([columns.ravel() for _, columns in problem.parts])).to(device)
        if len(problem.fixed):  # the best for these follows from the others: what is left is a Schur complement
            fixed = torch.from_numpy(problem.fixed).to(device)
            cross = sigma[fixed][:, order]
            sigma = sigma[order][:, order] - cross.T @ solve(sigma[fixed][:, fixed], cross)
        else:
            sigma = sigma[order][:, order].clone()
        weight = weight[:, order]
        if len(weight) > weight.shape[1]:  # the problem is the same after any rotation of the outputs
            weight = torch.linalg.qr(weight, mode="r").R
        self.blocks: list[slice | None] = [None] * width
        self.parts: list[tuple[IntArray, slice, int]] = []
        self._roots: list[torch.Tensor] = []
        start = 0
        for channels, columns in problem.parts:
            k = columns.shape[1]
            span = slice(start, start + columns.size)
            self.parts.append((channels, span, k))
            for i, channel in enumerate(channels.tolist()):
                self.blocks[channel] = slice(start + i * k, start + (i + 1) * k)
            start += columns.size
        inverse = self._whiten(sigma, ridge)
        self.sh = _definite(self._times(self._times(sigma, inverse).T, inverse).contiguous())
        self.wh = self._times(weight, self._roots) / (self.scale or 1.0)
        self.uh = self.wh.clone()
        self.whole = self.wh @ self.sh
        self.m = torch.zeros_like(self.wh)

    def _whiten(self, sigma: torch.Tensor, ridge: float) -> list[torch.Tensor]:
        """Roots R [width, k, k] of every part, after a ridge that `sigma` gets too; gives their inverses."""
        inverses = []
        for _, span, k in self.parts:
            inner = sigma[span, span].unflatten(0, (-1, k)).unflatten(2, (-1, k))  # a view
            blocks = inner.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            blocks.diagonal(dim1=1, dim2=2).add_((ridge / k) * blocks.diagonal(dim1=1, dim2=2).sum(1, keepdim=True))
            values, vectors = torch.linalg.eigh(blocks)
            values = values.clamp_min(0).sqrt()
            self._roots.append(vectors @ (values[:, :, None] * vectors.mT))
            inverse = torch.where(values > 0, 1.0 / torch.where(values > 0, values, 1.0), 0.0)
            inverses.append(vectors @ (inverse[:, :, None] * vectors.mT))
        return inverses

    def _times(self, matrix: torch.Tensor, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """matrix [n, columns] times a matrix of symmetric blocks."""
        result = torch.empty_like(matrix)
        for (_, span, k), block in zip(self.parts, blocks, strict=True):
            part = matrix[:, span].unflatten(1, (-1, k))
            result[:, span] = torch.einsum("nwk,wkj->nwj", part, block).flatten(1)
        return result

    def squares(self, values: torch.Tensor, width: int) -> FloatArray:
        """Squared norms of all blocks [width]."""
        result = np.zeros(width)
        for channels, span, k in self.parts:
            result[channels] += values[:, span].unflatten(1, (-1, k)).square().sum((0, 2)).cpu().numpy()
        return result

    def refresh(self) -> None:
        """M = (Wh - Uh) Sh anew."""
        torch.sub(self.whole, self.uh @ self.sh, out=self.m)

    def leap(self, weights: FloatArray) -> None:
        """The minimum with sum_u weights_u ||Uh_u||^2 / 2 as the penalty, over the channels with finite weights."""
        each = torch.empty(len(self.sh), dtype=self.sh.dtype)
        for channels, span, k in self.parts:
            each[span] = torch.from_numpy(weights[channels]).repeat_interleave(k)
        free = torch.isfinite(each).nonzero()[:, 0].to(self.sh.device)
        matrix = self.sh[free][:, free]
        matrix.diagonal().add_(each.to(self.sh.device)[free])
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            self.uh[:, free] = torch.cholesky_solve(self.whole[:, free].T, factor).T
        self.refresh()


def _definite(matrix: torch.Tensor) -> torch.Tensor:
    """Correlations, drawn towards none until no direction has less than no variance, in which U would have no bounds.

    Blocks on the diagonal stay identities. Of few patches with many columns, the rounding of sums can outweigh what
    varies least.
    """
    share = _DRAWN
    while int(torch.linalg.cholesky_ex(matrix).info):
        matrix = matrix * (1 - share)
        matrix.diagonal().add_(share)
        share = min(8 * share, 0.5)
    return matrix


class GroupLasso:
    """All layers that read the channels of one family."""

    def __init__(self, problems: Sequence[Problem], width: int, *, ridge: float = 1e-6) -> None:
        """Begin at U = W. ridge: on every C, relative to its mean variance. Layers without variance do not count."""
        self.width = width
        layers = [_Layer(problem, width, ridge) for problem in problems]
        self.layers = [layer for layer in layers if layer.scale > 0]

    def largest(self) -> float:
        """The smallest lambda at which every channel is zero."""
        squares = np.zeros(self.width)
        for layer in self.layers:
            squares += layer.squares(layer.whole, self.width)
        return float(np.sqrt(squares.max(initial=0.0)))

    def norms(self) -> FloatArray:
        """s_u = sqrt(sum_m ||Uh_{m,u}||^2)."""
        return np.sqrt(sum((layer.squares(layer.uh, self.width) for layer in self.layers), np.zeros(self.width)))

    def residuals(self) -> FloatArray:
        """||[(Wh - Uh) Sh]_u||, which is lambda at most where u is zero."""
        return np.sqrt(sum((layer.squares(layer.m, self.width) for layer in self.layers), np.zeros(self.width)))

    def objective(self, strength: float) -> float:
        """What is minimised."""
        error = sum(float(((layer.wh - layer.uh) * layer.m).sum()) for layer in self.layers)
        return 0.5 * error + strength * float(self.norms().sum())

    def save(self) -> list[torch.Tensor]:
        """Where the solution stands."""
        return [layer.uh.clone() for layer in self.layers]

    def load(self, saved: Sequence[torch.Tensor]) -> None:
        """Go on from there."""
        for layer, uh in zip(self.layers, saved, strict=True):
            layer.uh.copy_(uh)

    def solve(self, strength: float, *, sweeps: int = 200, tolerance: float = 1e-9) -> FloatArray:
        """Minimise at lambda = strength from where the solution stands; s_u [width].

        Sweeps of exact block steps find which channels are zero. Between them the others leap together to the minimum
        of lambda ||Uh_u||^2 / (2 ||Uh_u now||), which lies above the penalty and touches it here: the objective falls,
        however alike the inputs are, where blocks alone would creep. Until it changes by less than `tolerance`, as a
        share, and no zero channel wants to come back.
        """
        for layer in self.layers:
            layer.refresh()
        before = self.objective(strength)
        for _ in range(sweeps):
            norms = self.norms()
            entering = (norms == 0) & (self.residuals() > strength * (1 + 1e-9))
            for channel in np.argsort(norms, kind="stable").tolist():  # small ones first: of equals they vanish
                if norms[channel] > 0 or entering[channel]:
                    self._step(channel, strength)
            if strength > 0:
                norms = self.norms()
                with np.errstate(divide="ignore"):
                    weights = np.where(norms > 0, strength / norms, np.inf)
                for layer in self.layers:
                    layer.leap(weights)
            now = self.objective(strength)
            settled = before - now <= tolerance * abs(now)
            before = now
            if settled and not entering.any():
                break
        return self.norms()

    def _step(self, channel: int, strength: float) -> None:
        """The exact minimum over one channel."""
        found = [(layer, layer.blocks[channel]) for layer in self.layers]
        stacked = [(layer, at, layer.uh[:, at] + layer.m[:, at]) for layer, at in found if at is not None]
        if not stacked:
            return
        norm = float(sum(block.square().sum() for _, _, block in stacked)) ** 0.5
        shrink = max(0.0, 1.0 - strength / norm) if norm > 0 else 0.0
        for layer, at, block in stacked:
            new = block * shrink
            change = new - layer.uh[:, at]
            layer.uh[:, at] = new
            layer.m.addmm_(change, layer.sh[at], alpha=-1.0)
