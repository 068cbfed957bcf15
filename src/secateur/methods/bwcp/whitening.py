"""Batch whitening as one linear map a layer: moments, truncated Newton steps, and folding it away.

A batch norm followed by a whitening matrix over blocks of channels is one affine map of the raw input x:
y = W diag(gamma / sigma) (x - mean) + W beta. It is computed from one pass over x; `whitening_reference` is the same in
the steps in which it is written down (Shao et al., arXiv:2105.06423, section 3; the Newton steps are those of
iterative normalisation, Huang et al., arXiv:1904.03441).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    return newton(covariance, steps)[0]


class Returned:
    """What comes back to a layer's output, kept until its moments' own gradients are known: x is gone through once."""

    def __init__(self) -> None:
        self.parts: tuple[torch.Tensor, torch.Tensor] | None = None  # the matrix, and the gradient of its product


@dataclass(frozen=True)
class NormStatistics:
    """Sums [C] and block-wise sums of products [blocks, size, size] over `count` values of each channel.

    returned: for `affine`, which hands on what it gets back.
    """

    total: torch.Tensor
    products: torch.Tensor
    count: torch.Tensor
    returned: Returned

    @property
    def mean(self) -> torch.Tensor:
        """[C]."""
        return self.total / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """[blocks, size, size]."""
        blocks = self.mean.view(self.products.shape[:2])
        return self.products / self.count - blocks[:, :, None] * blocks[:, None, :]

    @property
    def variance(self) -> torch.Tensor:
        """The diagonal of the covariance [C]."""
        return self.covariance.diagonal(dim1=1, dim2=2).reshape(-1)

    def correlation(self, eps: float) -> torch.Tensor:
        """Correlation [blocks, size, size] as a batch norm with this epsilon sees it: its diagonal is just below 1."""
        scale = (self.variance + eps).rsqrt().view(self.products.shape[:2])
        return self.covariance * scale[:, :, None] * scale[:, None, :]


def moments(x: torch.Tensor, size: int) -> NormStatistics:
    """Moments of a `dense` x [N, C, ...] for each channel, over all processes."""
    returned = Returned()
    total, products = _Sums.apply(x, size, returned)  # type: ignore[no-untyped-call]
    count = global_sum(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    return NormStatistics(global_sum(total), global_sum(products), count, returned)


class _Sums(torch.autograd.Function):
    """Sums [C] and block-wise sums of products [blocks, size, size] of x [N, C, ...].

    Its gradient is that of x on both ways, for `_Affine`, which runs back before, leaves its own part in `returned`.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: int, returned: Returned) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x)
        ctx.returned = returned
        return _sum(x), _outer(x, x, size)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total, products = grads
        (x,) = ctx.saved_tensors
        result = _times(products + products.transpose(1, 2), x, total)
        if ctx.returned.parts is not None:
            _add_times(result, *ctx.returned.parts)
            ctx.returned.parts = None
        return result, None, None


