"""A judge of cuts that asks the library nothing: which slices were kept is read off the values of the weights.

All values of a weight are made different, so that a narrowed weight tells which slices of the original it holds. The
original with all other slices set to zero must then compute what the narrow network computes, in both modes.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur import Result, SecateurError

TOLERANCE = 1e-5  # relative, in float32


def unique(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics of order one, no value twice in a weight; fixed parameters and other buffers stay."""
    generator = torch.Generator().manual_seed(seed)
    statistics = [(n, b) for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    for name, tensor in [*((n, p.data) for n, p in model.named_parameters() if p.requires_grad), *statistics]:
        count = tensor.numel()
        spread = (torch.randperm(count, generator=generator) + 0.5).reshape(tensor.shape) / max(count, 1)
        if tensor.dim() > 1:
            tensor.copy_((spread - 0.5) * (12.0 / max(tensor[0].numel(), 1)) ** 0.5)
        else:
            tensor.copy_(0.5 + spread if name.endswith(("running_var", "weight")) else spread - 0.5)
    return model


def kept(whole: torch.Tensor, narrow: torch.Tensor) -> list[np.ndarray]:
    """For each dimension the indices of `whole` that `narrow` holds, found by value."""
    assert whole.dim() == narrow.dim(), "another number of dimensions"
    values, sought = whole.detach().double().numpy(), narrow.detach().double().numpy()
    order = np.argsort(values.ravel())
    at = order[np.minimum(np.searchsorted(values.ravel()[order], sought.ravel()), values.size - 1)]
    assert (values.ravel()[at] == sought.ravel()).all(), "holds values that the original does not hold"
    found = []
    for dim, places in enumerate(np.unravel_index(at, values.shape)):
        rows = np.moveaxis(places.reshape(sought.shape), dim, 0).reshape(sought.shape[dim], -1)
        found.append(np.arange(values.shape[dim]) if values.shape[dim] == sought.shape[dim] else rows[:, 0])
    assert (values[np.ix_(*found)] == sought).all(), "is no selection of the original's slices"
    return found


def masked(whole: nn.Module, narrow: nn.Module) -> nn.Module:
    """A copy of `whole` in which every slice that `narrow` lacks is zero."""
    twin, tensors = copy.deepcopy(whole), dict(narrow.named_parameters())
    for name, tensor in twin.named_parameters():
        assert name in tensors, f"{name} is gone"
        if tensor.shape == tensors[name].shape:
            continue
        for dim, indices in enumerate(kept(tensor, tensors[name])):
            dead = np.setdiff1d(np.arange(tensor.shape[dim]), indices)
            tensor.data.index_fill_(dim, torch.from_numpy(dead), 0)
    return twin


def leaves(value: Any, seen: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """Every tensor in a value, whatever holds it: containers, attributes, slots."""
    if isinstance(value, torch.Tensor):
        return [value]
    if id(value) in seen or isinstance(value, str | bytes | int | float | complex | type | None):
        return []
    seen = (*seen, id(value))
    if isinstance(value, Mapping | collections.UserDict):
        return [t for key in value for t in leaves(value[key], seen)]
    if isinstance(value, Iterable):
        return [t for item in list(value) for t in leaves(item, seen)]
    slots = [n for c in type(value).__mro__ for n in getattr(c, "__slots__", ()) if hasattr(value, n)]
    held = [*vars(value).values()] if hasattr(value, "__dict__") else []
    return [t for item in [*held, *(getattr(value, n) for n in slots)] for t in leaves(item, seen)]


def call(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """The tensors that a fresh copy of `model` gives."""
    arguments = copy.deepcopy(inputs if isinstance(inputs, tuple) else (inputs,))
    with torch.no_grad():
        return leaves(copy.deepcopy(model)(*arguments))


def error(whole: nn.Module, narrow: nn.Module, inputs: Any, *, training: bool = False) -> float:
    """Largest difference of the masked original and the narrow network, relative to each output's largest value."""
    want = call(masked(whole, narrow).train(training), inputs)
    got = call(copy.deepcopy(narrow).train(training), inputs)
    assert [t.shape for t in want] == [t.shape for t in got], f"outputs changed their shapes (training: {training})"
    assert want
    pairs = [(a.double(), b.double()) for a, b in zip(want, got, strict=True)]
    assert all(bool(torch.isfinite(a).all()) for a, _ in pairs), "the judge's own network overflows"
    return max(float((a - b).abs().max()) / max(float(a.abs().max()), 1e-6) for a, b in pairs)


def macs(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates by PyTorch's own counter."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(*copy.deepcopy(inputs if isinstance(inputs, tuple) else (inputs,)))
    return int(counter.get_total_flops()) // 2


def image(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def cut_rightly(
    model: nn.Module, inputs: Any, most: float = 0.6, *, share: float = 0.5, training: bool = True,
    others: Iterable[Any] = (), tolerance: float = TOLERANCE, **options: Any,
) -> Result:  # fmt: skip
    """Remove a share of every group and judge the result in both modes; the original must stay what it was.

    model: in the mode it is handed over in. most: share of the MACs that may be left, so that "all frozen" cannot pass.
    training: whether it runs in training mode. others: further inputs. options: of `prune`, a budget among them.
    """
    before, mode = copy.deepcopy(model.state_dict()), model.training
    whole = copy.deepcopy(model)
    if "budget" not in options:
        options = {"method": "random", "allocator": "ratios", "ratios": {"*": share}, **options}
    result = secateur.prune(model, inputs, **options)
    assert result.verification is None or result.verification.passed
    for each in (inputs, *others):
        assert error(whole, result.model, each) <= tolerance
    if training:
        assert error(whole, result.model, inputs, training=True) <= 10 * tolerance  # statistics of few values
    assert macs(result.model, inputs) <= most * macs(whole, inputs) + 1
    assert model.training == mode
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return result


def right_or_refused(act: Callable[[], Any], *names: str) -> Any:
    """What `act` gives, or None where it refuses in one sentence that holds one of `names` and blames no rule."""
    try:
        return act()
    except SecateurError as refusal:
        text = str(refusal)
        assert "\n" not in text, text
        assert "defect" not in text, text
        assert "report it" not in text, text
        assert any(name.casefold() in text.casefold() for name in names), text
        return None


def relu_conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options), nn.ReLU())


class Carrier(nn.Module):
    """Free convolutions around a special part at `width` channels: halving them alone leaves 0.4 of the MACs."""

    def __init__(self, special: nn.Module, width: int = 16, after: int | None = None) -> None:
        super().__init__()
        self.stem, self.mid, self.into = relu_conv(3, 24), relu_conv(24, 24), relu_conv(24, width)
        self.special = special
        self.back, self.out = relu_conv(after or width, 24), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.back(self.special(self.into(self.mid(self.stem(x))))))
