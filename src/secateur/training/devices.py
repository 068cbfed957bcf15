"""What the machine is and can: Accelerate, asked for once, numbers of fewer bits, how tensors lie in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from secateur._files import said
from secateur._hints import install
from secateur.errors import ConfigError
from secateur.graph.modules import map_tensors
from secateur.recipe import EngineConfig


def accelerator(config: EngineConfig) -> Any:
    """An `accelerate.Accelerator` as the recipe's engine section says; starts the process group under a launcher.

    Raises:
        ConfigError: Accelerate is missing, or the machine cannot do what is asked.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
    except ImportError as error:
        raise ConfigError(f"Training needs Accelerate: {install('train')}.") from error
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device is cuda, but PyTorch finds no GPU: set engine.device: cpu, or auto.")
    # without being told, Accelerate forms no group of processes on a machine that has but a CPU
    cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
    if PartialState._shared_state != {}:
        # Accelerate keeps one state a process; another engine before this one may have asked for another
        turned = cpu != (PartialState().device.type == "cpu") and PartialState().num_processes == 1
        AcceleratorState._reset_state(turned)
    try:
        chosen = precision(config, PartialState(cpu=cpu).device)
        made = Accelerator(cpu=cpu, mixed_precision="no" if chosen == "fp32" else chosen)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"Accelerate cannot use device {config.device} with precision {config.precision}: {said(error)}."
        ) from error
    if config.device == "cuda" and made.device.type != "cuda":
        raise ConfigError(
            "engine.device is cuda, but the launcher chose the CPU: leave out --cpu, or set engine.device: auto."
        )
    if chosen != "fp32" and not made.native_amp:
        raise ConfigError(
            f"engine.precision {chosen} needs a GPU and this is {made.device.type}: set it to auto"
            + (", or bf16." if chosen == "fp16" else ".")
        )
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != str(made.num_processes):
        raise ConfigError(
            f"The launcher started {launched} processes, but Accelerate found {made.num_processes}: launch with "
            "torchrun or accelerate launch --multi_gpu, and engine.device: cpu where GPUs are not meant."
        )
    return made


def computes_bf16(device: torch.device) -> bool:
    """Whether the processor itself multiplies in bfloat16; emulated, it takes longer than single precision."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def precision(config: EngineConfig, device: torch.device) -> str:
    """In what layers compute: fp32, bf16 or fp16."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if computes_bf16(device) else "fp32"


def memory_format(config: EngineConfig, device: torch.device) -> torch.memory_format:
    """How images lie in memory: single precision on a GPU is as fast or faster with channels apart."""
    if config.memory_format != "auto":
        return torch.channels_last if config.memory_format == "channels_last" else torch.contiguous_format
    together = device.type == "cpu" or (device.type == "cuda" and precision(config, device) != "fp32")
    return torch.channels_last if together else torch.contiguous_format


@torch.no_grad()
def lay_out(module: nn.Module, layout: torch.memory_format, optimiser: torch.optim.Optimizer | None = None) -> None:
    """Let kernels, and what an optimiser keeps of each, lie in memory as images do; values stay as they are.

    A sum over tensors that lie differently may round differently, so this is done whenever tensors were made anew.
    """
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=layout)
    for like, kept in (optimiser.state if optimiser is not None else {}).items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == like.shape and value.stride() != like.stride():
                kept[name] = torch.empty_like(like).copy_(value)


def laid_out(inputs: Any, layout: torch.memory_format) -> Any:
    """Inputs whose images [n, C, H, W] are in this memory format; what has other dimensions has no choice of one."""
    return map_tensors(inputs, lambda each: each.to(memory_format=layout) if each.ndim == 4 else each)


def compiled(module: nn.Module) -> Callable[..., Any]:
    """The module's forward through torch.compile; ConfigError where it cannot be compiled here."""
    from torch._dynamo.exc import TorchDynamoException

    forward = torch.compile(module)

    def run(*inputs: Any, **named: Any) -> Any:
        try:
            return forward(*inputs, **named)
        except TorchDynamoException as error:
            raise ConfigError(
                f"The network cannot be compiled here ({said(error)[:200]}): set engine.compile to false."
            ) from error

    return run