class _Affine(torch.autograd.Function):
    """matrix [blocks, size, size] times x [N, C, ...] plus shift [C], each row times its mask [C] if there is one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        matrix: torch.Tensor,
        shift: torch.Tensor,
        mask: torch.Tensor | None,
        returned: Returned | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, matrix, shift, mask)
        ctx.returned = returned
        if mask is not None:
            matrix, shift = _rows(mask, matrix) * matrix, shift * mask
        return _times(matrix, x, shift)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, matrix, shift, mask = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=_layout(x))
        outer, total = _outer(grad, x, matrix.shape[1]), _sum(grad)
        masked, of_mask = matrix, None
        if mask is not None:
            of_mask = (outer * matrix).sum(2).view(-1) + total * shift
            masked, outer, total = _rows(mask, matrix) * matrix, _rows(mask, matrix) * outer, total * mask
        back = None
        if ctx.returned is not None:
            ctx.returned.parts = masked.transpose(1, 2), grad
        elif ctx.needs_input_grad[0]:
            back = _times(masked.transpose(1, 2), grad, None)
        return back, outer, total, of_mask, None


def _rows(mask: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return mask.view(*matrix.shape[:2], 1)


def affine(
    x: torch.Tensor,
    matrix: torch.Tensor,
    shift: torch.Tensor,
    mask: torch.Tensor | None = None,
    returned: Returned | None = None,
) -> torch.Tensor:
    """matrix [blocks, size, size] times a `dense` x [N, C, ...] plus shift [C], times mask [C]; laid out as x.

    returned: of the moments of this x, if matrix and shift were made from them.
    """
    result: torch.Tensor = _Affine.apply(x, matrix, shift, mask, returned)  # type: ignore[no-untyped-call]
    return result


# ------------------------------------------------------------------------------- sums and products over a whole layer


def dense(x: torch.Tensor) -> torch.Tensor:
    """x without gaps: channels of a pixel together where they are so already, on a CPU, else channel by channel."""
    return x.contiguous(memory_format=_layout(x))


def _layout(x: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if _together(x) else torch.contiguous_format


def _together(x: torch.Tensor) -> bool:
    """Whether channels of a pixel lie together; on a GPU a 1x1 convolution would round more than a product does."""
    apart = x.dim() != 4 or x.device.type != "cpu" or x.is_contiguous()
    return not apart and x.is_contiguous(memory_format=torch.channels_last)


def _sum(x: torch.Tensor) -> torch.Tensor:
    """Sums [C] of x [N, C, ...]; those of images, which are short, are added in double precision."""
    each = x.sum((2, 3)) if _together(x) else x.view(*x.shape[:2], -1).sum(2)
    return each.sum(0, dtype=torch.float64).to(x.dtype)


def _outer(a: torch.Tensor, b: torch.Tensor, size: int) -> torch.Tensor:
    """Sums [blocks, size, size] of a_i b_j over images and positions, for i and j of a block of channels.

    Each product is short; adding them up in double precision keeps a mean far from zero harmless.
    """
    if not _together(a):
        each = torch.bmm(_blocks(a, size), _blocks(b, size).transpose(1, 2)).view(len(a), -1, size, size)
        return each.sum(0, dtype=torch.float64).to(a.dtype)
    images, channels, *sides = a.shape
    some = next(n for n in range(max(1, min(images, 1024 // (sides[0] * sides[1]))), 0, -1) if images % n == 0)
    one, other = (x.permute(0, 2, 3, 1).reshape(images // some, -1, channels).split(size, 2) for x in (a, b))
    blocks = [torch.bmm(p.transpose(1, 2), q).sum(0, dtype=torch.float64) for p, q in zip(one, other, strict=True)]
    return torch.stack(blocks).to(a.dtype)


def _times(matrix: torch.Tensor, x: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    """matrix [blocks, size, size] times x [N, C, ...] plus shift [C]: a tensor of its own, which may be changed."""
    if _together(x):
        return F.conv2d(x, _kernel(matrix), shift, groups=len(matrix))
    blocks = _blocks(x, matrix.shape[1])
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.bmm(_each(matrix, len(x)), blocks, out=result.view(blocks.shape))
    return result if shift is None else result.add_(shift.view(-1, *[1] * (x.dim() - 2)))


def _add_times(result: torch.Tensor, matrix: torch.Tensor, x: torch.Tensor) -> None:
    """Add matrix [blocks, size, size] times x [N, C, ...] in place."""
    if _together(x):
        result.add_(F.conv2d(x, _kernel(matrix), groups=len(matrix)))
    else:
        blocks = _blocks(x, matrix.shape[1])
        result.view(blocks.shape).baddbmm_(_each(matrix, len(x)), blocks)


def _kernel(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.reshape(-1, matrix.shape[2], 1, 1)


def _blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """x [N, C, ...] as [N * blocks, size, S]."""
    return x.view(-1, size, x[0, 0].numel())


def _each(matrix: torch.Tensor, n: int) -> torch.Tensor:
    """[blocks, size, size] once for each of n images."""
    return matrix.expand(n, -1, -1) if len(matrix) == 1 else matrix.repeat(n, 1, 1)


# ------------------------------------------------------------------------------------------- a layer as one linear map


@dataclass(frozen=True)
class WhiteningMap:
    """What a layer does in one pass: A [blocks, size, size] and b [C], and how scale and shift [C] look behind W.

    mean, variance [C], correlation and root (W) [blocks, size, size] are without gradients.
    """

    matrix: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    root: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    correlation: torch.Tensor


def mapped(found: NormStatistics, gamma: torch.Tensor, beta: torch.Tensor, steps: int, eps: float) -> WhiteningMap:
    """`inverse_root` of `normalised` correlations, and `composed`, as one step there and back."""
    return WhiteningMap(*_Mapped.apply(found.total, found.products, found.count, gamma, beta, steps, eps))  # type: ignore[no-untyped-call]


class _Mapped(torch.autograd.Function):
    """Dozens of small operations a layer would cost more in autograd's book-keeping than in arithmetic."""

    @staticmethod
    def forward(
        ctx: Any,
        total: torch.Tensor,
        products: torch.Tensor,
        count: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        steps: int,
        eps: float,
    ) -> tuple[torch.Tensor, ...]:
        shape = products.shape[:2]
        mean, g, b = (total / count).view(shape), gamma.view(shape), beta.view(shape)
        covariance = products / count - mean[:, :, None] * mean[:, None, :]
        variance = covariance.diagonal(dim1=1, dim2=2)
        inverse = (variance + eps).rsqrt()
        both = inverse[:, :, None] * inverse[:, None, :]
        square = g.square().sum(1, keepdim=True).add_(NORM_EPS)
        spread = g[:, :, None] * g[:, None, :] / square[:, :, None]
        rho = covariance * both
        normal = spread * rho
        root, taken = newton(normal, steps)
        behind = root @ torch.stack([g, b, g * inverse * mean], 2)  # W gamma, W beta and A mean
        scale, offset, moved = behind.unbind(2)
        outputs = (
            root * (g * inverse)[:, None, :], (offset - moved).reshape(-1), scale.reshape(-1), offset.reshape(-1),
            root, mean.reshape(-1), variance.reshape(-1), rho,
        )  # fmt: skip
        ctx.mark_non_differentiable(*outputs[4:])
        ctx.save_for_backward(count, mean, g, b, covariance, inverse, both, square, spread, rho, normal, root, *taken)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        count, mean, g, b, covariance, inverse, both, square, spread, rho, normal, root, *taken = ctx.saved_tensors
        of_matrix, of_shift, of_scale, of_offset = grads[0], *(each.view(mean.shape) for each in grads[1:4])
        columns = g * inverse
        # A = W diag(columns), scale = W gamma, offset = W beta, shift = offset - W (columns mean)
        left = torch.stack([of_scale, of_offset + of_shift, -of_shift], 2)
        right = torch.stack([g, b, columns * mean], 2)
        of_root = torch.baddbmm(of_matrix * columns[:, None, :], left, right.transpose(1, 2))
        of_g, of_b, of_moved = (root.transpose(1, 2) @ left).unbind(2)
        of_columns = torch.addcmul((of_matrix * root).sum(1), of_moved, mean)
        # S = spread rho, spread = gamma gamma^T / |gamma|^2, rho = covariance both, both = inverse inverse^T
        of_normal = newton_back(of_root, normal, taken)
        along = _twice(of_normal * rho / square[:, :, None], g)
        of_g = of_g + of_columns * inverse + along - g * ((g * along).sum(1, keepdim=True) / square)
        of_rho = of_normal * spread
        of_inverse = of_columns * g + _twice(of_rho * covariance, inverse)
        of_covariance = of_rho * both
        of_covariance.diagonal(dim1=1, dim2=2).addcmul_(of_inverse, inverse**3, value=-0.5)
        of_mean = of_moved * columns - _twice(of_covariance, mean)
        return (
            of_mean.reshape(-1) / count,
            of_covariance / count,
            None,
            of_g.reshape(-1),
            of_b.reshape(-1),
            None,
            None,
        )


