"""Operators that multiply and sum: convolutions, matrix products, attention. Their MACs are counted here too."""

from __future__ import annotations

import math

import numpy as np
import torch

from secateur.graph.forms import Form, of_convolution
from secateur.graph.labels import Axis, Grouped, Label, Macs
from secateur.graph.rules.registry import Labels, Op, is_constant, is_fixed, label_of, rule


def count(op: Op, coefficient: int, *axes: tuple[Axis, int]) -> None:
    """Record MACs: `coefficient` times the alive count of each (axis, size); an unlabelled axis counts its size."""
    labelled = tuple(axis for axis, _ in axes if axis is not None)
    fixed = math.prod(size for axis, size in axes if axis is None)
    op.ledger.macs.append(Macs(op.index, coefficient * fixed, labelled))


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution")
def convolution(op: Op) -> Labels:
    """Ties the input's channels to weight dimension 1; the output has weight dimension 0 (swapped if transposed)."""
    x, weight = op.args["input"] if "input" in op.args else op.args["self"], op.args["weight"]
    xlabel, wlabel = label_of(x), label_of(weight)
    groups, transposed = int(op.args.get("groups", 1)), bool(op.args.get("transposed", False))
    batched = x.dim() == weight.dim()
    source = xlabel[1] if batched else xlabel[0]
    for axis in wlabel[2:]:
        op.ledger.fix(axis, "")
    op.weight, op.form = (wlabel[0], wlabel[1]), of_convolution(op.args, x, weight)
    _meets_fixed(op, weight, wlabel[0] if transposed else wlabel[1])
    out_axis = _bias(op, _tie(op, source, wlabel, tuple(weight.shape), groups, transposed))
    space = _spatial(op, x, xlabel[2:] if batched else xlabel[1:], weight)
    kernel = math.prod(weight.shape[2:])
    at = x if transposed else op.out
    positions = list(zip(space, at.shape[at.dim() - len(space) :], strict=True))
    count(op, kernel * (at.shape[0] if batched else 1), *positions, *_mac_axes(wlabel, tuple(weight.shape), groups))
    batch = (xlabel[0],) if batched else ()
    return (*batch, out_axis, *space)


def _bias(op: Op, axis: Axis) -> Axis:
    bias = op.args.get("bias")
    return axis if bias is None else op.join(axis, label_of(bias)[0])


