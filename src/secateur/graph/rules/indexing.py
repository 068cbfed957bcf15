"""Operators that pick by the values of a tensor: the dimension picked from keeps its numbering, the others flow on."""

from __future__ import annotations

from itertools import pairwise

import torch

from secateur.graph.labels import Axis, Label
from secateur.graph.rules.positions import Count, addressed, count_of, spoil
from secateur.graph.rules.registry import Labels, Op, label_of, rule, tensors_in


@rule("embedding", "embedding_bag")
def embedding(op: Op) -> Labels:
    """Rows by number: the row dimension is structural (unless all are read in order); the features are channels."""
    rows, features = op.label("weight")
    count = count_of(op.args["indices"])
    if count is not None and len(count.axis) == op.args["weight"].shape[0]:
        op.join(rows, count.axis)
    else:
        spoil(op, op.args["indices"])
        op.ledger.fix(rows, "")
    return (*op.label("indices"), features)


@rule("index", "_unsafe_index")
def index(op: Op) -> Labels:
    """Advanced indexing: indexed dimensions stay as they are (unless by a count), the others carry their labels."""
    return _picked(op, "indexed by a tensor")


def _picked(op: Op, why: str) -> Label:
    """The label of what advanced indexing picks; `why` the dimensions picked from stay."""
    label, indices = op.label("self"), list(op.args["indices"])
    result: list[Axis] = []
    spots: list[int] = []
    place = dim = 0
    for entry in indices:
        if entry is None:
            result.append(label[dim])
            dim += 1
            continue
        width = entry.dim() if _is_mask(entry) else 1
        for d in range(dim, dim + width):
            addressed(op, label[d], op.args["self"].shape[d], entry, why)
        place = place if spots else len(result)
        spots.append(dim)
        dim += width
    result += label[dim:]
    tensors = [entry for entry in indices if entry is not None]
    if any(count_of(entry) is not None for entry in tensors):
        front: Label = op.broadcast(tensors)
    else:
        front = (None,) * max((1 if _is_mask(entry) else entry.dim() for entry in tensors), default=0)
    at = place if all(b - a == 1 for a, b in pairwise(spots)) else 0
    return (*result[:at], *front, *result[at:])


def _is_mask(entry: torch.Tensor) -> bool:
    return entry.dtype in (torch.bool, torch.uint8)


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def index_put(op: Op) -> Labels:
    """Writing by index: indexed dimensions stay (unless by a count), the values meet what they are written over."""
    picked = _picked(op, "written by index")
    values = op.args["values"]
    for axis, other, size in zip(picked[::-1], label_of(values)[::-1], reversed(values.shape), strict=False):
        if size > 1:
            op.join(axis, other)
    return op.same("self")


@rule("index_select", "index_add", "index_copy", "index_fill", "index_reduce")
def index_select(op: Op) -> Labels:
    """One dimension picked by numbers."""
    if not op.args["self"].dim():
        return ()
    dim = op.dim()
    label: list[Axis] = list(op.label("self"))
    size = op.args["self"].shape[dim]
    in_order = addressed(op, label[dim] if size > 1 else None, size, op.args["index"], "indexed by a tensor")
    if op.out.shape[dim] != size:
        label[dim] = None
    source = op.args.get("source")
    if isinstance(source, torch.Tensor) and source.dim() == len(label):
        for d, axis in enumerate(label_of(source)):
            if d != dim or in_order:
                label[d] = op.join(label[d], axis)
            elif source.shape[d] > 1:
                op.fix(axis, "written by index")
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


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(op: Op) -> Labels:
    """Writing by numbers: everything touched stays as it is, unless a count is written along (a diagonal)."""
    count = count_of(op.args["index"])
    if count is None or not _writes_in_order(op, count):
        return masked_scatter(op)
    index, label = op.args["index"], list(op.label("self"))
    for tensor in tensors_in([index, op.args.get("src")]):
        for d, axis in enumerate(label_of(tensor)):
            if tensor.shape[d] > 1:
                label[d] = op.join(label[d], axis)
    label[op.dim()] = op.join(label[op.dim()], count.axis)
    return tuple(label)


def _writes_in_order(op: Op, count: Count) -> bool:
    """Whether a count is written along its own dimension (nothing moves) or, once a row, along another (a diagonal)."""
    index, sizes, dim = op.args["index"], op.args["self"].shape, op.dim()
    source = op.args.get("src")
    if isinstance(source, torch.Tensor) and source.dim() and source.shape != index.shape:
        return False
    along = label_of(index)[dim] is count.axis or index.shape[dim] == 1
    return along and len(count.axis) == sizes[dim] and all(index.shape[d] == n for d, n in enumerate(sizes) if d != dim)


@rule("masked_scatter", "masked_select", "take", "put", "nonzero_static", "segment_reduce", "repeat_interleave")
def masked_scatter(op: Op) -> Labels:
    """Everything touched stays as it is."""
    return op.keep_all(f"written by index ({op.where})")


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
    "nonzero",
    "unique_dim",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
    "histc",
    "histogram",
    "searchsorted",
    "bucketize",
    "isin",
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
