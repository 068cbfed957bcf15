"""Operators that move indices about: views, permutations, slices, concatenations, paddings."""

from __future__ import annotations

import numpy as np

from secateur.graph.labels import Axis, Ids, Label
from secateur.graph.rules.registry import Labels, Op, is_fixed, label_of, rule


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "flatten", "unflatten", "_reshape_copy")
def view(op: Op) -> Labels:
    """Labels over the common refinement of both shapes: flatten, shuffle, heads and group reshapes in one rule."""
    x = op.args["self"]
    return op.ledger.view(op.label("self"), tuple(x.shape), tuple(op.out.shape), op.where)


@rule("permute", "movedim")
def permute(op: Op) -> Labels:
    """Dimensions change places."""
    label = op.label("self")
    return tuple(label[d] for d in op.args["dims"])


@rule("transpose", "swapaxes", "transpose_")
def transpose(op: Op) -> Labels:
    """Two dimensions change places."""
    label = list(op.label("self"))
    if label:
        a, b = op.dim("dim0"), op.dim("dim1")
        label[a], label[b] = label[b], label[a]
    return tuple(label)


@rule("t", "numpy_T", "mT", "adjoint", "t_")
def t(op: Op) -> Labels:
    """The last two dimensions change places."""
    label = list(op.label("self"))
    if len(label) >= 2:
        label[-1], label[-2] = label[-2], label[-1]
    return tuple(label)


@rule("squeeze", "squeeze_")
def squeeze(op: Op) -> Labels:
    """Dimensions of size one go."""
    x = op.args["self"]
    dims = op.args.get("dim")
    chosen = (
        range(x.dim()) if dims is None else [d % max(x.dim(), 1) for d in ([dims] if isinstance(dims, int) else dims)]
    )
    return tuple(a for d, a in enumerate(op.label("self")) if not (d in chosen and x.shape[d] == 1))


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(op: Op) -> Labels:
    """A dimension of size one comes."""
    label = list(op.label("self"))
    label.insert(int(op.args["dim"]) % (len(label) + 1), None)
    return tuple(label)


@rule("expand", "expand_copy")
def expand(op: Op) -> Labels:
    """A dimension of size one becomes n free copies."""
    x, label = op.args["self"], op.label("self")
    offset = op.out.dim() - x.dim()
    return tuple(
        label[d - offset] if d >= offset and x.shape[d - offset] == n else (op.ledger.fresh(n) if n > 1 else None)
        for d, n in enumerate(op.out.shape)
    )


