"""Attributes of PyTorch's own layers: they say where they keep their sizes, so these are set outright."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from secateur.graph.calls import Mode, on_one_device
from secateur.graph.modules import modules_of
from secateur.graph.recorder import Call
from secateur.graph.sizes import Path, Repair, Sizes, get_number


def standard_repairs(modules: dict[str, nn.Module], sizes: Sizes) -> list[Repair]:
    """Attributes of PyTorch's own layers among these, read off the calls that ran in them."""
    found: dict[tuple[str, str, Path], Repair] = {}

    def want(name: str, attribute: str, new: int, path: Path = ()) -> None:
        old = get_number(modules[name], attribute, path)
        if isinstance(old, int) and old != new:
            found.setdefault((name, attribute, path), Repair(name, attribute, path, old, new))

    for call in sizes.recording.calls:
        module = modules.get(call.module)
        if isinstance(module, nn.modules.conv._ConvNd) and call.weight is not None:
            _want_conv(want, call, module, sizes)
        elif isinstance(module, nn.Linear) and call.weight is not None:
            want(call.module, "out_features", sizes.count(call.weight[0], module.out_features))
            want(call.module, "in_features", sizes.count(call.weight[1], module.in_features))
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            for e in call.expects:
                attribute = {"C": "num_channels", "group": "num_groups", "normalized_shape": "normalized_shape"}.get(
                    e.arg
                )
                if attribute is not None:
                    path: Path = () if e.position is None else (e.position,)
                    want(call.module, attribute, sizes.count(e.axis, 0), path)
    for tap in sizes.recording.taps:  # norms without tensors of their own
        module = modules.get(tap.module)
        if (
            isinstance(module, nn.modules.batchnorm._NormBase)
            and tap.dim == 1
            and not any(True for _ in module.buffers())
        ):
            want(tap.module, "num_features", sizes.count(tap.axis, 0))
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            for attribute, new in _heads(sizes, name, module):
                want(name, attribute, new)
        for attribute, new, path in _shown(module):
            want(name, attribute, new, path)
    return list(found.values())


def late_repairs(model: nn.Module) -> list[Repair]:
    """Sizes of layers whose tensors could not be computed before the numbers in their code had been repaired."""
    return [
        Repair(name, attribute, path, old, new)
        for name, module in modules_of(model)
        if is_parametrized(module)
        for attribute, new, path in _shown(module)
        if isinstance(old := get_number(module, attribute, path), int) and old != new
    ]


class _OneDevice(Mode):
    """Constants that the code of a parametrisation makes join the tensors they meet."""

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = on_one_device(args, kwargs)
        return func(*args, **kwargs)


def _shown(module: nn.Module) -> list[tuple[str, int, Path]]:
    """The sizes of `_own_sizes`; none where code of the model computes a tensor, and still for a width that is gone."""
    if not is_parametrized(module):
        return list(_own_sizes(module))
    try:
        with torch.no_grad(), _OneDevice():
            return list(_own_sizes(module))
    except Exception:  # whatever that code raises: the shape run meets it too, and repairs or reports it
        return []


def _want_conv(want: Any, call: Call, module: nn.modules.conv._ConvNd, sizes: Sizes) -> None:
    assert call.weight is not None
    groups = next((sizes.count(e.axis, 0) for e in call.expects if e.arg == "groups"), module.groups)
    per_group = (module.out_channels if module.transposed else module.in_channels) // module.groups
    rows = sizes.count(call.weight[0], module.in_channels if module.transposed else module.out_channels)
    columns = sizes.count(call.weight[1], per_group) * groups
    want(call.module, "groups", groups)
    want(call.module, "in_channels", rows if module.transposed else columns)
    want(call.module, "out_channels", columns if module.transposed else rows)


def _heads(sizes: Sizes, name: str, module: nn.MultiheadAttention) -> Iterator[tuple[str, int]]:
    """Alive heads and features a head, from the columns of the output projection."""
    axis = sizes.recording.places[f"{name}.out_proj.weight" if name else "out_proj.weight"][1]
    if axis is not None:
        grid = sizes.alive[axis].reshape(module.num_heads, -1)
        yield "num_heads", int(grid.any(axis=1).sum())
        yield "head_dim", int(grid.any(axis=0).sum())


def _own_sizes(module: nn.Module) -> Iterator[tuple[str, int, Path]]:
    """Sizes a module's own (already narrowed) tensors show."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = next((t for t in (module.weight, module.running_mean) if t is not None), None)
        if tensor is not None:
            yield "num_features", tensor.shape[0], ()
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and isinstance(module.weight, torch.Tensor):
        for k, n in enumerate(module.weight.shape):
            yield "normalized_shape", n, (k,)
    elif isinstance(module, nn.Linear):
        yield "out_features", module.weight.shape[0], ()
        yield "in_features", module.weight.shape[1], ()
    elif isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1:
        rows, columns = module.weight.shape[:2]
        yield "out_channels", columns if module.transposed else rows, ()
        yield "in_channels", rows if module.transposed else columns, ()
    elif isinstance(module, nn.Embedding):
        yield "embedding_dim", module.weight.shape[1], ()
    elif isinstance(module, nn.PReLU):
        yield "num_parameters", module.weight.numel(), ()
    elif isinstance(module, nn.RNNBase):
        tensors = dict(module.named_parameters(recurse=False))
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        yield "input_size", tensors["weight_ih_l0"].shape[1], ()
        yield "hidden_size", tensors["weight_hh_l0"].shape[0] // gates, ()
    elif isinstance(module, nn.MultiheadAttention):
        yield "embed_dim", module.out_proj.weight.shape[0], ()
        for name, own in (("kdim", "k_proj_weight"), ("vdim", "v_proj_weight")):
            weight = getattr(module, own) if module.in_proj_weight is None else module.in_proj_weight
            yield name, weight.shape[1], ()
