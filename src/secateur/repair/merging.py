"""Merging: channels that compute the same become one, and what read the others reads the one that stays.

Dropping a duplicate is wrong, for its readers lose its share; adding their weights for it to those for the channel
that stays changes nothing. Needed: all rows, biases, affines and statistics of the duplicates are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._protocols import BoolArray, IntArray
from secateur.graph import Graph, SizeConflict
from secateur.graph.channels import Member
from secateur.graph.cut import alive_slots, cut
from secateur.graph.modules import as_call, map_tensors, named_tensors, plain_kernels
from secateur.graph.randomise import calibrate, random_input, random_twin, run, twin_of

#: {group: the number of every channel's cluster}; groups that are not named stay as they are.
Clusters = Mapping[str, IntArray]


def representatives(labels: IntArray) -> IntArray:
    """The channel that stays of every cluster, the first: in the order of the clusters' numbers."""
    first: IntArray = np.unique(labels, return_index=True)[1]
    return first


def kept(labels: IntArray) -> BoolArray:
    """The mask of the channels that stay."""
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[representatives(labels)] = True
    return mask


def slots(member: Member, labels: IntArray) -> tuple[IntArray, IntArray]:
    """Every index of a member, and beside it the index at which its cluster's representative has the same slot.

    A channel may own several indices: a block of columns behind a flattening, one row in each part of a grouped
    convolution. They merge one by one.
    """
    stays = representatives(labels)[np.unique(labels, return_inverse=True)[1]]
    return member.index.ravel(), member.index[stays].ravel()


def _clustered(graph: Graph, clusters: Clusters, role: str) -> Iterator[tuple[Member, IntArray]]:
    for group in graph.groups:
        labels = clusters.get(group.name)
        if labels is not None and len(np.unique(labels)) < group.width:
            yield from ((member, labels) for member in group.members if member.role == role)


@torch.no_grad()
def collapse(tensors: Mapping[str, torch.Tensor], graph: Graph, clusters: Clusters) -> None:
    """Give all channels of a cluster their mean: rows, biases, affines and running statistics, in place.

    tensors: parameters and buffers by name. graph: their trace. clusters: channels that are alike, by group.
    """
    for member, labels in _clustered(graph, clusters, "producer"):
        _replace(tensors[member.name], member, labels, "mean")


@torch.no_grad()
def merge(tensors: Mapping[str, torch.Tensor], graph: Graph, clusters: Clusters) -> None:
    """Let readers read the representatives alone, with the sum of their weights for the whole cluster, in place.

    tensors: parameters and buffers by name. graph: their trace. clusters: channels that are alike, by group.

    The network computes what it did if duplicates are equal; what reads the others becomes zero, so that they may go.
    """
    for member, labels in _clustered(graph, clusters, "consumer"):
        _replace(tensors[member.name], member, labels, "sum")


def _replace(tensor: torch.Tensor, member: Member, labels: IntArray, how: str) -> None:
    if not tensor.is_floating_point():
        return
    own, stays = (torch.from_numpy(np.ascontiguousarray(x)).to(tensor.device) for x in slots(member, labels))
    rows = tensor.detach().movedim(member.dim, 0)
    wide = rows.double()
    total = torch.zeros_like(wide).index_add_(0, stays, wide[own])  # where the representatives are
    if how == "mean":
        count = torch.zeros(len(rows), dtype=torch.float64, device=tensor.device)
        count.index_add_(0, stays, torch.ones(len(stays), dtype=torch.float64, device=tensor.device))
        total = total[stays] / count[stays].view(-1, *[1] * (total.dim() - 1))
    else:
        total = total[own]  # zero at all others
    rows.index_copy_(0, own, total.to(tensor.dtype))


def mergeable(graph: Graph, clusters: Clusters, *, seed: int = 0) -> bool:
    """Whether the network with random weights and equal duplicates computes what the cut one with merged ones does.

    graph: the network's. clusters: which channels would be alike. seed: of the random weights.

    It does not where something looks at all channels at once (a layer norm) or multiplies channels with each other.
    """
    try:
        return _merging_error(graph, clusters, seed, torch.float64) <= 1e-6
    except (RuntimeError, SizeConflict):  # code that makes tensors of single precision, or casts those of another
        pass
    try:
        return _merging_error(graph, clusters, seed, None) <= 1e-3
    except SizeConflict:  # these widths do not fit a size in code
        return False


def _merging_error(graph: Graph, clusters: Clusters, seed: int, dtype: torch.dtype | None) -> float:
    generator = torch.Generator().manual_seed(seed)
    wide = random_twin(graph.model, dtype, generator)
    inputs = map_tensors(graph.example_inputs, lambda tensor: random_input(tensor, dtype, generator))
    call, tensors = as_call(inputs), named_tensors(wide)
    alive = alive_slots(graph.solution, {name: kept(labels) for name, labels in clusters.items()})
    with plain_kernels():
        calibrate(wide, call, generator)
        collapse(tensors, graph, clusters)
        wanted = run(wide, call)
        merge(tensors, graph, clusters)
        made = cut(wide, inputs, graph.recording, graph.solution, alive, inplace=False)
        return difference(wanted, run(made.model, call))


def outputs(model: nn.Module, example_inputs: Any) -> list[torch.Tensor]:
    """What a copy of `model` computes in evaluation, in double precision where its code allows that."""
    with plain_kernels():
        for dtype in (torch.float64, None):
            inputs = map_tensors(
                example_inputs,
                lambda t: t.detach().cpu().to((dtype or t.dtype) if t.is_floating_point() else t.dtype),  # noqa: B023
            )
            try:
                return run(twin_of(model, dtype), as_call(inputs))
            except RuntimeError:
                if dtype is None:
                    raise
    raise AssertionError


def difference(wanted: list[torch.Tensor], given: list[torch.Tensor]) -> float:
    """The largest difference over the largest value; infinite where shapes differ or something is not finite."""
    worst = 0.0
    if [x.shape for x in wanted] != [x.shape for x in given]:
        return float("inf")
    for a, b in zip(wanted, given, strict=True):
        if a.numel():
            error = float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(1e-30))
            worst = max(worst, error if error == error else float("inf"))
    return worst
