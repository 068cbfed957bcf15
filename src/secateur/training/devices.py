"""Accelerate, asked for once: which device, how many processes, which precision."""

from __future__ import annotations

import os
from typing import Any

from secateur._files import said
from secateur.errors import ConfigError
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
        raise ConfigError('Training needs Accelerate: pip install "secateur[train]".') from error
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device is cuda, but PyTorch finds no GPU: set engine.device: cpu, or auto.")
    # without being told, Accelerate forms no group of processes on a machine that has but a CPU
    cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
    if PartialState._shared_state != {}:
        # Accelerate keeps one state a process; another engine before this one may have asked for another
        turned = cpu != (PartialState().device.type == "cpu") and PartialState().num_processes == 1
        AcceleratorState._reset_state(turned)
    try:
        made = Accelerator(cpu=cpu, mixed_precision=config.mixed_precision)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"Accelerate cannot use device {config.device} with mixed_precision {config.mixed_precision}: "
            f"{said(error)}."
        ) from error
    if config.device == "cuda" and made.device.type != "cuda":
        raise ConfigError(
            "engine.device is cuda, but the launcher chose the CPU: leave out --cpu, or set engine.device: auto."
        )
    if config.mixed_precision != "no" and not made.native_amp:
        raise ConfigError(
            f"engine.mixed_precision {config.mixed_precision} needs a GPU and this is {made.device.type}: set it to no"
            + (", or bf16." if config.mixed_precision == "fp16" else ".")
        )
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != str(made.num_processes):
        raise ConfigError(
            f"The launcher started {launched} processes, but Accelerate found {made.num_processes}: launch with "
            "torchrun or accelerate launch --multi_gpu, and engine.device: cpu where GPUs are not meant."
        )
    return made
