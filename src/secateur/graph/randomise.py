"""Random weights, statistics and inputs for verification: nothing hides behind a small scale or a trained zero."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.graph.calls import Mode, schema_of
from secateur.graph.modules import clone_module, map_tensors, named_tensors, output_tensors


def twin_of(model: nn.Module, dtype: torch.dtype | None, used: Container[str] | None = None) -> nn.Module:
    """A copy on the CPU in evaluation mode, its floating-point tensors as `dtype` (None: each as it is).

    used: names of the tensors that a forward uses (default: all); the others are not copied.
    """
    named = named_tensors(model).items() if used is not None else ()
    idle = {id(tensor) for name, tensor in named if used is not None and name not in used}

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in idle:
            return tensor
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", kind, copy=True)

    return clone_module(model, convert).eval()


def random_twin(
    model: nn.Module, dtype: torch.dtype | None, generator: torch.Generator, used: Container[str] | None = None
) -> nn.Module:
    """Vectors (affines, biases, layer scales, statistics) and vanishing weights become random numbers of order one.

    used: as of `twin_of`.
    """
    twin = twin_of(model, dtype, used)
    parameters, ranges = {id(p) for p in twin.parameters()}, _ranges(twin)
    for name, tensor in named_tensors(twin).items():
        if used is not None and name not in used:
            continue
        if not tensor.is_floating_point() or tensor.dim() == 0 or id(tensor) in ranges:
            continue
        vector = tensor.numel() == max(tensor.shape)
        data = tensor.data
        if vector and (id(tensor) not in parameters or float(data.mean()) > 0.5):
            data.uniform_(0.5, 1.5, generator=generator)
        elif vector:
            data.normal_(0, 0.5, generator=generator)
        elif id(tensor) in parameters and tensor.numel() > 1 and float(data.std()) < 1e-4:
            data.normal_(0, 0.05, generator=generator)
    return twin


def _ranges(model: nn.Module) -> set[int]:
    """Tensors of quantisers and of the observers of their ranges: a smallest value above the largest is an error."""
    return {
        id(tensor)
        for module in model.modules()
        if "fake_quant_enabled" in module._buffers or {"min_val", "max_val"} <= set(module._buffers.keys())
        for tensor in [*module.parameters(), *module.buffers()]
    }


def random_input(tensor: torch.Tensor, dtype: torch.dtype | None, generator: torch.Generator) -> torch.Tensor:
    """Random numbers in place of an example input; integers stay."""
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor.clone()
    kind = dtype or tensor.dtype
    if float(tensor.min()) >= 0 and float(tensor.max()) <= 1:  # images in [0, 1] stay images
        return torch.rand(tensor.shape, generator=generator, dtype=kind)
    return torch.randn(tensor.shape, generator=generator, dtype=kind)


class _Calibrate(Mode):
    """Batch norms take their running statistics from what they see, so that no layer saturates or vanishes."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        schema = schema_of(func)
        if "batch_norm" in schema.name:
            bound = dict(zip(schema.names, args, strict=False))
            x, mean, var = (bound.get(n) for n in ("input", "running_mean", "running_var"))
            if x is not None and mean is not None and var is not None:
                dims = [d for d in range(x.dim()) if d != 1]
                noise = torch.rand(2, x.shape[1], generator=self.generator, dtype=x.dtype) * 0.5 + 0.75
                mean.copy_(x.mean(dims) * noise[0])
                # a few values hardly vary (a single one not at all), and gains of 10 a layer would end in chaos
                spread = x.var(dims, unbiased=False) + x.square().mean() * (x.shape[1] / max(x.numel(), 1))
                var.copy_((spread + 1e-2) * noise[1])
        return func(*args, **(kwargs or {}))


def calibrate(model: nn.Module, inputs: Any, generator: torch.Generator) -> None:
    """Give batch norms (and observers of ranges) running statistics that fit the random weights and inputs."""
    if all(isinstance(tensor, nn.Parameter) and tensor.requires_grad for tensor in named_tensors(model).values()):
        return  # nothing that a forward could keep statistics in
    with _Calibrate(generator):
        _run(clone_module(model, lambda t: t), inputs)


def run(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """The outputs of `model`; it is left as it is, whatever its forward writes into attributes or buffers."""
    return _run(clone_module(model, lambda t: t if isinstance(t, nn.Parameter) else t.clone()), inputs)


def _run(throwaway: nn.Module, inputs: Any) -> list[torch.Tensor]:
    args, kwargs = map_tensors(inputs, torch.clone)
    with same_draws():
        return output_tensors(throwaway(*args, **kwargs))


@contextmanager
def same_draws() -> Iterator[None]:
    """Random numbers drawn in forward are the same in every run; the caller's stream is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