@rule("repeat", "tile")
def repeat(op: Op) -> Labels:
    """Whole dimensions repeated; a single index becomes n free copies, and so does what holds no parameter."""
    x, label = op.args["self"], op.label("self")
    offset = op.out.dim() - x.dim()
    result: list[Axis] = []
    for d, n in enumerate(op.out.shape):
        size, axis = (x.shape[d - offset], label[d - offset]) if d >= offset else (1, None)
        if size == n:
            result.append(axis)
        elif size == 1:
            result.append(op.ledger.fresh(n))
        elif is_fixed(x):  # a filter bank for every channel
            result.append(op.ledger.merge((op.ledger.fresh(n // size), axis), (n // size, size), op.where))
        else:
            result.append(None if axis is None else np.tile(axis, n // size))
    return tuple(result)


@rule("slice", "slice_copy", "narrow")
def slice_(op: Op) -> Labels:
    """A stretch of one dimension; its bounds must move with what is alive before them."""
    dim = op.dim()
    label = list(op.label("self"))
    axis, size = label[dim], op.args["self"].shape[dim]
    if axis is None or op.out.shape[dim] == size:
        return tuple(label)
    start = op.args.get("start")
    given = 0 if start is None else int(start)
    start = max(given + size, 0) if given < 0 else min(given, size)
    step = int(op.args.get("step") or 1)
    if op.out.shape[dim] == 1:  # one channel by its position, like `select`
        end = op.args.get("end")
        from_end = given < 0 and (end is None or int(end) < 0 or int(end) >= size)
        op.fix(axis[start:] if from_end else axis[: start + 1], "indexed by position")
        label[dim] = None
        return tuple(label)
    if step > 1:
        _tie_stride(op, axis, step)
    elif given < 0:
        op.expect("start", axis[start:], sign=-1)
    elif start:
        op.expect("start", axis[:start])
    label[dim] = axis[start : start + (op.out.shape[dim] - 1) * step + 1 : step]
    return tuple(label)


def _tie_stride(op: Op, axis: Ids, step: int) -> None:
    # every step-th channel: runs of `step` channels stay or go together, so that the stride still hits the same ones
    if len(axis) % step:
        op.fix(axis, f"every {step}th channel is taken and the width is no multiple of it")
        return
    runs = axis.reshape(-1, step)
    for k in range(1, step):
        op.ledger.tie(runs[:, 0], runs[:, k])


@rule("select", "unbind", "select_copy")
def select(op: Op) -> Labels:
    """One index of a dimension, by a literal: that dimension stays as it is."""
    dim = op.dim()
    label = list(op.label("self"))
    axis = label.pop(dim)
    if op.args["self"].shape[dim] > 1:
        op.fix(axis, "indexed by position")
    return [tuple(label)] * len(op.outputs())


@rule("_pack_padded_sequence")
def pack(op: Op) -> Labels:
    """Steps of all sequences in one row, as many as are not padding; channels keep their place."""
    label = op.label("input")
    for axis in label[:2]:
        op.fix(axis, "counted by the lengths of sequences")
    return [(None, *label[2:]), (None,)]


@rule("split", "chunk", "split_copy", "unsafe_split", "unsafe_chunk")
def split(op: Op) -> Labels:
    """Equal parts must stay equal: they are tied position by position."""
    dim = op.dim()
    label = list(op.label("self"))
    axis = label[dim]
    outs = op.outputs()
    if axis is None or len(outs) == 1:
        return [tuple(label)] * len(outs)
    size = outs[0].shape[dim]
    if len(axis) % size:
        op.fix(axis, "split into unequal parts by one size")
    parts = [axis[k * size : (k + 1) * size] for k in range(len(outs))]
    if len(axis) % size == 0:
        for part in parts[1:]:
            op.ledger.tie(parts[0], part)
        if "split_size" in op.args:
            op.expect("split_size", parts[0])
    return [(*label[:dim], part, *label[dim + 1 :]) for part in parts]


@rule("split_with_sizes", "split_with_sizes_copy", "unsafe_split_with_sizes", "tensor_split")
def split_with_sizes(op: Op) -> Labels:
    """Parts of stated sizes; each size must follow what is alive in its part."""
    dim = op.dim()
    label = list(op.label("self"))
    axis = label[dim]
    outs = op.outputs()
    result: list[Label] = []
    start = 0
    for k, out in enumerate(outs):
        part = None if axis is None else axis[start : start + out.shape[dim]]
        if part is not None and "split_sizes" in op.args:
            op.expect("split_sizes", part, position=k)
        result.append((*label[:dim], part, *label[dim + 1 :]))
        start += out.shape[dim]
    return result


@rule("cat", "concat", "concatenate")
def cat(op: Op) -> Labels:
    """Stretches side by side; the other dimensions meet element by element."""
    tensors = [t for t in op.args["tensors"] if not (t.dim() == 1 and t.numel() == 0)]
    if not tensors:
        return op.blank()
    dim = int(op.args["dim"]) % max(tensors[0].dim(), 1)
    result = list(label_of(tensors[0]))
    for tensor in tensors[1:]:
        label = label_of(tensor)
        for d in range(len(result)):
            if d != dim and tensor.shape[d] > 1:
                result[d] = op.join(result[d], label[d])
    result[dim] = side_by_side(op, [(label_of(t)[dim], t.shape[dim]) for t in tensors])
    return tuple(result)


def side_by_side(op: Op, parts: list[tuple[Axis, int]]) -> Axis:
    """The axis of stretches (axis, size) side by side; where any is labelled, the others are constants."""
    if all(axis is None for axis, _ in parts):
        return None
    return np.concatenate([op.ledger.constant(size) if axis is None else axis for axis, size in parts])


@rule("stack")
def stack(op: Op) -> Labels:
    """A new dimension of equals."""
    tensors = op.args["tensors"]
    label = list(op.broadcast(tensors))
    label.insert(int(op.args["dim"]) % (len(label) + 1), None)
    return tuple(label)


@rule("flip", "fliplr", "flipud")
def flip(op: Op) -> Labels:
    """The order of some dimensions turns round."""
    label = list(op.label("self"))
    for d in op.args["dims"]:
        axis = label[d]
        label[d] = None if axis is None else axis[::-1]
    return tuple(label)


@rule("rot90")
def rot90(op: Op) -> Labels:
    """Quarter turns of two dimensions: labelled ones stay as they are."""
    label = list(op.label("self"))
    for d in op.args["dims"]:
        op.fix(label[d], "rotated by a literal")
        label[d] = None
    return tuple(label)


@rule("roll")
def roll(op: Op) -> Labels:
    """Rotation by a literal: a labelled dimension stays as it is."""
    label = list(op.label("self"))
    for d in op.args["dims"] or range(len(label)):
        if label[d] is not None:
            op.fix(label[d], "rotated by a literal")
            label[d] = None
    return tuple(label)


@rule("constant_pad_nd", "pad")
def pad(op: Op) -> Labels:
    """New indices at the ends; on a labelled dimension they are free, and the amounts follow what is alive of them."""
    label = list(op.label("self"))
    amounts = list(op.args["pad"])
    for k in range(len(amounts) // 2):
        dim, before, after = len(label) - 1 - k, int(amounts[2 * k]), int(amounts[2 * k + 1])
        axis = label[dim]
        if axis is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            op.fix(axis, "cropped by a literal")
            label[dim] = None
            continue
        front, back = op.ledger.fresh(before), op.ledger.fresh(after)
        op.expect("pad", front, position=2 * k)
        op.expect("pad", back, position=2 * k + 1)
        label[dim] = np.concatenate([front, axis, back])
    return tuple(label)


@rule("resize", "resize_as")
def resize(op: Op) -> Labels:
    """To the size it has; any other freezes."""
    label = op.label("self")
    if [n if axis is None else len(axis) for axis, n in zip(label, op.out.shape, strict=False)] == list(op.out.shape):
        return label
    return op.keep_all(f"resized ({op.where})")


@rule("pixel_shuffle")
def pixel_shuffle(op: Op) -> Labels:
    """(C r r, H, W) -> (C, H r, W r)."""
    *batch, c, h, w = op.label("self")
    r = int(op.args["upscale_factor"])
    size, height, width = op.args["self"].shape[-3:]
    if c is None:
        return (*batch, None, None if h is None else np.repeat(h, r), None if w is None else np.repeat(w, r))
    out, rh, rw = op.ledger.split(c, (size // (r * r), r, r), op.where)
    for factor in (rh, rw):  # the factor is the operator's own number
        op.ledger.fix(factor, "")
    return (
        *batch,
        out,
        op.ledger.merge((h, rh), (height, r), op.where),
        op.ledger.merge((w, rw), (width, r), op.where),
    )


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Op) -> Labels:
    """(C, H r, W r) -> (C r r, H, W)."""
    *batch, c, h, w = op.label("self")
    r = int(op.args["downscale_factor"])
    size, height, width = op.args["self"].shape[-3:]
    h0, h1 = op.ledger.split(h, (height // r, r), op.where)
    w0, w1 = op.ledger.split(w, (width // r, r), op.where)
    return (*batch, op.ledger.merge((c, h1, w1), (size, r, r), op.where), h0, w0)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(op: Op) -> Labels:
    """(g, C/g) -> (C/g, g), flattened again."""
    batch, c, *space = op.label("self")
    g, size = int(op.args["groups"]), op.args["self"].shape[1]
    a, b = op.ledger.split(c, (g, size // g), op.where)
    op.ledger.fix(a, "")  # the number of groups is the operator's own
    return (batch, op.ledger.merge((b, a), (size // g, g), op.where), *space)


@rule("im2col")
def im2col(op: Op) -> Labels:
    """(B, C, H, W) -> (B, C k k, L)."""
    label = op.label("self")
    batch, c = label[0], label[1]
    for axis in label[2:]:
        op.fix(axis, "unfolded in space")
    size = op.args["self"].shape[1]
    return (batch, op.ledger.merge((c, None), (size, op.out.shape[1] // size), op.where), None)


@rule("col2im")
def col2im(op: Op) -> Labels:
    """(B, C k k, L) -> (B, C, H, W)."""
    batch, c, space = op.label("self")
    op.fix(space, "folded in space")
    size = op.out.shape[1]
    channel, kernel = op.ledger.split(c, (size, op.args["self"].shape[1] // size), op.where)
    op.fix(kernel, "folded in space")
    return (batch, channel, None, None)


@rule("unfold")
def unfold(op: Op) -> Labels:
    """Sliding windows along one dimension, as a new last dimension."""
    dim = op.dim("dimension")
    label = list(op.label("self"))
    op.fix(label[dim], "unfolded into windows")
    label[dim] = None
    return (*label, None)