def _twice(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """(M + M^T) v for matrix [blocks, size, size] and vector [blocks, size]."""
    return ((matrix + matrix.transpose(1, 2)) @ vector[:, :, None]).squeeze(2)


def newton(covariance: torch.Tensor, steps: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """P_T of P_0 = I, P_k = (3 P - Q R) / 2 with Q = P P, R = P S of P = P_{k-1}; and P, Q, R of steps after the first.

    covariance: S [blocks, size, size].
    """
    eye = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device)
    root, taken = torch.sub(1.5 * eye, covariance, alpha=0.5), list[torch.Tensor]()
    for _ in range(steps - 1):
        taken += root, root @ root, root @ covariance
        root = torch.baddbmm(*taken[-3:], beta=1.5, alpha=-0.5)
    return root, taken


def newton_back(grad: torch.Tensor, covariance: torch.Tensor, taken: Sequence[torch.Tensor]) -> torch.Tensor:
    """The gradient of S from that of P_T. taken: P, Q and R of every step, from `newton`."""
    result = torch.zeros_like(covariance)
    for k in range(len(taken) - 3, -1, -3):
        p, q, r = (each.transpose(1, 2) for each in taken[k : k + 3])
        of_q = torch.baddbmm(grad, grad, r, beta=0, alpha=-0.5)
        of_r = torch.baddbmm(grad, q, grad, beta=0, alpha=-0.5)
        result.baddbmm_(p, of_r)
        grad = torch.baddbmm(grad, of_q, p, beta=1.5).baddbmm_(p, of_q).baddbmm_(of_r, covariance.transpose(1, 2))
    return result.sub_(grad, alpha=0.5)


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
