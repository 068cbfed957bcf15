"""What a module was, to see later whether anybody touched it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.history import ATTRIBUTE

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A module's tensors, and everything about its parts that is not a number."""

    tensors: dict[str, torch.Tensor]
    identities: dict[str, int]  # of parameters
    parts: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> Snapshot:
        """Copy what `module` is now."""
        tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(module).items()}
        identities = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
        return cls(tensors, identities, {name: _part(part) for name, part in module.named_modules()})

    def difference(self, module: nn.Module) -> str | None:
        """What differs first, as part of a sentence; None where nothing does."""
        return self.other_tensors(module) or self.other_parameters(module) or self.other_parts(module)

    def other_tensors(self, module: nn.Module) -> str | None:
        """Names, shapes, types and values."""
        found = named_tensors(module)
        if found.keys() != self.tensors.keys():
            return f"the tensor {sorted(found.keys() ^ self.tensors.keys())[0]} came or went"
        for name, tensor in self.tensors.items():
            if not same(tensor, found[name]):
                return f"{name} has other values"
        return None

    def other_parameters(self, module: nn.Module) -> str | None:
        """Which objects the parameters are."""
        found = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
        if found.keys() != self.identities.keys():
            return f"the parameter {sorted(found.keys() ^ self.identities.keys())[0]} came or went"
        replaced = [name for name, number in self.identities.items() if found[name] != number]
        return f"the parameter {replaced[0]} is another object" if replaced else None

    def other_parts(self, module: nn.Module, besides: Collection[str] = ()) -> str | None:
        """Classes, attributes, hooks and modes of the modules in it, but for these names and what is in them."""
        inside = tuple(f"{name}." for name in besides)
        found = {name: _part(part) for name, part in module.named_modules()}
        if other := sorted(name for name in found.keys() ^ self.parts.keys() if not name.startswith(inside)):
            return f"the module {other[0]} came or went"
        for name, part in self.parts.items():
            if name in besides:
                continue
            where = name or type(module).__name__
            for what, value in part.items():
                if found[name][what] != value:
                    return f"{_words(what, value, found[name][what])} on {where}"
        return None


def _part(module: nn.Module) -> dict[str, Any]:
    own = [*module._parameters.values(), *module._buffers.values()]
    return {
        "class": type(module),
        "attributes": frozenset(vars(module)) - {ATTRIBUTE},
        "hooks": sum(len(getattr(module, name, ())) for name in _HOOKS)
        + sum(len(t._backward_hooks or ()) for t in own if t is not None),
        "training": module.training,
        "frozen": tuple(t.requires_grad for t in own if t is not None),
    }


def _words(what: str, before: Any, after: Any) -> str:
    match what:
        case "class":
            return f"the class {after.__name__} instead of {before.__name__}"
        case "attributes":
            return f"the attribute {sorted(after ^ before)[0]!r} that came or went"
        case "hooks":
            return f"{after} hooks instead of {before}"
        case "training":
            return f"{'training' if after else 'evaluation'} mode"
        case _:
            return "other parameters that require gradients"


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, also those under a second name and those that are not saved."""
    found: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same values of the same type, bit for bit but for NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    equal = a == b
    return bool((equal | (a != a) & (b != b)).all())


def first_difference(a: nn.Module, b: nn.Module) -> str | None:
    """The first entry in which two state dicts differ, None where they are equal."""
    one, other = a.state_dict(), b.state_dict()
    if one.keys() != other.keys():
        return str(sorted(one.keys() ^ other.keys())[0])
    return next((name for name in one if not same(one[name], other[name])), None)
