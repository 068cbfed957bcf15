"""New weights for what stays: values of a narrow network, put into the kept places of its wide copy.

For methods whose result does not inherit the weights it was cut from, but those of a network that was tried, or none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from secateur.graph import Graph
from secateur.graph.modules import named_tensors
from secateur.plan import Plan


@torch.no_grad()
def renew(model: nn.Module, graph: Graph, plan: Plan, values: Mapping[str, torch.Tensor]) -> None:
    """Give the kept places of `model` the values of a narrow network, in place.

    Args:
        model: as wide as the original. graph: its trace. plan: which channels stay.
        values: tensors of the network cut by `plan`, by name, in the shapes of the cut.
    """
    slices = graph.slices(plan)
    for name, tensor in named_tensors(model).items():
        if name not in values:
            continue
        kept = slices.get(name)
        value = values[name].to(tensor)
        if kept is None:
            tensor.copy_(value)
            continue
        rows = [np.arange(size) if k is None else k for size, k in zip(tensor.shape, kept, strict=True)]
        tensor[tuple(torch.from_numpy(each).to(tensor.device) for each in np.ix_(*rows))] = value


def fresh(network: nn.Module, seed: int) -> list[str]:
    """Initialise a network anew, in place, each layer by its own `reset_parameters`, which goes by its own fan-in.

    seed: of the draws; PyTorch's generator is left as it was.

    Returns:
        names of modules that hold parameters and have no such function: they keep their values.
    """
    kept = []
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for name, module in network.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                kept.append(name)
    return kept
