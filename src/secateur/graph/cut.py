"""Cut: keep the alive indices of every tensor, then make every size the model keeps elsewhere agree.

The cut is first made on a copy without storage and run there; only when every operator gets the shapes the plan
promises are the real tensors sliced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from secateur.graph.channels import Bools, Solution
from secateur.graph.labels import Axis, Ids
from secateur.graph.modules import META, Modules, clone_module, modules_of, tensors_of
from secateur.graph.recorder import Recording
from secateur.graph.resize import repair_and_follow, repair_sizes
from secateur.graph.sizes import Repair, Sizes, put_number
from secateur.graph.stale import Stale

Slices = dict[str, tuple[Ids | None, ...]]


@dataclass(frozen=True)
class Cut:
    """A narrower network and how it was made."""

    model: nn.Module
    slices: Slices  # kept indices of every tensor that changed, per dimension (None: all)
    repairs: tuple[Repair, ...] = field(default=())  # attributes that held a size
    stale: tuple[Stale, ...] = field(default=())  # attributes that may still speak of an old size


def alive_slots(solution: Solution, masks: Mapping[str, Bools]) -> Bools:
    """Which slots survive under the masks of a plan (groups not named are kept whole)."""
    alive = np.ones(int(solution.channel.max(initial=-1)) + 2, dtype=bool)  # the last entry stands for frozen (-1)
    for group in solution.groups:
        if group.name in masks:
            alive[group.channels] = masks[group.name]
    survives: Bools = alive[solution.channel[solution.component]]
    return survives


def slices_of(recording: Recording, alive: Bools) -> Slices:
    """Kept indices of every parameter and buffer that loses any."""
    result: Slices = {}
    done: dict[bytes, Ids | None] = {}

    def kept(axis: Axis) -> Ids | None:
        if axis is None:
            return None
        keep = alive[axis]
        key = keep.tobytes()  # tensors of one layer keep the same, and so do layers that are coupled
        if key not in done:
            done[key] = None if bool(keep.all()) else keep.nonzero()[0]
        return done[key]

    for name, label in recording.places.items():
        if name in recording.first_use:
            own = tuple([kept(axis) for axis in label])
            if any(k is not None for k in own):
                result[name] = own
    return result


def take(tensor: torch.Tensor, kept: tuple[Ids | None, ...]) -> torch.Tensor:
    """The kept indices of a tensor, as a dense tensor of the same dtype, device and memory format."""
    result = tensor.detach()
    if result.device.type == "cpu" and result.element_size() in _CARRIERS and result.numel() > 1024:
        result = _take_on_cpu(result, kept)
    else:
        for dim, index in enumerate(kept):
            if index is not None:
                result = result.index_select(dim, torch.from_numpy(np.ascontiguousarray(index)).to(result.device))
    for layout, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if tensor.dim() == rank and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
            return result.contiguous(memory_format=layout)
    return result.contiguous()


def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Let a parameter or buffer hold `value`, of another shape: its old gradient goes.

    While the loss of an earlier step is alive, so is the node that accumulates the gradient, and it knows the old
    shape; only another type makes a tensor let go of it.
    """
    tensor.grad = None
    if tensor.requires_grad:
        tensor.data = value.new_empty(0, dtype=torch.float64 if value.dtype != torch.float64 else torch.float32)
    tensor.data = value


_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _take_on_cpu(tensor: torch.Tensor, kept: tuple[Ids | None, ...]) -> torch.Tensor:
    """NumPy's `take` is three to five times faster than `index_select` here; any dtype travels as an integer."""
    array = tensor.view(_CARRIERS[tensor.element_size()]).numpy()
    for dim, index in enumerate(kept):
        if index is not None:
            array = np.take(array, index, axis=dim)
    return torch.from_numpy(array).view(tensor.dtype)


def _taken(tensor: torch.Tensor, kept: tuple[Ids | None, ...] | None) -> torch.Tensor:
    """A copy of what is kept of a tensor."""
    return tensor.detach().clone() if kept is None else take(tensor, kept)


def _narrow_copy(
    model: nn.Module, modules: Modules, tensors: Mapping[str, torch.Tensor], recording: Recording, slices: Slices
) -> nn.Module:
    """A narrow copy without values, its attributes as they were. modules, tensors: all of the model's, by name."""
    by_id = {id(t): slices.get(name) for name, t in tensors.items()}
    idle = {id(t) for name, t in tensors.items() if name not in recording.first_use}

    def shape_only(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in idle:
            return tensor  # nothing runs it
        kept = by_id.get(id(tensor))
        if kept is None:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
        shape = [n if k is None else len(k) for n, k in zip(tensor.shape, kept, strict=True)]
        return torch.empty(shape, dtype=tensor.dtype, device=META)

    if recording.on_meta:
        return clone_module(model, shape_only, modules)
    return clone_module(model, lambda t: _taken(t, by_id.get(id(t))), modules)  # a forward may write to its buffers


def _narrow(
    modules: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor], slices: Slices, repairs: list[Repair]
) -> None:
    """Narrow these tensors and set these sizes; where it does not come to its end (Ctrl-C), all are as they were."""
    narrow = {name: take(tensor, slices[name]) for name, tensor in tensors.items()}
    before = {name: (tensor.data, tensor.grad) for name, tensor in tensors.items()}
    try:
        for name, tensor in tensors.items():
            put(tensor, narrow[name])
        for repair in repairs:
            repair.apply(modules[repair.module])
    except BaseException:
        for name, (value, gradient) in before.items():
            put(tensors[name], value)
            tensors[name].grad = gradient
        for repair in reversed(repairs):
            put_number(modules[repair.module], repair.attribute, repair.path, repair.old)
        raise


def check(
    model: nn.Module,
    inputs: object,
    recording: Recording,
    solution: Solution,
    alive: Bools,
    about: Collection[int] = (),
) -> None:
    """Raise `SizeConflict` where a size in the model's code cannot follow a cut; the model stays as it is.

    about: the calls that are of interest, if not all are.
    """
    modules = modules_of(model)
    twin = _narrow_copy(model, modules, tensors_of(modules), recording, slices_of(recording, alive))
    repair_sizes(twin, inputs, Sizes(recording, solution, alive), about)


def cut(
    model: nn.Module, inputs: object, recording: Recording, solution: Solution, alive: Bools, *, inplace: bool
) -> Cut:
    """A narrower copy of `model` (or `model` itself, narrowed) with only the alive slots.

    Raises `SizeConflict` when a size in the model's code cannot follow; the model is then untouched.
    """
    modules = modules_of(model)
    tensors = tensors_of(modules)
    slices = slices_of(recording, alive)
    twin = _narrow_copy(model, modules, tensors, recording, slices)
    repairs, stale = repair_and_follow(twin, inputs, Sizes(recording, solution, alive))
    by_id = {id(t): slices.get(name) for name, t in tensors.items()}

    if inplace:
        narrow = model
        _narrow(dict(modules), {name: tensors[name] for name in slices}, slices, repairs)
    else:
        narrow = clone_module(model, lambda t: _taken(t, by_id.get(id(t))), modules)
        modules = modules_of(narrow)
        by_name = dict(modules)
        for repair in repairs:
            repair.apply(by_name[repair.module])
    for _, module in modules:
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    return Cut(narrow, slices, tuple(repairs), tuple(stale))
