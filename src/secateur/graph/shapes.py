"""Shape-only stand-ins for operators whose meta kernels PyTorch decomposes in Python, up to milliseconds a call.

Each gives what PyTorch gives on the meta device: shapes, strides and types; what it is not certain of it leaves to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
Shape = tuple[int, ...]

_META = torch.device("meta")
_EXACT = (torch.float32, torch.float64)  # what norms compute in, whatever the device
_NUMBERS = (int, float)


def run_on_meta(name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The result of `func` on meta tensors; by a shortcut where its shapes are certain."""
    shortcut = _SHORTCUTS.get(name)
    if shortcut is not None and not kwargs and args:
        out = shortcut(args)
        if out is not None:
            return out
    return func(*args, **kwargs)


def _on_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


def _any_tensor(values: Any) -> bool:
    """Whether any of these is a tensor; that a number is none takes its time to find out."""
    return any(type(value) not in _NUMBERS and isinstance(value, torch.Tensor) for value in values)


def _unary(args: Any) -> torch.Tensor | None:
    x = args[0]
    if not (_on_meta(x) and x.is_floating_point()) or _any_tensor(args[1:]):
        return None
    return _like(x)


def _unary_in_place(args: Any) -> torch.Tensor | None:
    if not _on_meta(args[0]) or _any_tensor(args[1:]):
        return None
    return args[0]  # type: ignore[no-any-return]


def _binary(args: Any) -> torch.Tensor | None:
    if len(args) != 2 or not (_on_meta(args[0]) and args[0].is_floating_point()):
        return None
    x, y = args
    if type(y) in _NUMBERS or (_on_meta(y) and y.dim() == 0 < x.dim() and not y.is_complex()):
        return _like(x)
    if not _on_meta(y) or x.dtype != y.dtype:
        return None
    shape = _broadcast(tuple(x.shape), tuple(y.shape))
    return None if shape is None else _elementwise(shape, (x, y))


def _binary_in_place(args: Any) -> torch.Tensor | None:
    if len(args) != 2 or not (_on_meta(args[0]) and args[0].is_floating_point()):
        return None
    x, y = args
    if type(y) in _NUMBERS or (_on_meta(y) and x.dtype == y.dtype and _broadcast(x.shape, y.shape) == tuple(x.shape)):
        return x  # type: ignore[no-any-return]
    return None


def _convolution(args: Any) -> torch.Tensor | None:
    if len(args) != 9 or not _on_meta(args[0]):
        return None
    shape = _convolved(args)
    return None if shape is None else _empty(shape, args[0].dtype)


def _convolved(args: Any) -> Shape | None:
    """Output shape of a plain convolution whose channels fit; None leaves it to PyTorch."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    given, kernel = tuple(x.shape), tuple(weight.shape)
    rank = len(kernel) - 2
    if transposed or len(given) != len(kernel) or x.dtype != weight.dtype:
        return None
    if not len(stride) == len(padding) == len(dilation) == rank:
        return None
    if given[1] != kernel[1] * groups or kernel[0] % groups:
        return None
    if bias is not None and tuple(bias.shape) != kernel[:1]:
        return None
    space = [
        (given[d + 2] + 2 * padding[d] - dilation[d] * (kernel[d + 2] - 1) - 1) // stride[d] + 1 for d in range(rank)
    ]
    return (given[0], kernel[0], *space) if min(space) > 0 else None


def _batch_norm(args: Any) -> tuple[torch.Tensor, ...] | None:
    x = args[0]
    if not _on_meta(x) or x.dim() < 2 or any(a is True for a in args[5:]):
        return None
    width = tuple(x.shape[1:2])
    if any(isinstance(a, torch.Tensor) and tuple(a.shape) != width for a in args[1:5]):
        return None
    out = _like(x)
    if out is None:
        return None
    nothing = _empty((0,), x.dtype)
    return out, nothing, nothing.detach()


def _batch_norm_no_update(args: Any) -> tuple[torch.Tensor, ...] | None:
    outs = _batch_norm(args)
    return None if outs is None else (*outs, outs[1].detach())


def _layer_norm(args: Any) -> tuple[torch.Tensor, ...] | None:
    x, own = args[0], tuple(args[1])
    if len(args) != 5 or not _on_meta(x) or x.dtype not in _EXACT or not own or tuple(x.shape[-len(own) :]) != own:
        return None
    if any(a is not None and (a.dtype != x.dtype or tuple(a.shape) != own) for a in args[2:4]):
        return None
    if x.is_contiguous() and not _is_plain(x):
        return None  # its strides along dimensions of size one are kept
    rows = (*x.shape[: -len(own)], *(1,) * len(own))
    return _empty(tuple(x.shape), x.dtype), _empty(rows, x.dtype), _empty(rows, x.dtype)


def _softmax(args: Any) -> torch.Tensor | None:
    x = args[0]
    plain = _on_meta(x) and x.dim() and x.is_floating_point() and _is_plain(x) and -x.dim() <= args[1] < x.dim()
    return _empty(tuple(x.shape), x.dtype) if plain and not any(args[2:]) else None


def _addmm(args: Any) -> torch.Tensor | None:
    if len(args) != 3 or not all(map(_on_meta, args)):
        return None
    bias, a, b = args
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or tuple(bias.shape) != tuple(b.shape[1:]):
        return None
    return _empty((a.shape[0], b.shape[1]), a.dtype) if a.dtype == b.dtype == bias.dtype else None


def _mean(args: Any) -> torch.Tensor | None:
    if not 2 <= len(args) <= 3 or not _on_meta(args[0]) or not isinstance(args[1], list) or not args[1]:
        return None
    x, rank = args[0], args[0].dim()
    if not x.is_floating_point() or not all(-rank <= d < rank for d in args[1]):
        return None
    summed = {d % rank for d in args[1]}
    if len(summed) < len(args[1]):
        return None
    keep = len(args) == 3 and args[2]
    return _empty(tuple(1 if d in summed else n for d, n in enumerate(x.shape) if keep or d not in summed), x.dtype)


def _cat(args: Any) -> torch.Tensor | None:
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    if not all(_on_meta(t) and t.dtype == first.dtype and t.dim() == first.dim() and _is_plain(t) for t in tensors):
        return None
    rank = first.dim()
    if rank < 2 or not -rank <= dim < rank:
        return None
    shapes = [list(t.shape) for t in tensors]
    total = sum(shape.pop(dim) for shape in shapes)
    if any(shape != shapes[0] for shape in shapes):
        return None
    shapes[0].insert(dim % rank, total)
    return _empty(tuple(shapes[0]), first.dtype)


_SHORTCUTS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(UNARY, _unary),
    **{f"{name}_": _unary_in_place for name in UNARY},
    **dict.fromkeys(BINARY, _binary),
    **{f"{name}_": _binary_in_place for name in BINARY},
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    "aten::_batch_norm_no_update": _batch_norm_no_update,
    "aten::convolution": _convolution,
    "aten::native_layer_norm": _layer_norm,
    "aten::_softmax": _softmax,
    "aten::_safe_softmax": _softmax,
    "aten::addmm": _addmm,
    "aten::mean": _mean,
    "aten::cat": _cat,
}


# ---------------------------------------------------------------------------------------------------- what comes out


def _strides(shape: Sequence[int]) -> Shape:
    """Strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size or 1
    return tuple(strides[::-1])


