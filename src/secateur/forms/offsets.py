"""Form "offsets": a convolution that computes only some kernel positions of each filter (stripes).

Stripe (n, i, j) is a 1x1 filter over the inputs at kernel position (i, j). All stripes of one position are one 1x1
convolution of the shifted input, whose outputs are added into their filters' channels (in training the stripes are put
into an ordinary kernel: many small convolutions and their backward passes cost more than the zeros):

    out[n, h, w] = sum over kept (i, j) of filter n, sum_c W[n, c, i, j] xpad[c, h s + i d, w s + j d]

Meng et al.: Pruning Filter in Filter, NeurIPS 2020 (arXiv:2009.14410), sections 3.2 and 3.4.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from secateur.forms.base import LayerForm, Parts

_KEYS = {"kernel", "kept"}
_MOST_POSITIONS = 1 << 12  # of one kernel; no network comes near
_MOST_FILTERS = 1 << 20


class StripeConv2d(nn.Module):
    """A two-dimensional convolution of kept kernel positions.

    weight: [stripes, inputs of a group, 1, 1], kernel positions row by row and filters ascending; None without stripes.
    """

    rows: torch.Tensor  # filters and kernel positions of the stripes
    positions: torch.Tensor
    weight: nn.Parameter | None

    def __init__(self, layer: nn.Conv2d, kept: list[list[int]]) -> None:
        """Take the kept stripes of `layer`, and its bias."""
        super().__init__()
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self._pad = tuple(layer._reversed_padding_repeated_twice)
        # stripes in order: by kernel position, then by filter; filters of one group of inputs lie together
        order = sorted((position, filter) for filter, positions in enumerate(kept) for position in positions)
        rows = torch.tensor([filter for _, filter in order], dtype=torch.int64, device=layer.weight.device)
        positions = torch.tensor([position for position, _ in order], dtype=torch.int64, device=layer.weight.device)
        self.register_buffer("rows", rows, persistent=False)  # the plan says them, not the weights' file
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = _blocks(order, layer.out_channels // layer.groups)
        weight = layer.weight.detach().flatten(2)[rows, :, positions]
        learns = layer.weight.requires_grad
        self.weight = nn.Parameter(weight[:, :, None, None].clone(), requires_grad=learns) if order else None
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [batch, outputs, height, width] of inputs [batch, inputs, height, width]."""
        x = F.pad(x, self._pad) if any(self._pad) else x
        if self.training and self.weight is not None:
            return F.conv2d(x, self._kernel(self.weight), self.bias, self.stride, 0, self.dilation, self.groups)
        step = self.in_channels // self.groups
        height, width = (
            (x.shape[k - 2] - self.dilation[k] * (self.kernel_size[k] - 1) - 1) // self.stride[k] + 1 for k in (0, 1)
        )
        out: torch.Tensor | None = None
        for position, group, start, stop in self.blocks:
            assert self.weight is not None
            top, left = (at * d for at, d in zip(divmod(position, self.kernel_size[1]), self.dilation, strict=True))
            part = x[
                ...,
                group * step : (group + 1) * step,
                top : top + (height - 1) * self.stride[0] + 1,
                left : left + (width - 1) * self.stride[1] + 1,
            ]
            made = F.conv2d(part, self.weight[start:stop], stride=self.stride)
            if out is None:
                out = made.new_zeros(*made.shape[:-3], self.out_channels, height, width)
            out.index_add_(made.dim() - 3, self.rows[start:stop], made)
        if out is None:
            out = x.new_zeros(*x.shape[:-3], self.out_channels, height, width)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """The ordinary kernel [outputs, inputs of a group, height, width], zero where there is no stripe."""
        height, width = self.kernel_size
        empty = weight.new_zeros(self.out_channels, height * width, weight.shape[1])
        filled = empty.index_put((self.rows, self.positions), weight[:, :, 0, 0])
        kernel: torch.Tensor = filled.mT.unflatten(2, (height, width))
        return kernel

    def extra_repr(self) -> str:
        """What it is, for people."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stripes={len(self.rows)}"


class Offsets:
    """Data: {"kernel": [height, width], "kept": of every filter its kept positions, numbered row by row, ascending}."""

    summary = "computes single kernel positions of each filter"
    built: type[nn.Module] = StripeConv2d
    per_input = False

    def refused(self, runtime: str) -> str | None:
        """None."""
        return None

    def check(self, data: Mapping[str, Any]) -> None:
        """ValueError unless the data are a kernel and, for every filter, positions in it."""
        if set(data) != _KEYS:
            raise ValueError(f"its data must be {' and '.join(sorted(_KEYS))}")
        kernel, kept = data["kernel"], data["kept"]
        sound = isinstance(kernel, list) and len(kernel) == 2 and all(type(n) is int and n > 0 for n in kernel)
        if not sound or kernel[0] * kernel[1] > _MOST_POSITIONS:
            raise ValueError("its kernel is not a height and a width")
        if not isinstance(kept, list) or not 0 < len(kept) <= _MOST_FILTERS:
            raise ValueError("it lists no kept positions for each filter")
        for number, row in enumerate(kept):
            if not isinstance(row, list) or any(type(at) is not int for at in row):
                raise ValueError(f"the kept positions of filter {number} are not a list of whole numbers")
            if any(low >= high for low, high in itertools.pairwise(row)):
                raise ValueError(f"filter {number} lists positions twice or out of order")
            if row and not 0 <= row[0] <= row[-1] < kernel[0] * kernel[1]:
                raise ValueError(f"filter {number} keeps a position outside its kernel")

    def takes(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def build(self, layer: nn.Module, data: Mapping[str, Any], parts: Parts = Parts()) -> nn.Module:  # noqa: B008
        """The StripeConv2d; ValueError unless `layer` is a plain convolution with such a kernel and so many filters."""
        return StripeConv2d(self._fitting(layer, data), data["kept"])

    def reference(self, layer: nn.Module, data: Mapping[str, Any], parts: Parts = Parts()) -> nn.Module:  # noqa: B008
        """The convolution with zeros at the other positions."""
        twin = copy.deepcopy(self._fitting(layer, data))
        there = torch.zeros(len(data["kept"]), data["kernel"][0] * data["kernel"][1])
        for number, row in enumerate(data["kept"]):
            there[number, row] = 1
        with torch.no_grad():
            twin.weight.mul_(there.view(-1, 1, *data["kernel"]).to(twin.weight))
        return twin

    def drawn(self, data: Mapping[str, Any], generator: torch.Generator, dtype: torch.dtype) -> LayerForm:
        """As it is: there is nothing but the layer's own weight."""
        return LayerForm("offsets", data)

    def rivals(self, built: nn.Module) -> list[nn.Module]:
        """The ordinary layer."""
        return [self.plain(built)]

    def plain(self, built: nn.Module) -> nn.Module:
        """The convolution with zeros at the other positions."""
        assert isinstance(built, StripeConv2d)
        b: Any = built
        device = b.rows.device if b.weight is None else b.weight.device
        dtype = None if b.weight is None else b.weight.dtype
        layer = nn.Conv2d(
            b.in_channels, b.out_channels, b.kernel_size, b.stride, b.padding, b.dilation, b.groups,
            bias=b.bias is not None, padding_mode=b.padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        with torch.no_grad():
            layer.weight.copy_(layer.weight.new_zeros(()) if b.weight is None else b._kernel(b.weight))
            if b.bias is not None:
                layer.bias = nn.Parameter(b.bias.detach().clone())
        return layer.train(b.training)

    def macs(self, dense: int, data: Mapping[str, Any], rows: int) -> int:
        """Every stripe costs as much as every other: dense N C k^2 Ho Wo, in stripes n_tot C Ho Wo."""
        return dense * _stripes(data) // _positions(data)

    def params(self, weights: int, data: Mapping[str, Any]) -> int:
        """n_tot C, of N C k^2."""
        return weights * _stripes(data) // _positions(data)

    def _fitting(self, layer: nn.Module, data: Mapping[str, Any]) -> nn.Conv2d:
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros":
            raise ValueError("the layer is no plain nn.Conv2d with zeros around its input")
        if list(layer.kernel_size) != data["kernel"] or layer.out_channels != len(data["kept"]):
            size = "x".join(map(str, layer.kernel_size))
            raise ValueError(f"the layer has {layer.out_channels} filters of {size} after the cut")
        return layer


def _stripes(data: Mapping[str, Any]) -> int:
    return sum(map(len, data["kept"]))


def _positions(data: Mapping[str, Any]) -> int:
    return len(data["kept"]) * int(data["kernel"][0]) * int(data["kernel"][1])


def _blocks(order: list[tuple[int, int]], filters: int) -> list[tuple[int, int, int, int]]:
    """Runs of stripes that one 1x1 convolution computes: kernel position, group of inputs, from, to."""
    found, start = [], 0
    for (position, group), run in itertools.groupby(order, key=lambda stripe: (stripe[0], stripe[1] // filters)):
        stop = start + len(list(run))
        found.append((position, group, start, stop))
        start = stop
    return found
