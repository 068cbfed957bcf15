"""Operators that pick by the values of a tensor: the dimension picked from keeps its numbering, the others flow on."""

from __future__ import annotations

from itertools import pairwise

import torch

from secateur.graph.labels import Axis, Label
from secateur.graph.rules.registry import Labels, Op, label_of, rule


@rule("embedding", "embedding_bag")
def embedding(op: Op) -> Labels:
    """Rows by number: the row dimension is structural, the features are channels."""
    rows, features = op.label("weight")
    op.ledger.fix(rows, "")
    return (*op.label("indices"), features)


@rule("index", "_unsafe_index")
def index(op: Op) -> Labels:
    """Advanced indexing: indexed dimensions stay as they are, the others carry their labels."""
    label = op.label("self")
    indices = list(op.args["indices"])
    result, front, place = [], 0, None
    dim = 0
    spots: list[int] = []
    for entry in indices:
        if entry is None:
            result.append(label[dim])
            dim += 1
            continue
        width = entry.dim() if entry.dtype in (torch.bool, torch.uint8) else 1
        for axis in label[dim : dim + width]:
            op.fix(axis, "indexed by a tensor")
        if place is None:
            place = len(result)
        spots.append(dim)
        dim += width
    result += list(label[dim:])
    front = op.out.dim() - len(result)
    adjacent = all(b - a == 1 for a, b in pairwise(spots))
    at = (place or 0) if adjacent else 0
    return (*result[:at], *[None] * front, *result[at:])


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def index_put(op: Op) -> Labels:
    """Writing by index: indexed dimensions stay, the values' trailing dimensions meet the rest."""
    label = list(op.label("self"))
    values = op.args["values"]
    vlabel = label_of(values)
    indices = list(op.args["indices"])
    kept = [d for d in range(len(label)) if d >= len(indices) or indices[d] is None]
    for d in range(len(label)):
        if d not in kept:
            op.fix(label[d], "written by index")
            label[d] = None
    tail = kept[-len(vlabel) :] if vlabel else []
    for offset, d in enumerate(reversed(tail)):
        if values.shape[-1 - offset] == op.args["self"].shape[d]:
            label[d] = op.join(label[d], vlabel[-1 - offset])
        elif values.shape[-1 - offset] != 1:
            op.fix(label[d], "written by index")
            op.fix(vlabel[-1 - offset], "written by index")
    return tuple(label)


@rule("index_select", "index_add", "index_copy", "index_fill")
def index_select(op: Op) -> Labels:
    """One dimension picked by numbers."""
    dim = op.dim()
    label: list[Axis] = list(op.label("self"))
    op.fix(label[dim] if op.args["self"].shape[dim] > 1 else None, "indexed by a tensor")
    label[dim] = None
    source = op.args.get("source")
    if isinstance(source, torch.Tensor) and source.dim() == len(label):
        for d, axis in enumerate(label_of(source)):
            if d != dim:
                label[d] = op.join(label[d], axis)
    return tuple(label)


@rule("gather", "take_along_dim")
def gather(op: Op) -> Labels:
    """Picks along one dimension; where the index is as large as the source, the other dimensions meet."""
    dim = op.dim()
    label, places = list(op.label("self")), op.label("index")
    for d in range(len(label)):
        if d == dim:
            op.fix(label[d], "indexed by a tensor")
            label[d] = places[d]
        elif op.args["self"].shape[d] == op.args["index"].shape[d]:
            label[d] = op.join(label[d], places[d])
        else:
            op.fix(label[d], "indexed by a tensor")
            label[d] = places[d]
    return tuple(label)


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "masked_scatter", "masked_select")
def scatter(op: Op) -> Labels:
    """Writing by numbers: everything touched stays as it is."""
    for tensor in op.tensors():
        for axis in label_of(tensor):
            op.fix(axis, "written by index")
    return [(None,) * out.dim() for out in op.outputs()]


@rule("topk", "sort", "argsort", "kthvalue", "msort", "sort_stable")
def topk(op: Op) -> Labels:
    """An order along one dimension: that dimension stays as it is."""
    label = list(op.label("self"))
    dim = int(op.args.get("dim", -1)) % max(len(label), 1)
    if label:
        op.fix(label[dim], "sorted")
        label[dim] = None
    result: list[Label] = [tuple(label)] * len(op.outputs())
    return result


@rule(
    "nonzero", "unique_dim", "_unique2", "unique_consecutive", "bincount", "histc", "searchsorted", "bucketize", "isin"
)
def positions(op: Op) -> Labels:
    """Results are positions: whatever was labelled stays as it is."""
    for tensor in op.tensors():
        for axis in label_of(tensor):
            op.fix(axis, "positions are computed from it")
    return [(None,) * out.dim() for out in op.outputs()]


@rule("torchvision::nms")
def nms(op: Op) -> Labels:
    """Box positions."""
    return positions(op)


@rule("torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align")
def roi_align(op: Op) -> Labels:
    """Crops of a feature map: channels flow on."""
    label = op.label("input")
    return [(None, label[1], None, None) if out.dim() == 4 else (None,) * out.dim() for out in op.outputs()]
