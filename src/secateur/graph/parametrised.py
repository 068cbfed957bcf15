"""Weights that are computed from others (spectral norm, orthogonal and the like): does a cut change the survivors?

Zeroing slices of what is trained and removing them is the same, so a cut of such a network is proven as any other. But
where the weight depends on the whole tensor, the slices that stay are no longer what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from secateur.graph.labels import Ids
from secateur.graph.modules import clone_module, named_tensors, plain_kernels

CHANGE = 1e-4  # relative: below it, rounding


def rescaled(original: nn.Module, narrow: nn.Module, slices: Mapping[str, tuple[Ids | None, ...]]) -> tuple[str, ...]:
    """A sentence for every computed weight whose surviving slices a cut changed.

    Args:
        original: the network before the cut. narrow: the network after it. slices: kept indices (`Cut.slices`).
    """
    wide, small = _computed(original), _computed(narrow)
    notes = []
    for name, (weight, sources, how) in wide.items():
        kept = next((slices[s] for s in sources if s in slices and len(slices[s]) == weight.dim()), None)
        if name not in small or kept is None:
            continue
        want = weight
        for dim, index in enumerate(kept):
            if index is not None and weight.shape[dim] > int(index.max(initial=0)):
                want = want.index_select(dim, torch.from_numpy(np.ascontiguousarray(index)).to(weight.device))
        got = small[name][0]
        if got.shape == want.shape and float((got - want).norm()) > CHANGE * float(want.norm()):
            scale = float(got.norm() / want.norm().clamp_min(1e-30))
            change = f"the weights that stay are other ones (norm x {scale:.3g})"
            notes.append(f"{how} computes {name} from the whole tensor: {change}")
    if notes:
        notes[-1] += (
            "; to keep them, make the weights plain before pruning, with "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') or remove_spectral_norm(layer)"
        )
    return tuple(notes)


def _computed(model: nn.Module) -> dict[str, tuple[torch.Tensor, list[str], str]]:
    """Every weight that is computed: its value, the tensors it may come from, and by what."""
    if not any(_recipes(module) for module in model.modules()):
        return {}
    twin = clone_module(model, lambda tensor: tensor.detach().clone()).eval()
    names = {id(tensor): name for name, tensor in named_tensors(twin).items()}
    found = {}
    with plain_kernels():
        for path, module in twin.named_modules():
            for local, how in _recipes(module):
                value = _value(module, local)
                sources = [names[id(t)] for t in _sources(module, local) if id(t) in names]
                found[f"{path}.{local}" if path else local] = (value.detach().float(), sources, how)
    return found


def _recipes(module: nn.Module) -> list[tuple[str, str]]:
    """Computed tensors of one module, and by which class: parametrisations, and hooks of the older kind."""
    if parametrize.is_parametrized(module):
        lists = module.parametrizations.items()  # type: ignore[operator, union-attr]
        return [(name, type(entry[-1]).__name__.strip("_")) for name, entry in lists]
    hooks = module._forward_pre_hooks.values()
    return [(h.name, type(h).__name__) for h in hooks if hasattr(h, "name") and hasattr(h, "compute_weight")]


def _value(module: nn.Module, name: str) -> torch.Tensor:
    if not parametrize.is_parametrized(module):
        for hook in module._forward_pre_hooks.values():
            if getattr(hook, "name", None) == name:
                hook(module, ())
    value: torch.Tensor = getattr(module, name)
    return value


def _sources(module: nn.Module, name: str) -> Iterator[torch.Tensor]:
    """What a computed tensor may be computed from, the ones of its own shape among them."""
    if parametrize.is_parametrized(module):
        yield from module.parametrizations[name].parameters(recurse=False)  # type: ignore[index, union-attr]
        yield from module.parametrizations[name].buffers(recurse=False)  # type: ignore[index, union-attr]
        return
    for local, tensor in module._parameters.items():
        if tensor is not None and local.startswith(f"{name}_"):
            yield tensor
