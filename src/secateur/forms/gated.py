"""Form "gated": a convolution that looks at its input and computes, for every image, the channels that matter there.

A small network beside the layer gives each output channel a saliency of the image; those below a threshold are skipped:

    pi = min(relu(F2 relu(F1 GAP(x)) + b), 1000),   m = pi where pi >= xi, else 0,   out = norm(conv(x)) m

The batch norm behind the convolution is part of the form, for what is skipped must be zero behind it. Other layers then
see zeros: channels of the input that are zero in the whole image are skipped as well, where the form says so.

Tang et al.: Manifold Regularized Dynamic Network Pruning, CVPR 2021 (arXiv:2103.05861), section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from secateur.forms.base import LayerForm, Parts

_KEYS = {"inputs", "outputs", "hidden", "threshold", "norm", "columns"}
_MOST_WIDTH = 1 << 20
#: What saliencies are clamped to, as in the authors' code.
CLAMP = 1000.0


def saliency(x: torch.Tensor, reduce: torch.Tensor, expand: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Saliencies pi >= 0 of the output channels [batch, outputs] for maps x [batch, inputs, height, width].

    reduce: F1 [hidden, inputs]. expand: F2 [outputs, hidden]. shift: b [outputs].
    """
    hidden = F.relu(F.linear(x.mean((2, 3)), reduce))
    return F.linear(hidden, expand, shift).relu().clamp(max=CLAMP)


