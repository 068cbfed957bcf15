"""A copy of a network for images to climb on: what it computes in evaluation stays, what that takes is less.

Batch norms are folded into the convolutions that feed them alone, and the channels of a pixel lie together.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import suppress

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from secateur.graph.modules import clone_module


@torch.no_grad()
def quicker(
    model: nn.Module, sources: Mapping[str, str | None], image: torch.Tensor, *, shown: Container[str] = ()
) -> tuple[nn.Module, torch.memory_format]:
    """The copy, in evaluation, and how images that it is given should lie in memory.

    sources: what alone feeds each norm. image: [1, colours, height, width], to try it on. shown: layers whose own
    output is looked at, so that no norm is folded into them. Where a norm was, its name stands for what it made.
    """
    twin = _folded(clone_module(model, lambda tensor: tensor.detach().clone()).eval(), sources, shown)
    if image.device.type == "cpu":  # single precision on a GPU gains nothing
        kernels = [parameter for parameter in twin.parameters() if parameter.ndim == 4]
        apart = [kernel.data for kernel in kernels]
        for kernel in kernels:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        with suppress(RuntimeError):  # a `view` that flattens maps refuses such ones
            twin(image.contiguous(memory_format=torch.channels_last))
            return twin, torch.channels_last
        for kernel, data in zip(kernels, apart, strict=True):
            kernel.data = data
    return twin, torch.contiguous_format


def _folded(twin: nn.Module, sources: Mapping[str, str | None], shown: Container[str]) -> nn.Module:
    for name, source in sources.items():
        norm, layer = twin.get_submodule(name), twin.get_submodule(source) if source is not None else None
        if type(norm) is not nn.BatchNorm2d or type(layer) is not nn.Conv2d or source in shown:
            continue  # what is derived from them may do more
        if norm.running_mean is None or norm.running_var is None or _watched(norm) or _watched(layer):
            continue
        layer.weight, layer.bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        twin.set_submodule(name, nn.Identity())
    return twin


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
