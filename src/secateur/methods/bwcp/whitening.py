"""Batch whitening as one linear map a layer: moments, truncated Newton steps, and folding it away.

A batch norm followed by a whitening matrix over blocks of channels is one affine map of the raw input x:
y = W diag(gamma / sigma) (x - mean) + W beta. `whiten` computes it from one pass over x; `whitening_reference` is the
same in the steps in which it is written down (Shao et al., arXiv:2105.06423, section 3; the Newton steps are those of
iterative normalisation, Huang et al., arXiv:1904.03441).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from secateur._distributed import global_sum

#: Added to the squared norm of gamma, so that a block whose gammas all vanish stays finite.
NORM_EPS = 1e-10


def block_size(channels: int, largest: int, groups: int = 1) -> int:
    """The largest size, `largest` halved as often as needed, that divides the channels of each convolution group."""
    size = largest
    while size > 1 and (channels // groups) % size:
        size //= 2
    return max(size, 1)


def normalised(gamma: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
    """S = (gamma gamma^T * rho) / |gamma|^2 [blocks, size, size], of trace 1, from gamma [blocks, size] and rho."""
    scale = gamma.square().sum(1).add(NORM_EPS)[:, None, None]
    return gamma[:, :, None] * gamma[:, None, :] * rho / scale


def inverse_root(covariance: torch.Tensor, steps: int) -> torch.Tensor:
    """P_T of P_0 = I, P_k = (3 P_{k-1} - P_{k-1}^3 S) / 2, for S [blocks, size, size].

    Few steps are meant: with an exact root the size of gamma would no longer matter.
    """
    root = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device).expand_as(covariance)
    for _ in range(steps):
        root = torch.baddbmm(root, root @ root, root @ covariance, beta=1.5, alpha=-0.5)
    return root


@dataclass(frozen=True)
class NormStatistics:
    """Mean [C], covariance [blocks, size, size] and the number of values each was taken over."""

    mean: torch.Tensor
    covariance: torch.Tensor
    count: torch.Tensor

    @property
    def variance(self) -> torch.Tensor:
        """The diagonal of the covariance [C]."""
        return self.covariance.diagonal(dim1=1, dim2=2).reshape(-1)

    def correlation(self, eps: float) -> torch.Tensor:
        """Correlation [blocks, size, size] as a batch norm with this epsilon sees it: its diagonal is just below 1."""
        scale = (self.variance + eps).rsqrt().view(self.covariance.shape[:2])
        return self.covariance * scale[:, :, None] * scale[:, None, :]


def moments(x: torch.Tensor, size: int) -> tuple[torch.Tensor, NormStatistics]:
    """Moments of x [N, C, ...] for each channel, over all processes; x comes back, to be used instead of the argument.

    The gradients that reach x on both ways are then added in one pass.
    """
    x, total, products = _Sums.apply(x, size)  # type: ignore[no-untyped-call]
    count = global_sum(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    total, products = global_sum(total), global_sum(products)
    mean = total / count
    blocks = mean.view(-1, size)
    return x, NormStatistics(mean, products / count - blocks[:, :, None] * blocks[:, None, :], count)


class _Sums(torch.autograd.Function):
    """Sums [C] and block-wise sums of products [blocks, size, size] of x [N, C, ...], beside x itself."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x)
        ctx.size = size
        blocks = _blocks(x, size)
        products = torch.bmm(blocks, blocks.transpose(1, 2)).view(x.shape[0], -1, size, size)
        # each product is short; adding them up in double precision keeps a mean far from zero harmless
        total = blocks.sum(2).view(x.shape[:2]).sum(0, dtype=torch.float64).to(x.dtype)
        return x.view_as(x), total, products.sum(0, dtype=torch.float64).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad, total, products = grads
        (x,) = ctx.saved_tensors
        both = _each(products + products.transpose(1, 2), len(x))
        passed = _blocks(grad, ctx.size) + total.view(-1, ctx.size, 1).repeat(len(x), 1, 1)
        return torch.baddbmm(passed, both, _blocks(x, ctx.size)).view(x.shape), None


class _Affine(torch.autograd.Function):
    """matrix [blocks, size, size] times x [N, C, ...] plus shift [C]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, matrix)
        size = matrix.shape[1]
        result = torch.empty(
            x.shape, dtype=x.dtype, device=x.device
        )  # no view: an activation may work in place on what a layer returns
        torch.bmm(_each(matrix, len(x)), _blocks(x, size), out=result.view(-1, size, x[0, 0].numel()))
        return result.add_(shift.view(-1, *[1] * (x.dim() - 2)))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, matrix = ctx.saved_tensors
        size = matrix.shape[1]
        grad = _blocks(grads[0], size)
        back = torch.bmm(_each(matrix.transpose(1, 2), len(x)), grad).view(x.shape)
        outer = torch.bmm(grad, _blocks(x, size).transpose(1, 2)).view(len(x), *matrix.shape).sum(0)
        return back, outer, grad.sum(2).view(x.shape[:2]).sum(0)


def _blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """x [N, C, ...] as [N * blocks, size, S]."""
    return x.contiguous().view(-1, size, x[0, 0].numel())


def _each(matrix: torch.Tensor, n: int) -> torch.Tensor:
    """[blocks, size, size] once for each of n images."""
    return matrix.repeat(n, 1, 1)


def affine(x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """matrix [blocks, size, size] times x [N, C, ...] plus shift [C]."""
    result: torch.Tensor = _Affine.apply(x, matrix, shift)  # type: ignore[no-untyped-call]
    return result


def composed(
    root: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole layer as A [blocks, size, size] and b [C]: root diag(gamma / sigma) and root beta - A mean."""
    shape = root.shape[:2]
    matrix = root * (gamma * (variance + eps).rsqrt()).view(shape)[:, None, :]
    shift = root @ beta.view(*shape, 1) - matrix @ mean.view(*shape, 1)
    return matrix, shift.reshape(-1)


def whitening_reference(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, size: int, steps: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training pass as the paper writes it, for x [N, C, ...]: batch norm, covariance, roots, product, in turn.

    Returns the whitened activations, shaped as x, and the roots [blocks, size, size]. Slow; the tests compare.
    """
    normal = F.batch_norm(x, None, None, gamma, beta, training=True, eps=eps)
    flat = normal.transpose(0, 1).reshape(-1, size, x.numel() // x.shape[1])  # [blocks, size, M]
    centred = flat - flat.mean(2, keepdim=True)
    covariance = centred @ centred.transpose(1, 2) / flat.shape[2]
    normalised = covariance / (gamma.view(-1, size).square().sum(1) + NORM_EPS)[:, None, None]
    root = torch.eye(size, dtype=x.dtype, device=x.device).expand_as(normalised)
    for _ in range(steps):
        root = (3 * root - root @ root @ root @ normalised) / 2
    whitened = (root @ flat).reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)
    return whitened, root
