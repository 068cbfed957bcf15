"""The centripetal update: gradients averaged over clusters of rows, and a pull towards the clusters' means.

With G the gradient and W the rows of one tensor, Γ the projection that gives every row its cluster's mean:

    G~ = Γ G + Λ W,    Λ = (eta + eps) I - eps Γ,    that is    G~ = Γ G + eps (W - Γ W) + eta W.

Γ is never written out. Rows of equal length of all tensors are laid one under the other and averaged together, so a
network of a hundred layers costs some dozens of operations. `centripetal_reference` is the same as the matrices say it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from secateur._protocols import IntArray
from secateur.graph import Graph
from secateur.repair.merging import Clusters, slots


@dataclass(frozen=True, eq=False)
class Rows:
    """One parameter in rows along `dim`: row i is in the cluster whose first row is `first[i]`."""

    name: str
    dim: int
    first: IntArray
    vector: bool  # one number a row: a bias, a norm's scale or shift

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter or its gradient as a matrix of rows."""
        return tensor.movedim(self.dim, 0).flatten(1) if tensor.dim() > 1 else tensor[:, None]


def clustered_rows(graph: Graph, clusters: Clusters) -> list[Rows]:
    """Every parameter of which rows are clustered.

    Groups meet in one tensor behind a concatenation: each brings its own clusters, the rest stays alone.
    """
    found: dict[tuple[str, int], IntArray] = {}
    tensors = graph.tensors()
    for group in graph.groups:
        labels = clusters.get(group.name)
        if labels is None or len(np.unique(labels)) == group.width:
            continue
        for member in group.producers():
            tensor = tensors[member.name]
            if isinstance(tensor, nn.Parameter):
                first = found.setdefault((member.name, member.dim), np.arange(tensor.shape[member.dim]))
                own, stays = slots(member, labels)
                first[own] = stays
    return [
        Rows(name, dim, first, tensors[name].numel() == max(tensors[name].shape))
        for (name, dim), first in found.items()
    ]


class Bucket:
    """Rows of equal length of several parameters."""

    def __init__(self, rows: list[Rows], parameters: list[nn.Parameter]) -> None:
        self.rows, self.parameters, self.vector = rows, parameters, rows[0].vector
        self.sizes = [len(entry.first) for entry in rows]
        starts = np.cumsum([0, *self.sizes[:-1]])
        first = np.concatenate([entry.first + start for entry, start in zip(rows, starts, strict=True)])
        _, cluster, count = np.unique(first, return_inverse=True, return_counts=True)
        device = parameters[0].device
        self.cluster = torch.from_numpy(cluster).to(device)
        self._order = torch.from_numpy(np.argsort(cluster, kind="stable")).to(device)
        self._starts = torch.from_numpy(np.cumsum(count) - count).to(device)

    def gathered(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """All rows of these tensors, one under the other, in single precision at least."""
        whole = torch.cat([entry.of(tensor) for entry, tensor in zip(self.rows, tensors, strict=True)])
        return whole.to(torch.promote_types(whole.dtype, torch.float32))

    def means(self, x: torch.Tensor) -> torch.Tensor:
        """Γ x: every row replaced by its cluster's mean."""
        return F.embedding_bag(self._order, x, self._starts, mode="mean")[self.cluster]

    def scatter(self, x: torch.Tensor, tensors: list[torch.Tensor]) -> None:
        """Write rows back to where they came from."""
        parts = [
            part.view(tensor.movedim(entry.dim, 0).shape).movedim(0, entry.dim)
            for entry, tensor, part in zip(self.rows, tensors, x.split(self.sizes), strict=True)
        ]
        torch._foreach_copy_(tensors, parts)


class Centripetal:
    """The update for all clustered parameters of one network, which are given by name."""

    def __init__(self, rows: list[Rows], parameters: Mapping[str, nn.Parameter]) -> None:
        self.rows = rows
        self._parameters = [parameters[entry.name] for entry in rows]
        self._made: dict[Any, Bucket] = {}

    def buckets(self, with_gradient: bool = False) -> Iterator[Bucket]:
        """The parameters (that have a gradient) by length of rows, and where they are."""
        lots: dict[Any, list[int]] = {}
        for number, (entry, parameter) in enumerate(zip(self.rows, self._parameters, strict=True)):
            if not with_gradient or parameter.grad is not None:
                length = parameter.numel() // len(entry.first)
                key = (parameter.device, parameter.dtype, length, entry.vector, entry.dim)
                lots.setdefault(key, []).append(number)
        for key, numbers in lots.items():
            if (key, *numbers) not in self._made:
                self._made[(key, *numbers)] = Bucket(
                    [self.rows[k] for k in numbers], [self._parameters[k] for k in numbers]
                )
            yield self._made[(key, *numbers)]

    @torch.no_grad()
    def transform(
        self, *, strength: float, vectors: float, decay: float = 0.0, share: torch.Tensor | float = 1.0
    ) -> None:
        """Turn every gradient G into Γ G + share (eps (W - Γ W) + eta W).

        Args:
            strength: eps of kernels. vectors: eps of biases and of norms' scales and shifts. decay: eta, of kernels.
            share: how much of the step's loss the gradient is of, in the loss's scale.
        """
        for bucket in self.buckets(with_gradient=True):
            gradients = [parameter.grad for parameter in bucket.parameters if parameter.grad is not None]
            weights = bucket.gathered(bucket.parameters)
            eps, eta = (vectors, 0.0) if bucket.vector else (strength, decay)
            pull = (weights - bucket.means(weights)).mul_(eps)
            if eta:
                pull.add_(weights, alpha=eta)
            bucket.scatter(bucket.means(bucket.gathered(gradients)).add_(pull.mul_(share)), gradients)

    @torch.no_grad()
    def deviations(self) -> dict[str, float]:
        """chi, the squared distances of all rows from their means: of kernels, of vectors, and what kernels measure."""
        sums = torch.zeros(3, dtype=torch.float64)
        for bucket in self.buckets():
            weights = bucket.gathered(bucket.parameters)
            chi = (weights - bucket.means(weights)).double().square().sum()
            sums[int(bucket.vector)] += chi.cpu()
            sums[2] += 0.0 if bucket.vector else weights.double().square().sum().cpu()
        return dict(zip(("kernels", "vectors", "size"), sums.tolist(), strict=True))


def projection(first: IntArray) -> torch.Tensor:
    """Γ as a matrix: 1/|H(m)| where rows m and n are in one cluster."""
    same = torch.from_numpy(first[:, None] == first[None, :]).double()
    return same / same.sum(1, keepdim=True)


def attraction(gamma: torch.Tensor, eta: float, eps: float) -> torch.Tensor:
    """Λ as a matrix."""
    return (eta + eps) * torch.eye(len(gamma), dtype=gamma.dtype) - eps * gamma


def centripetal_reference(
    weight: torch.Tensor, gradient: torch.Tensor, first: IntArray, *, eta: float, eps: float
) -> torch.Tensor:
    """Γ G + Λ W of one matrix, as written."""
    gamma = projection(first).to(weight.dtype)
    return gamma @ gradient + attraction(gamma, eta, eps) @ weight
