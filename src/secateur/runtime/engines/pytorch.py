"""PyTorch as it is: eager, operator by operator, where the network's parameters are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from secateur.errors import RunError
from secateur.graph.modules import as_call
from secateur.runtime.engines.base import Call, Engine, Seconds, Watch, device_of
from secateur.runtime.engines.watching import clock, watched, with_rest
from secateur.runtime.inputs import to_device


def prepare(model: nn.Module, inputs: Any, threads: int) -> Call:
    """The module itself; RunError if it does not run with these inputs."""
    device = device_of(model)
    args, kwargs = as_call(to_device(inputs, device))
    cuda = device.type == "cuda"

    def call() -> object:
        with torch.no_grad():
            output = model(*args, **kwargs)
        if cuda:
            torch.cuda.synchronize(device)
        return output

    try:
        call()
    except Exception as error:  # whatever a foreign forward raises
        raise RunError(
            f"{type(model).__name__} cannot be timed with this batch size ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): set latency.batch_size (--batch) to one it runs with."
        ) from error
    return call


def prepare_each(model: nn.Module, several: Sequence[Any], threads: int) -> Call:
    """The module, once for each of the inputs."""
    calls = [prepare(model, inputs, threads) for inputs in several]

    def call() -> object:
        return [each() for each in calls]

    return call


def watch(model: nn.Module, inputs: Any, threads: int) -> Watch:
    """By hooks around every layer, which are there only while it runs."""
    args, kwargs = as_call(to_device(inputs, device_of(model)))
    now, found = clock(model), list[Seconds]()

    def run() -> None:
        with torch.no_grad(), watched(model) as spent:
            start = now()
            model(*args, **kwargs)
            whole = now() - start
        found.append(with_rest(spent, whole))

    return Watch(run, lambda: found[1:])


ENGINE = Engine("pytorch", "PyTorch, eager", prepare, watch=watch, prepare_each=prepare_each)
