"""Batch norm over the images of all processes, on any device, and only while training lasts.

PyTorch's SyncBatchNorm runs on GPUs only and replaces modules; here a layer changes its class and changes it back, so
that names, hooks and everybody's references stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def synchronised(module: nn.Module) -> Iterator[None]:
    """Inside, every batch norm of `module` normalises by the statistics of the global batch.

    Layers that compute in a way of their own (a subclass with its own `forward`) are left alone.
    """
    found = [m for m in module.modules() if isinstance(m, _BatchNorm) and type(m).forward is _BatchNorm.forward]
    classes = [type(norm) for norm in found]
    made: dict[type[_BatchNorm], type[_BatchNorm]] = {}
    for norm in found:
        own = type(norm)
        norm.__class__ = made.setdefault(own, type(own.__name__, (_Synchronised, own), {}))
    try:
        yield
    finally:
        for norm, own in zip(found, classes, strict=True):
            norm.__class__ = own


class _Synchronised(_BatchNorm):
    """Mixed in before the layer's own class."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if self.training and self.track_running_stats:
            self._track(mean, variance, count)
        return output  # type: ignore[no-any-return]

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * count / (count - 1).clamp(min=1)).to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """y = (x − μ) / sqrt(σ² + ε) · w + b with μ, σ² of the global batch; statistics in float32 at least."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, bias: Any, eps: float) -> tuple[torch.Tensor, ...]:
        x = x.contiguous()
        mean, variance, count = _moments(x)
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = _shape(x)
        output = torch.addcmul(shift.view(shape), x.to(shift.dtype), scale.view(shape)).to(x.dtype)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        """dL/dx = w/σ · (g − mean(g) − x̂ · mean(g · x̂)), the means over the global batch."""
        x, weight, mean, inverse, count = ctx.saved_tensors
        shape, dims = _shape(x), _dims(x)
        g = gradient.to(mean.dtype)
        normal = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        own_bias, own_weight = g.sum(dims), (g * normal).sum(dims)
        both = torch.cat([own_bias, own_weight])
        distributed.all_reduce(both)
        bias_mean, weight_mean = (both / count).chunk(2)
        scale = inverse if weight is None else inverse * weight
        dx = (g - bias_mean.view(shape) - normal * weight_mean.view(shape)) * scale.view(shape)
        if weight is None:
            return dx.to(x.dtype), None, None, None
        # each process keeps its own part: gradients of parameters are added up over processes later
        return dx.to(x.dtype), own_weight.to(weight.dtype), own_bias.to(weight.dtype), None


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, variance and number of values of each channel over all processes, combined without cancellation."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    dims, count = _dims(x), x.numel() // max(x.shape[1], 1)
    values = x.to(dtype)
    if count:
        variance, mean = torch.var_mean(values, dims, correction=0)
    else:  # this process has no image of a small batch
        variance = mean = values.new_zeros(x.shape[1])
    own = torch.cat([mean, variance, mean.new_tensor([float(count)])])
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    table = torch.stack(parts)
    means, variances = table[:, :-1].chunk(2, dim=1)
    counts = table[:, -1:]
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    variance = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean, variance, total


def _dims(x: torch.Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]


def _shape(x: torch.Tensor) -> list[int]:
    return [-1 if d == 1 else 1 for d in range(x.ndim)]