def _empty(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, _strides(shape), dtype=dtype, device=_META)


def _is_plain(x: torch.Tensor) -> bool:
    """Whether strides are those of a contiguous tensor, along dimensions of size one, too."""
    return x.stride() == _strides(x.shape)


def _is_regular(x: torch.Tensor) -> bool:
    """Whether the strides, along dimensions of size one too, are those that PyTorch gives to tensors of this layout."""
    shape, own = tuple(x.shape), x.stride()
    if own == _strides(shape):
        return True
    if x.is_contiguous():
        return False
    if len(shape) == 4 and x.is_contiguous(memory_format=torch.channels_last):
        n, *space, c = _strides([shape[d] for d in (0, 2, 3, 1)])
        return own == (n, c, *space)
    return own == _dense(shape, (own,))


def _like(x: torch.Tensor) -> torch.Tensor | None:
    return _elementwise(tuple(x.shape), (x,))


def _broadcast(a: Sequence[int], b: Sequence[int]) -> Shape | None:
    """The common shape of two; None where there is none."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b)
    if any(m != n and 1 not in (m, n) for m, n in zip(a, b, strict=True)):
        return None
    return tuple(n if m == 1 else m for m, n in zip(a, b, strict=True))


def _elementwise(shape: Shape, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    """What comes of tensors combined element by element: dense, its dimensions in the order of those of `tensors`.

    None where a stride along a dimension of size one is unusual: what becomes of it depends on the operator.
    """
    strides = _strides(shape)
    if not all(t.stride() == (strides if tuple(t.shape) == shape else _strides(t.shape)) for t in tensors):
        if not all(map(_is_regular, tensors)):
            return None
        strides = _dense(shape, [t.expand(shape).stride() for t in tensors])
    return torch.empty_strided(shape, strides, dtype=tensors[0].dtype, device=_META)


def _dense(shape: Shape, strides: Sequence[Shape]) -> Shape:
    """The strides of an elementwise result of tensors with these strides, as `torch._prims_common` orders them."""

    def swapped(a: int, b: int) -> int:
        for own in strides:
            if own[a] == 0 or own[b] == 0:
                continue
            if own[a] == own[b]:
                if shape[b] >= shape[a]:
                    continue
                return 1
            return -1 if own[a] < own[b] else 1
        return 0

    order = list(reversed(range(len(shape))))
    for k in range(1, len(order)):
        at = k
        for other in reversed(range(k)):
            sign = swapped(order[other], order[at])
            if sign > 0:
                order[other], order[at] = order[at], order[other]
                at = other
            elif sign < 0:
                break
    inner = _strides([shape[d] for d in order[::-1]])
    return tuple(inner[::-1][order.index(d)] for d in range(len(shape)))
