"""PruningNet: for every layer a small network that makes the layer's weights for given widths.

    e = ratios of the widths a layer reads and makes        z = relu(V1 e + b1)        W = V2 z + b2, reshaped

of which W[:c_out', :c_in'] is used: here the rest is multiplied by zero, on fixed shapes, which computes the same where
norms have no scale and shift. Source: Liu et al. (arXiv:1903.10258) as in the authors' models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from secateur._protocols import IntArray
from secateur.errors import ModelError
from secateur.graph import Graph
from secateur.graph.modules import named_tensors
from secateur.graph.norms import sources

_Layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_Norms = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, eq=False)
class Ends:
    """A tensor that groups touch: along `dim` row c of `index` is channel c of `group`, in order of the indices."""

    group: str
    dim: int
    index: IntArray


def touched(graph: Graph) -> dict[str, list[Ends]]:
    """Which groups touch each parameter and statistic, by the tensor's name, those read first; outputs come last.

    Raises:
        ModelError: channels pass through parameters other than those of convolutions, linear layers and batch norms.
    """
    found: dict[str, list[Ends]] = {}
    for group in graph.groups:
        if group.inexact:
            raise ModelError(
                f"metapruning computes with zeros in place of channels, and at {group.name} that is not the same "
                f"({group.inexact[0]}): choose another method for this network."
            )
        for member in group.members:
            owner = graph.model.get_submodule(member.name.rpartition(".")[0])
            if not isinstance(owner, (*_Layers, _Norms)):
                raise ModelError(
                    f"metapruning makes weights of convolutions and linear layers, in front of batch norms, and "
                    f"{member.name} is of a {type(owner).__name__}: choose another method for this network."
                )
            found.setdefault(member.name, []).append(Ends(group.name, member.dim, member.index))
    return {name: sorted(ends, key=lambda e: (-e.dim, int(e.index.min()))) for name, ends in found.items()}


class Generator(nn.Module):
    """Makes the weights of one layer."""

    def __init__(self, weight: torch.Tensor, ends: list[Ends], hidden: int, scale: float) -> None:
        """weight: of the layer. ends: the groups it reads and makes. hidden: length of z. scale: of what is made."""
        super().__init__()
        self.shape, self.ends, self.scale = weight.shape, ends, scale
        self.reads = any(end.dim > 0 for end in ends)
        self.writes = any(end.dim == 0 for end in ends)
        length = len(ends) + (not self.reads) + (not self.writes)  # fixed ends have ratio 1
        self.first, self.second = nn.Linear(length, hidden), nn.Linear(hidden, weight.numel())

    def encoding(self, ratios: Mapping[str, float]) -> list[float]:
        """e: the ratios of what is read, in the order of a concatenation, then of what is made."""
        read = [ratios[end.group] for end in self.ends if end.dim > 0] or [1.0]
        made = [ratios[end.group] for end in self.ends if end.dim == 0] or [1.0]
        return [*read, *made]

    def forward(self, ratios: Mapping[str, float]) -> torch.Tensor:
        """W for these ratios, by group, at full width."""
        weight = self.first.weight
        e = torch.tensor(self.encoding(ratios), dtype=weight.dtype, device=weight.device)
        made: torch.Tensor = self.second(F.relu(self.first(e))) * self.scale
        return made.view(self.shape)


class PruningNet(nn.Module):
    """The generators of a network, and for every norm a bank of statistics for each value of a gene."""

    def __init__(self, graph: Graph, hidden: int, seed: int, options: int) -> None:
        """Make generators for all layers whose outputs are channels of groups; others keep weights of their own.

        Raises:
            ModelError: see `touched`.
        """
        super().__init__()
        self.touched = touched(graph)
        self.graph, model = (graph,), graph.model  # in a tuple: its model is no part of this module
        tensors, device = named_tensors(model), next(model.parameters()).device
        normed = set(sources(graph).of.values())
        self.names: list[str] = []
        self.generators = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, ends in self.touched.items():
                layer = model.get_submodule(name.rpartition(".")[0])
                if name.endswith(".weight") and isinstance(layer, _Layers) and any(end.dim == 0 for end in ends):
                    weight = tensors[name]
                    scale = 1.0 if name.removesuffix(".weight") in normed else 1 / math.sqrt(weight[0].numel())
                    self.generators.append(Generator(weight, ends, hidden, scale))
                    self.names.append(name)
        self.norms = [n for n, m in model.named_modules() if isinstance(m, _Norms) and self._ends(n)]
        for number, name in enumerate(self.norms):
            norm: Any = model.get_submodule(name)
            if norm.running_mean is not None:
                bank = torch.stack([torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)])
                self.register_buffer(f"bank{number}", bank.repeat(options, 1, 1))
        self.to(device)

    def _ends(self, norm: str) -> list[Ends]:
        names = (f"{norm}.weight", f"{norm}.running_mean")
        return next((self.touched[name] for name in names if name in self.touched), [])

    def rows(self, number: int, genes: Mapping[str, int], whole: int) -> torch.Tensor:
        """Of norm `number`, which value of the bank each of its channels has; those in no group that of `whole`."""
        bank = self.get_buffer(f"bank{number}")
        rows = torch.full((bank.shape[2],), whole, device=bank.device)
        for end in self._ends(self.norms[number]):
            rows[torch.from_numpy(end.index.reshape(-1)).to(bank.device)] = genes[end.group]
        return rows

    def weights(self, ratios: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """The weights of all generated layers at full width, by name; in single precision also under autocast."""
        device = next(self.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return {name: make(ratios) for name, make in zip(self.names, self.generators, strict=True)}

    def masked(self, name: str, tensor: torch.Tensor, widths: Mapping[str, int]) -> torch.Tensor:
        """A tensor with zeros where channels behind the first `widths` of their groups are."""
        for end in self.touched[name]:
            gone = end.index[widths[end.group] :].reshape(-1)
            if len(gone):
                keep = np.ones(tensor.shape[end.dim], dtype=np.float32)
                keep[gone] = 0.0
                mask = torch.from_numpy(keep).to(tensor)
                tensor = tensor * mask.view([-1 if k == end.dim else 1 for k in range(tensor.ndim)])
        return tensor
