"""Shape-only stand-ins for operators whose meta kernels PyTorch decomposes in Python, a millisecond a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

UNARY = frozenset(
    "aten::relu aten::hardtanh aten::hardswish aten::hardsigmoid aten::silu aten::gelu aten::sigmoid aten::tanh "
    "aten::leaky_relu aten::elu aten::mish aten::softplus aten::clamp aten::clamp_min".split()
)
BINARY = frozenset({"aten::add", "aten::sub", "aten::mul", "aten::div"})
BATCH_NORMS = frozenset(
    f"aten::{name}" for name in ("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update")
)


def run_on_meta(name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The result of `func` on meta tensors; by a shortcut where its shapes are certain."""
    if kwargs or not args or not isinstance(args[0], torch.Tensor) or args[0].device.type != "meta":
        return func(*args, **kwargs)
    x = args[0]
    if name in UNARY and x.is_floating_point() and not any(isinstance(a, torch.Tensor) for a in args[1:]):
        return _like(x)
    if name.endswith("_") and name[:-1] in UNARY and not any(isinstance(a, torch.Tensor) for a in args[1:]):
        return x
    if name.removesuffix("_") in BINARY and len(args) == 2 and isinstance(args[1], torch.Tensor):
        y = args[1]
        if x.shape == y.shape and x.dtype == y.dtype and x.is_floating_point():
            return x if name.endswith("_") else _like(x)
    if name == "aten::convolution" and len(args) == 9:
        shape = _convolved(args)
        return func(*args) if shape is None else torch.empty(shape, dtype=x.dtype, device="meta")
    if name in BATCH_NORMS and _fits(x, args) and not any(a is True for a in args[5:]):
        nothing = torch.empty(0, device="meta", dtype=x.dtype)
        outs = (_like(x), nothing, nothing.clone())
        return outs if name != "aten::_batch_norm_no_update" else (*outs, nothing.clone())
    return func(*args, **kwargs)


def _like(x: torch.Tensor) -> torch.Tensor:
    """`torch.empty_like`, which PyTorch works out in Python on the meta device, too."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta") if x.is_contiguous() else torch.empty_like(x)


def _convolved(args: Any) -> list[int] | None:
    """Output shape of a plain convolution whose channels fit; None leaves it to PyTorch."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    rank = weight.dim() - 2
    lengths = {len(stride), len(padding), len(dilation)}
    if transposed or x.dim() != weight.dim() or x.dtype != weight.dtype or lengths != {rank}:
        return None
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        return None
    space = [
        (n + 2 * padding[d] - dilation[d] * (weight.shape[d + 2] - 1) - 1) // stride[d] + 1
        for d, n in enumerate(x.shape[2:])
    ]
    return [x.shape[0], weight.shape[0], *space] if min(space) > 0 else None


def _fits(x: torch.Tensor, args: Any) -> bool:
    vectors = [a for a in args[1:5] if isinstance(a, torch.Tensor)]
    return x.dim() >= 2 and all(tuple(v.shape) == (x.shape[1],) for v in vectors)
