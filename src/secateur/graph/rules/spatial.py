"""Pooling, padding, resizing and warping in space: channels flow on, labelled spatial dimensions stay as they are."""

from __future__ import annotations

from secateur.graph.labels import Label
from secateur.graph.rules.registry import Labels, Op, label_of, rule

# operator -> number of trailing spatial dimensions
SPATIAL = {
    1: "avg_pool1d max_pool1d_with_indices adaptive_avg_pool1d adaptive_max_pool1d reflection_pad1d replication_pad1d "
    "upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d max_pool1d",
    2: "avg_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_pool2d "
    "reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
    "_upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa fractional_max_pool2d mkldnn_max_pool2d "
    "_upsample_lanczos2d_aa",
    3: "avg_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d "
    "reflection_pad3d replication_pad3d upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d "
    "fractional_max_pool3d",
}


def _spatial(dims: int) -> None:
    @rule(*SPATIAL[dims].split())
    def spatial(op: Op) -> Labels:
        label = op.label("self")
        for axis in label[-dims:]:
            op.fix(axis, "resampled in space")
        result: Label = (*label[:-dims], *[None] * dims)
        return [result] * len(op.outputs())


for _dims in SPATIAL:
    _spatial(_dims)


def _max_unpool(dims: int) -> None:
    @rule(f"max_unpool{dims}d")
    def max_unpool(op: Op) -> Labels:
        """Values go back to the places they were the largest of: channels of both meet."""
        values, places = op.label("self"), op.label("indices")
        for axis in (*values[-dims:], *places[-dims:]):
            op.fix(axis, "resampled in space")
        ahead = [op.join(a, b) for a, b in zip(values[:-dims], places[:-dims], strict=True)]
        return (*ahead, *[None] * dims)


for _dims in (2, 3):
    _max_unpool(_dims)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(op: Op) -> Labels:
    """Channels of the input, positions of the grid."""
    label = op.label("input")
    for axis in (*label[2:], *label_of(op.args["grid"])):
        op.fix(axis, "warped in space")
    result: Label = (label[0], label[1], *[None] * (op.out.dim() - 2))
    return result


@rule("affine_grid_generator")
def affine_grid(op: Op) -> Labels:
    """Only positions come out."""
    for axis in op.label("theta"):
        op.fix(axis, "warped in space")
    return op.blank()


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fft(op: Op) -> Labels:
    """Transformed dimensions stay as they are."""
    label = list(op.label("self"))
    for d in op.args["dim"]:
        op.fix(label[d], "Fourier transformed")
        label[d] = None
    return tuple(label)
