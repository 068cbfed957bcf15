"""Reductions and normalisations: unlabelled dimensions go silently, labelled ones make their channels inexact."""

from __future__ import annotations

from secateur.graph.labels import Axis, Label
from secateur.graph.rules.positions import is_made, keep
from secateur.graph.rules.registry import Labels, Op, label_of, rule

REDUCTIONS = (
    "mean sum amax amin aminmax max min prod var var_mean std std_mean logsumexp linalg_vector_norm norm nansum "
    "nanmean median nanmedian all any mode count_nonzero native_norm _aminmax _is_all_true _is_any_true"
).split()


def _dims(op: Op, rank: int) -> list[int]:
    dims = op.args.get("dim")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(rank))
    return [d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims)]


@rule(*REDUCTIONS)
def reduction(op: Op) -> Labels:
    """Reduced dimensions lose their label."""
    if isinstance(op.args.get("other"), type(op.args["self"])):  # max(a, b), min(a, b)
        return op.broadcast([op.args["self"], op.args["other"]])
    label = op.label("self")
    dims = _dims(op, len(label))
    for d in dims:
        if op.args["self"].shape[d] > 1:
            op.inexact(label[d], f"{op.name.removeprefix('aten::')} over channels")
            op.ledger.reduced += [axis for axis in (label[d],) if axis is not None]
    keep = bool(op.args.get("keepdim", False))
    kept = tuple(None if d in dims else a for d, a in enumerate(label) if keep or d not in dims)
    return [kept if out.dim() == len(kept) else (None,) * out.dim() for out in op.outputs()]


@rule("argmax", "argmin")
def argmax(op: Op) -> Labels:
    """The result is a position, so the dimension stays as it is."""
    label = op.label("self")
    dims = _dims(op, len(label))
    for d in dims:
        op.fix(label[d], "positions are computed from it")
    keep = bool(op.args.get("keepdim", False)) and op.args.get("dim") is not None
    return tuple(None if d in dims else a for d, a in enumerate(label) if keep or d not in dims)


RUNNING = "cumsum cumprod logcumsumexp _logcumsumexp cummax cummin cumsum_ cumprod_".split()


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", *RUNNING)
def along(op: Op) -> Labels:
    """Keeps its shape, mixes along one dimension; what it makes of a constant depends on the position."""
    label = op.label("self")
    if label and is_made(op.args["self"]) and op.name.removeprefix("aten::") in RUNNING:
        keep(op, label[op.dim()])
    elif label:
        op.inexact(label[op.dim()], f"{op.name.removeprefix('aten::').removeprefix('_')} over channels")
    return [label] * len(op.outputs())


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(op: Op) -> Labels:
    """Normalises the last dimensions; the affine parameters sit on them."""
    label = list(op.label("input"))
    shape = op.args["normalized_shape"]
    first = len(label) - len(shape)
    for k in range(len(shape)):
        axis = label[first + k]
        for name in ("weight", "bias"):
            if op.args.get(name) is not None:
                axis = op.join(axis, op.label(name)[k])
        label[first + k] = axis
        if axis is not None:
            op.inexact(axis, "a layer norm over channels")
            op.expect("normalized_shape", axis, position=k)
    result: Label = tuple(label)
    stats = (*result[:first], *[None] * len(shape))
    return [result if n == 0 else stats for n in range(len(op.outputs()))]


@rule("native_group_norm", "group_norm")
def group_norm(op: Op) -> Labels:
    """Groups stay equal (tied position by position); one channel a group is a norm of its own."""
    name = "input" if "input" in op.args else "self"
    label = list(op.label(name))
    groups = int(op.args["group"] if "group" in op.args else op.args["num_groups"])
    axis = label[1]
    for arg in ("weight", "bias"):
        if op.args.get(arg) is not None:
            axis = op.join(axis, op.label(arg)[0])
    label[1] = axis
    stats: Label = (label[0], None)
    if axis is not None:
        if "C" in op.args:
            op.expect("C", axis)
        per = len(axis) // groups
        if per == 1:
            op.expect("group", axis)
            stats = (label[0], axis)
        else:
            rows = axis.reshape(groups, per)
            for k in range(1, groups):
                op.ledger.tie(rows[0], rows[k])
            op.inexact(axis, "a group norm over channels")
    return [tuple(label), stats, stats][: len(op.outputs())]


BATCH_NORMS = (
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm batch_norm "
    "_batch_norm_with_update _batch_norm_no_update miopen_batch_norm instance_norm"
).split()


@rule(*BATCH_NORMS)
def batch_norm(op: Op) -> Labels:
    """Channel by channel: affine parameters and statistics sit on dimension 1."""
    label = list(op.label("input"))
    axis: Axis = label[1]
    for arg in ("weight", "bias", "running_mean", "running_var"):
        tensor = op.args.get(arg)
        if tensor is not None:
            axis = op.join(axis, label_of(tensor)[0])
    label[1] = axis
    if bool(op.args.get("training", op.args.get("train", False))):
        for d, other in enumerate(label):
            if d != 1:  # a weight standardised by a batch norm: its input channels share the statistics
                op.inexact(other, "a norm over input channels")
    return [
        tuple(label)
        if out.dim() == len(label)
        else ((axis,) if out.dim() == 1 and out.numel() else (None,) * out.dim())
        for out in op.outputs()
    ]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(op: Op) -> Labels:
    """v scaled to norm g along every index of `dim`: the other dimensions are mixed."""
    dim = op.dim(of="v")
    label, gain = list(op.label("v")), op.label("g")
    label[dim] = op.join(label[dim], gain[dim])
    for d, axis in enumerate(label):
        if d != dim:
            op.inexact(axis, "a weight norm over input channels")
    norms = tuple(a if d == dim else None for d, a in enumerate(label))
    return [tuple(label), norms][: len(op.outputs())]


@rule(
    "mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)  # fmt: skip
def loss(op: Op) -> Labels:
    """Elementwise, then perhaps summed over everything."""
    label = op.broadcast([t for t in op.tensors() if t.dim()])
    if op.args["reduction"] == 0:
        return label
    for axis in label:
        op.inexact(axis, "a loss over channels")
    return ()


@rule("cosine_similarity", "pairwise_distance", "_cdist_forward", "_euclidean_dist", "dist", "_pdist_forward")
def distance(op: Op) -> Labels:
    """Distances mix whatever they run over; nothing flows on."""
    for tensor in op.tensors():
        for axis in label_of(tensor):
            op.fix(axis, "a distance is computed over it")
    return [(None,) * out.dim() for out in op.outputs()]