def _tie(op: Op, source: Axis, wlabel: Label, shape: tuple[int, ...], groups: int, transposed: bool) -> Axis:
    """Ties of one (grouped, depthwise, transposed) convolution; returns the axis of its output."""
    rows, cols = wlabel[0], wlabel[1]
    if groups == 1:
        into, out = (rows, cols) if transposed else (cols, rows)
        op.join(source, into)
        if into is not None:
            op.ledger.consumed.append(into)
        if out is not None:
            op.ledger.emitted.append(out)
        return out
    # per group: `a` inputs and `b` outputs; a transposed weight is stored (in, out/groups)
    a, b = (shape[0] // groups, shape[1]) if transposed else (shape[1], shape[0] // groups)
    if min(a, b) == 1:
        return _tie_whole_groups(op, source, rows, cols, groups, a, b, transposed)
    return _tie_positions(op, source, rows, cols, groups, transposed)


def _tie_whole_groups(
    op: Op, source: Axis, rows: Axis, cols: Axis, groups: int, a: int, b: int, transposed: bool
) -> Axis:
    """Depthwise and its multiples: a group lives or dies whole, and the number of groups follows."""
    if rows is None:
        op.join(source, None)
        return None
    if cols is not None and len(cols) > 1:
        op.ledger.fix(cols, "")
    stored = rows.reshape(groups, a if transposed else b)
    out = np.repeat(stored[:, 0], b) if transposed else rows
    if stored.shape[1] > 1:  # every column to the first
        op.ledger.tie(np.repeat(stored[:, 0], stored.shape[1] - 1), stored[:, 1:].ravel())
    op.join(source, np.repeat(stored[:, 0], a) if not transposed else rows)
    op.expect("groups", np.ascontiguousarray(stored[:, 0]))
    if transposed:
        op.ledger.consumed.append(rows)
    return out


def _tie_positions(op: Op, source: Axis, rows: Axis, cols: Axis, groups: int, transposed: bool) -> Axis:
    """Grouped: groups stay equal, so position j of every group lives or dies together."""
    into = None if transposed or cols is None else np.tile(cols, groups)
    out = rows if not transposed else (None if cols is None else np.tile(cols, groups))
    first = len(op.ledger.ties)
    if rows is not None:
        grid = rows.reshape(groups, -1)
        op.ledger.tie(np.tile(grid[0], groups - 1), grid[1:].ravel())
    op.join(source, rows if transposed else into)
    if not transposed and rows is not None and cols is not None and source is not None:
        call, last = (-1 if op.ledger.training else op.index), len(op.ledger.ties)
        op.ledger.grouped.append(Grouped(call, groups, rows, cols, source, first, last, op.form))
    consumed, emitted = (rows, cols) if transposed else (cols, rows)
    if consumed is not None:
        op.ledger.consumed.append(consumed)
    if emitted is not None:
        op.ledger.emitted.append(emitted)
    return out


def _mac_axes(wlabel: Label, shape: tuple[int, ...], groups: int) -> tuple[tuple[Axis, int], ...]:
    rows, cols = (wlabel[0], shape[0]), (wlabel[1], shape[1])
    if groups > 1 and min(shape[1], shape[0] // groups) == 1 and cols[1] > 1:
        return rows, (None, shape[1])  # the inputs of one group are fixed in number
    return rows, cols


def _spatial(op: Op, x: torch.Tensor, labels: Label, weight: torch.Tensor) -> Label:
    """A kernel that slides along a labelled dimension (channel attention in one dimension) mixes neighbours."""
    result: list[Axis] = []
    out = op.out.shape[-len(labels) :] if labels else ()
    sizes = x.shape[-len(labels) :] if labels else ()
    for axis, old, new in zip(labels, sizes, out, strict=True):
        if axis is not None and old == new and len(np.unique(axis)) == len(axis):
            op.inexact(axis, "a convolution slides over channels")
            result.append(axis)
        else:
            op.fix(axis, "a kernel slides over it")
            result.append(None)
    return tuple(result)


def _contract(op: Op, a: torch.Tensor, b: torch.Tensor, axis_a: Axis, axis_b: Axis) -> None:
    """The summed dimension of a product; of a weight it is the consuming side."""
    op.join(axis_a, axis_b)
    if is_constant(b) and not is_constant(a) and b.dim() == 2:
        op.weight = (next((x for x in label_of(b) if x is not axis_b), None), axis_b)
        op.form = Form("linear", 1, (op.out.numel() // max(op.out.shape[-1], 1),))
    if is_constant(a) != is_constant(b):
        axis = axis_a if is_constant(a) else axis_b
        if axis is not None:
            op.ledger.consumed.append(axis)
            weight = a if is_constant(a) else b
            op.ledger.emitted += [own for own in label_of(weight) if own is not None and own is not axis]
            _meets_fixed(op, weight, axis)
    elif axis_a is not None:
        op.mixes = True  # activation by activation: a dead channel's value need not be zero
        own = axis_b is not None and np.array_equal(axis_a, axis_b)
        if is_constant(a) and (own or is_fixed(a) or is_fixed(b)):  # a power iteration
            mixed = axis_b if is_fixed(a) else axis_a
            op.ledger.mix(mixed, f"a product of weights with their own norm's vectors ({op.where})", True)


def _meets_fixed(op: Op, weight: torch.Tensor, axis: Axis) -> None:
    """A weight without parameters sums whatever a removed channel would have held, and that need not be zero."""
    if is_fixed(weight):
        op.inexact(axis, "a fixed weight sums over channels")


@rule("mm", "bmm", "matmul", "linear", "mv", "dot", "vdot")
def matmul(op: Op) -> Labels:
    """(batch, n, k) x (batch, k, m) -> (batch, n, m)."""
    names = {
        "linear": ("input", "weight"),
        "mv": ("self", "vec"),
        "dot": ("self", "tensor"),
        "vdot": ("self", "other"),
        "matmul": ("self", "other"),
    }
    short = op.name.removeprefix("aten::")
    left, right = names.get(short, ("self", "mat2"))
    a, b = op.args[left], op.args[right]
    la, lb = label_of(a), label_of(b)
    if short == "linear":
        lb = lb[::-1]
    return _product(op, a, b, la, lb, op.args.get("bias") if short == "linear" else None)


def _product(op: Op, a: torch.Tensor, b: torch.Tensor, la: Label, lb: Label, bias: torch.Tensor | None = None) -> Label:
    k_a = la[-1]
    k_b = lb[-2] if len(lb) > 1 else lb[-1]
    _contract(op, a, b, k_a, k_b)
    rows: Label = la[-2:-1] if len(la) > 1 else ()
    cols: Label = lb[-1:] if len(lb) > 1 else ()
    batch = _batch(op, a, b, la[:-2], lb[:-2])
    if bias is not None:
        cols = op.broadcast([bias])[-1:] if cols and cols[0] is None else (op.join(cols[0], label_of(bias)[-1]),)
    k, total = a.shape[-1], max(op.out.numel(), 1)
    label = (*batch, *rows, *cols)
    _count_product(op, label, k_a if k_a is not None else k_b, k, total)
    return label


def _batch(op: Op, a: torch.Tensor, b: torch.Tensor, la: Label, lb: Label) -> Label:
    """Batch dimensions meet element by element; between two activations they are attention heads."""
    rank = max(len(la), len(lb))
    result: list[Axis] = []
    for d in range(-rank, 0):
        axis_a = la[d] if -d <= len(la) else None
        axis_b = lb[d] if -d <= len(lb) else None
        size_a = a.shape[d - 2] if -d <= len(la) else 1
        size_b = b.shape[d - 2] if -d <= len(lb) else 1
        axis = axis_b if size_a == 1 else axis_a if size_b == 1 else op.join(axis_a, axis_b)
        if axis is not None:
            op.ledger.heads.append(axis)
        result.append(axis)
    return tuple(result)


def _count_product(op: Op, label: Label, k_axis: Axis, k: int, total: int) -> None:
    shape = op.out.shape
    axes = [(axis, size) for axis, size in zip(label, shape, strict=True) if axis is not None]
    fixed = total // max(math.prod(size for _, size in axes), 1)
    count(op, fixed, *axes, (k_axis, k))


@rule("addmm", "baddbmm", "addbmm", "addmv", "_addmm_activation")
def addmm(op: Op) -> Labels:
    """A product plus a broadcast term."""
    short = op.name.removeprefix("aten::").removesuffix("_")
    left, right = {"baddbmm": ("batch1", "batch2"), "addbmm": ("batch1", "batch2"), "addmv": ("mat", "vec")}.get(
        short, ("mat1", "mat2")
    )
    a, b = op.args[left], op.args[right]
    label: list[Axis] = list(_product(op, a, b, label_of(a), label_of(b)))
    term = op.args["self"]
    tlabel = label_of(term)
    for d in range(-term.dim(), 0):
        if -d <= len(label) and term.shape[d] == op.out.shape[d] and term.shape[d] > 1:
            label[d] = op.join(label[d], tlabel[d])
    return tuple(label)


@rule("addr")
def addr(op: Op) -> Labels:
    """An outer product plus a broadcast term."""
    outer = (*op.label("vec1"), *op.label("vec2"))
    term, label = op.args["self"], list(outer)
    for d in range(-term.dim(), 0):
        if term.shape[d] == op.out.shape[d] and term.shape[d] > 1:
            label[d] = op.join(label[d], label_of(term)[d])
    return tuple(label)


@rule("_trilinear")
def trilinear(op: Op) -> Labels:
    """Three tensors multiplied element by element (with dimensions put in), then summed over some dimensions."""
    rank = op.out.dim() + len(op.args["sumdim"])
    summed = {d % rank for d in op.args["sumdim"]}
    label: list[Axis] = [None] * rank
    sized = [False] * rank
    for number in (1, 2, 3):
        tensor, put_in = op.args[f"i{number}"], {d % rank for d in op.args[f"expand{number}"]}
        dims = [d for d in range(rank) if d not in put_in]
        for d, axis, size in zip(dims, label_of(tensor), tensor.shape, strict=True):
            if size > 1:
                label[d], sized[d] = (op.join(label[d], axis) if sized[d] else axis), True
            if axis is not None and d in summed and is_constant(tensor):
                op.ledger.consumed.append(axis)
    return tuple(axis for d, axis in enumerate(label) if d not in summed)


@rule("conv_tbc")
def conv_tbc(op: Op) -> Labels:
    """A convolution over (time, batch, channels), its weight (kernel, in, out); PyTorch's counter counts none of it."""
    kernel, into, out = op.label("weight")
    op.ledger.fix(kernel, "")
    time, batch, source = op.label("self")
    op.fix(time, "a kernel slides over it")
    op.join(source, into)
    if into is not None:
        op.ledger.consumed.append(into)
    op.weight = (out, into)
    return (None, batch, op.join(out, op.label("bias")[0]))


@rule("torchvision::deform_conv2d")
def deform_conv2d(op: Op) -> Labels:
    """A convolution whose taps are moved: offsets and masks are numbers of the kernel, shared by blocks of inputs.

    Its MACs are not counted, for PyTorch's counter, by which every cost here is checked, has no formula for it.
    """
    x, weight = op.args["input"], op.args["weight"]
    xlabel, wlabel = label_of(x), label_of(weight)
    for axis in (*wlabel[2:], *xlabel[2:]):
        op.fix(axis, "warped in space")
    for name in ("offset", "mask") if op.args["use_mask"] else ("offset",):
        for axis in op.label(name)[1:]:
            op.fix(axis, "the kernel's positions are computed from it")
    source, blocks, groups = xlabel[1], int(op.args["offset_groups"]), int(op.args["groups"])
    if source is not None and blocks > 1:  # blocks stay equal: position by position
        grid = source.reshape(blocks, -1)
        for k in range(1, blocks):
            op.ledger.tie(grid[0], grid[k])
    op.weight = (wlabel[0], wlabel[1])
    out = _bias(op, _tie(op, source, wlabel, tuple(weight.shape), groups, transposed=False))
    return (xlabel[0], out, None, None)


ATTENTIONS = (
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps "
    "scaled_dot_product_attention"
).split()


@rule(*ATTENTIONS)
def attention(op: Op) -> Labels:
    """softmax(q k^T) v: heads meet, the query's and key's features are summed, the value's flow on."""
    q, k, v = op.args["query"], op.args["key"], op.args["value"]
    lq, lk, lv = label_of(q), label_of(k), label_of(v)
    heads: list[Axis] = []
    for d in range(q.dim() - 2):
        axis = op.join(op.join(lq[d], lk[d]), lv[d]) if q.shape[d] > 1 else lq[d]
        if axis is not None:
            op.ledger.heads.append(axis)
        heads.append(axis)
    features = op.join(lq[-1], lk[-1])
    op.join(lk[-2], lv[-2])
    if op.args.get("scale") is None:
        op.inexact(features, "attention scaled by the head size")
    elif features is not None:
        op.mixes = True
    mask = op.args.get("attn_mask", op.args.get("attn_bias"))
    if mask is not None:
        _mask(op, mask, heads, q)
    label = (*heads, lq[-2], lv[-1])
    batch = math.prod(n for n, a in zip(q.shape[:-2], heads, strict=True) if a is None)
    length = batch * q.shape[-2] * k.shape[-2]
    sized = [(a, 1) for a in heads if a is not None]
    count(op, length, *sized, (features, q.shape[-1]))
    count(op, length, *sized, (lv[-1], v.shape[-1]))
    rows = q.shape[:-1]  # what the softmax summed up is told for each, by some kernels
    return [
        label if n == 0 else label[:-1] if out.shape == rows else (None,) * out.dim()
        for n, out in enumerate(op.outputs())
    ]


def _mask(op: Op, mask: torch.Tensor, heads: list[Axis], q: torch.Tensor) -> None:
    label = label_of(mask)
    for d in range(-mask.dim(), 0):
        if mask.shape[d] > 1 and -d > 2 and -d <= q.dim():
            op.join(heads[d + 2], label[d])
        else:
            op.ledger.fix(label[d], "")