def thresholded(pi: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    """The mask m: pi where it reaches the threshold, else 0; not binarised."""
    return torch.where(pi >= threshold, pi, torch.zeros_like(pi))


class GatedConv2d(nn.Module):
    """A two-dimensional convolution with its batch norm, behind a gate.

    skip: compute single images by their active channels alone; else, in batches and in training, all channels are
    computed and masked, which gives the same.
    """

    def __init__(self, layer: nn.Conv2d, norm: nn.BatchNorm2d | None, data: Mapping[str, Any], *, skip: bool) -> None:
        """Take over `layer` and `norm`; the gate is open, pi = 1 for every image."""
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = layer.in_channels, layer.out_channels, layer.kernel_size
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.hidden, self.threshold, self.columns, self.skip = data["hidden"], data["threshold"], data["columns"], skip
        self.weight, self.bias, self.norm = layer.weight, layer.bias, norm
        self.reduce = nn.Parameter(layer.weight.new_zeros(self.hidden, self.in_channels))
        self.expand = nn.Parameter(layer.weight.new_zeros(self.out_channels, self.hidden))
        self.shift = nn.Parameter(layer.weight.new_ones(self.out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [batch, outputs, height, width] of inputs [batch, inputs, height, width]."""
        pi = saliency(x, self.reduce, self.expand, self.shift)
        if self.skip and not self.training and x.shape[0] == 1:
            return self._skipping(x, pi)
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        if self.norm is not None:
            out = self.norm(out)
        gated: torch.Tensor = out * thresholded(pi, self.threshold)[:, :, None, None]
        return gated

    def _skipping(self, x: torch.Tensor, pi: torch.Tensor) -> torch.Tensor:
        """One image: rows of the weight whose channels are active, and columns whose inputs are not all zero."""
        mask = thresholded(pi, self.threshold)[0]
        rows = _present(mask > 0, pi[0])  # the largest saliency stays, times its mask, where nothing is active
        weight = self.weight.index_select(0, rows)
        if self.columns:
            size = x.abs().amax((2, 3))[0]
            columns = _present(size > 0, size)
            weight, x = weight.index_select(1, columns), x.index_select(1, columns)
        made = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)
        scale, shift = self._affine()
        own = mask.index_select(0, rows)
        made = made * (scale.index_select(0, rows) * own)[:, None, None]
        made = made + (shift.index_select(0, rows) * own)[:, None, None]
        out = made.new_zeros(1, self.out_channels, made.shape[2], made.shape[3])
        return out.index_add(1, rows, made)

    def _affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What bias and norm do in evaluation: norm(y + bias) = scale y + shift."""
        norm: Any = self.norm
        if norm is None:
            ones = torch.ones_like(self.shift)
            return ones, self.bias if self.bias is not None else torch.zeros_like(ones)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        mean = norm.running_mean if self.bias is None else norm.running_mean - self.bias
        return scale, norm.bias - mean * scale

    def extra_repr(self) -> str:
        """What it is, for people."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, threshold={self.threshold:g}"


def _present(there: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """The numbers of what is there, and of the largest in any case: a convolution needs one channel."""
    largest = torch.arange(len(size), device=size.device) == size.argmax()
    return torch.nonzero(there | largest).flatten()


class Gated:
    """Data: "inputs", "outputs" and "hidden", the gate's widths; its "threshold"; the "norm" behind the layer, by name,
    or null; "columns", whether inputs that are zero are looked for."""

    summary = "computes the channels that a gate opens for the image, and no others"
    built: type[nn.Module] = GatedConv2d
    per_input = True

    def refused(self, runtime: str) -> str | None:
        """OpenVINO's plugin for processors wants to know weights when it compiles."""
        return "OpenVINO runs no convolution whose weight is computed." if runtime == "openvino" else None

    def check(self, data: Mapping[str, Any]) -> None:
        """ValueError unless the data are widths, a threshold, a name or null, and yes or no."""
        if set(data) != _KEYS:
            raise ValueError(f"its data must be {', '.join(sorted(_KEYS))}")
        for key in ("inputs", "outputs", "hidden"):
            if type(data[key]) is not int or not 0 < data[key] <= _MOST_WIDTH:
                raise ValueError(f"its {key} are not a number of channels")
        threshold = data["threshold"]
        if type(threshold) is not float or not math.isfinite(threshold):
            raise ValueError("its threshold is no number")
        if data["norm"] is not None and not isinstance(data["norm"], str):
            raise ValueError("its norm is not the name of a layer")
        if type(data["columns"]) is not bool:
            raise ValueError("its columns are neither true nor false")

    def takes(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        """The norm."""
        return () if data["norm"] is None else (data["norm"],)

    def build(self, layer: nn.Module, data: Mapping[str, Any], parts: Parts = Parts()) -> nn.Module:  # noqa: B008
        """The GatedConv2d that skips; ValueError unless layer, norm and tensors are as wide as the data say."""
        return self._made(layer, data, parts, skip=True)

    def reference(self, layer: nn.Module, data: Mapping[str, Any], parts: Parts = Parts()) -> nn.Module:  # noqa: B008
        """All channels computed, and masked."""
        return self._made(layer, data, parts, skip=False)

    def drawn(self, data: Mapping[str, Any], generator: torch.Generator, dtype: torch.dtype) -> LayerForm:
        """Gates of which about half are open, some of them for some images only.

        What an image changes is small beside the shift: where saliencies follow it as maps do, every layer doubles what
        rounding has left in the one before.
        """

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator, dtype=dtype)

        tensors = {
            "reduce": normal(data["hidden"], data["inputs"]) * data["inputs"] ** -0.5,
            "expand": normal(data["outputs"], data["hidden"]) * 0.25 * data["hidden"] ** -0.5,
            "shift": 1 + normal(data["outputs"]),
        }
        return LayerForm("gated", {**data, "threshold": 1.0}, tensors)

    def plain(self, built: nn.Module) -> nn.Module:
        """The same without skipping; the function has no ordinary layer."""
        assert isinstance(built, GatedConv2d)
        twin = copy.deepcopy(built)
        twin.skip = False
        return twin

    def rivals(self, built: nn.Module) -> list[nn.Module]:
        """The layer without its gate, and the one that masks."""
        assert isinstance(built, GatedConv2d)
        b: Any = built
        layer = nn.Conv2d(
            b.in_channels, b.out_channels, b.kernel_size, b.stride, b.padding, b.dilation,
            bias=b.bias is not None, device=b.weight.device, dtype=b.weight.dtype,
        )  # fmt: skip
        layer.load_state_dict({n: p for n, p in (("weight", b.weight), ("bias", b.bias)) if p is not None})
        dense = layer if b.norm is None else nn.Sequential(layer, copy.deepcopy(b.norm))
        return [dense.train(built.training), self.plain(built)]

    def macs(self, dense: int, data: Mapping[str, Any], rows: int) -> int:
        """With every channel active, and the gate: C_i h + h C_o an image."""
        return dense + rows * int(data["hidden"] * (data["inputs"] + data["outputs"]))

    def params(self, weights: int, data: Mapping[str, Any]) -> int:
        """With those of the gate: C_i h + h C_o + C_o."""
        return weights + int(data["hidden"] * (data["inputs"] + data["outputs"]) + data["outputs"])

    def _made(self, layer: nn.Module, data: Mapping[str, Any], parts: Parts, *, skip: bool) -> GatedConv2d:
        if type(layer) is not nn.Conv2d or layer.groups != 1 or layer.padding_mode != "zeros":
            raise ValueError("the layer is no plain nn.Conv2d of one group with zeros around its input")
        if (layer.in_channels, layer.out_channels) != (data["inputs"], data["outputs"]):
            raise ValueError(f"the layer has {layer.in_channels} inputs and {layer.out_channels} outputs after the cut")
        norm = parts.taken[0] if parts.taken else None
        if norm is not None and (
            type(norm) is not nn.BatchNorm2d
            or norm.num_features != data["outputs"]
            or norm.weight is None
            or norm.running_mean is None
        ):
            raise ValueError("the norm is no nn.BatchNorm2d of these outputs with weights and statistics")
        made = GatedConv2d(layer, norm, data, skip=skip)
        with torch.no_grad():
            for name, tensor in parts.tensors.items():
                own = made.get_parameter(name)
                if own.shape != tensor.shape:
                    raise ValueError(f"its tensor {name} is of another shape")
                own.copy_(tensor)
        return made


def macs_of_images(unit: int, active: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Multiply-accumulates of the convolution for every image: unit, of one channel pair, times what is computed.

    active, read: of every image, how many outputs are active and how many inputs are there [images]; one at least is.
    """
    return unit * active.clamp(min=1) * read.clamp(min=1)
