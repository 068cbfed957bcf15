"""What the processes of one run share: sums and means over all of them, which autograd sees through.

With a single process everything here is the identity. It stands below methods and engine, so that both may use it.
The loss is understood as the sum of what each process calls `backward` on, as it is when the engine adds up gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _active() else 1


def rank() -> int:
    """Which of them this is, from 0; the first one writes the files."""
    return distributed.get_rank() if _active() else 0


def global_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of this tensor over all processes; its gradient is summed over them in turn."""
    if world() == 1:
        return tensor
    total: torch.Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def global_mean(tensor: torch.Tensor, weight: float | None = None) -> torch.Tensor:
    """The mean of this tensor over all processes, the same in each; the gradient takes the same way back.

    Args:
        tensor: of the same shape in every process; typically a mean over the images that this process holds.
        weight: how many values it is a mean of. Give it, and processes with unequal shares of a batch arrive at
            the mean over the whole batch; a process without images (weight 0) does not count. None: all alike.
    """
    if world() == 1:
        return tensor
    if weight is None:
        return global_sum(tensor) / world()
    share = (tensor * weight if weight else torch.nan_to_num(tensor) * 0.0).flatten()  # a mean over nothing is NaN
    both = global_sum(torch.cat([share, share.new_tensor([float(weight)])]))
    return (both[:-1] / both[-1]).view_as(tensor)


def global_max(tensor: torch.Tensor) -> torch.Tensor:
    """The largest of every value over all processes; without a gradient."""
    if world() == 1:
        return tensor
    return _reduced(tensor, distributed.ReduceOp.MAX)


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in all of them; also what it raises."""
    if world() == 1:
        return make()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = make()
        except Exception as error:  # the others wait for an answer
            told[1] = error
    distributed.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    made: T = told[0]
    return made


def _active() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _reduced(tensor: torch.Tensor, op: Any) -> torch.Tensor:
    """A new tensor, reduced where the processes can do it, on the device of the old one."""
    found = tensor.detach().to(meeting(tensor.device), copy=True, memory_format=torch.contiguous_format)
    distributed.all_reduce(found, op=op)
    return found.to(tensor.device)


def meeting(device: torch.device) -> torch.device:
    """Where processes can add up what lies on `device`: NCCL knows GPUs only, and some statistics are on the CPU."""
    if device.type == "cpu" and distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device


class _Sum(torch.autograd.Function):
    """y = Σ_r x_r in every process r, so dL/dx_r = Σ_s dL_s/dy."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return _reduced(tensor, distributed.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return global_sum(gradient)  # itself differentiable
