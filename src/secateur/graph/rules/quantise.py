"""Fake quantisers of quantisation-aware training: elementwise, with a scale for all or one an index of a dimension."""

from __future__ import annotations

from secateur.graph.labels import Axis, Label
from secateur.graph.rules.registry import Labels, Op, rule


def _scaled(op: Op, names: tuple[str, ...], dim: int | None) -> Label:
    """The label of the quantised tensor: numbers a channel sit on dimension `dim`; numbers for all on none."""
    label: list[Axis] = list(op.label("self"))
    for name in names:
        tensor = op.args[name]
        if tensor.numel() > 1 and dim is not None:
            label[dim] = op.join(label[dim], op.label(name)[0])
    return tuple(label)


def _everywhere(op: Op, label: Label) -> Labels:
    return [label] * len(op.outputs())


@rule(
    "fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "_fake_quantize_learnable_per_tensor_affine",
)  # fmt: skip
def per_tensor(op: Op) -> Labels:
    """One scale for all."""
    return _everywhere(op, op.label("self"))


@rule(
    "fake_quantize_per_channel_affine", "fake_quantize_per_channel_affine_cachemask",
    "_fake_quantize_learnable_per_channel_affine",
)  # fmt: skip
def per_channel(op: Op) -> Labels:
    """A scale and a zero point for every index of `axis`."""
    return _everywhere(op, _scaled(op, ("scale", "zero_point"), op.dim("axis")))


@rule("_fused_moving_avg_obs_fq_helper")
def observed(op: Op) -> Labels:
    """Quantised by the range seen so far, of all or of every index of `ch_axis`; it mixes the other dimensions."""
    own = op.dim("ch_axis") if op.args["per_row_fake_quant"] else None
    label = _scaled(op, ("running_min", "running_max", "scale", "zero_point"), own)
    for d, axis in enumerate(label):
        if d != own:
            op.inexact(axis, "a quantiser's range over channels")
    vector: Label = (None,) if own is None else (label[own],)
    return [label if out.shape == op.args["self"].shape else vector[: out.dim()] for out in op.outputs()]
