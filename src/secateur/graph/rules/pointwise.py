"""Elementwise operators: channels that are combined element by element are coupled."""

from __future__ import annotations

from secateur.graph.labels import Label
from secateur.graph.rules.positions import keep_random
from secateur.graph.rules.registry import Labels, Op, rule

# Operators that act element by element but do not carry PyTorch's `pointwise` tag in every supported version.
UNTAGGED = (
    "clone contiguous _to_copy alias detach lift lift_fresh lift_fresh_copy copy_ copy abs copysign heaviside gcd lcm "
    "threshold masked_fill where clamp clamp_min clamp_max hardtanh gelu hardswish hardsigmoid silu mish elu celu selu "
    "leaky_relu relu6 softplus log_sigmoid_forward prelu _prelu_kernel rsub _conj resolve_conj "
    "nan_to_num isfinite isnan quantize_per_tensor fmod remainder lerp addcmul addcdiv "
    "floor_divide angle real imag view_as_real_copy complex polar _add_relu _lazy_clone"
).split()


def pointwise(op: Op) -> list[Label]:
    """The broadcast of all tensor arguments; an in-place result keeps the rank of its target."""
    outs = op.outputs()
    if not outs:
        return []
    tensors = [t for t in op.tensors() if t.dim() or len(op.tensors()) == 1]
    label: Label = op.broadcast(tensors, outs[0].dim()) if tensors else ()
    return [label if out.dim() == len(label) else (None,) * out.dim() for out in outs]


for _name in UNTAGGED:
    rule(_name)(pointwise)


@rule("native_dropout", "dropout", "_fused_dropout", "rrelu_with_noise")
def dropout(op: Op) -> Labels:
    """Elementwise; where it is on, every place draws its own number."""
    label = pointwise(op)
    if op.args.get("train", op.args.get("training", True)) is not False:
        for axis in label[0]:
            keep_random(op, axis)
    return label


@rule("prelu", "_prelu_kernel")
def prelu(op: Op) -> Labels:
    """One slope per channel (dimension 1), or one for all."""
    x, slope = op.label("self"), op.args["weight"]
    if slope.numel() > 1 and slope.dim() == 1 and op.args["self"].dim() > 1:
        op.join(x[1], op.label("weight")[0])
        return x
    if slope.dim() == op.args["self"].dim():
        return op.broadcast([op.args["self"], slope])
    return x


@rule("glu")
def glu(op: Op) -> Labels:
    """The first half gates with the second: halves are tied position by position."""
    dim = op.dim()
    label = list(op.label("self"))
    axis = label[dim]
    if axis is not None:
        half = len(axis) // 2
        op.ledger.tie(axis[:half], axis[half:])
        label[dim] = axis[:half]
    return tuple(label)


@rule("fill", "zero")
def overwrite(op: Op) -> Labels:
    """The values change, the places do not."""
    return op.same("self")


@rule("view_as_real")
def view_as_real(op: Op) -> Labels:
    """Adds a last dimension of two."""
    return (*op.label("self"), None)


@rule("view_as_complex")
def view_as_complex(op: Op) -> Labels:
    """Drops the last dimension of two."""
    return op.label("self")[:-1]
