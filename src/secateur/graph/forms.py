"""What a convolution or linear layer is besides its widths: enough to run a layer of the same shape elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

Kind = Literal["conv", "transposed", "depthwise", "linear"]


@dataclass(frozen=True, order=True)
class Form:
    """The shape of the work of one layer, without its channels.

    batch: images (of a linear layer 1). size: height and width of its input (of a linear layer the number of rows).
    groups: of a grouped convolution; a depthwise one has as many as it has channels, and 0 here.
    """

    kind: Kind
    batch: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def macs(self, out: int, into: int) -> int:
        """Multiply-accumulates with `out` output channels, each a sum over `into` inputs."""
        places = math.prod(self.size if self.kind in ("linear", "transposed") else self.out_size)
        return self.batch * places * math.prod(self.kernel) * out * into

    @property
    def out_size(self) -> tuple[int, ...]:
        """Height and width of what a convolution gives."""
        each = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each)

    def __str__(self) -> str:
        """In a few words: 'conv 3x3 /2 on 56x56'."""
        size = "x".join(map(str, self.size))
        if self.kind == "linear":
            return f"linear on {size} row{'s' if self.size != (1,) else ''}"
        kernel, stride = "x".join(map(str, self.kernel)), max(self.stride)
        grouped = f"grouped ({self.groups}) " if self.groups > 1 else ""
        return f"{grouped}{self.kind} {kernel}{f' /{stride}' if stride > 1 else ''} on {size}"


def of_convolution(args: dict[str, Any], x: torch.Tensor, weight: torch.Tensor) -> Form | None:
    """The form of a convolution in two dimensions; None for any other, and where groups are neither one nor whole."""
    space = weight.dim() - 2
    groups, transposed = int(args.get("groups", 1)), bool(args.get("transposed", False))
    if space != 2 or x.dim() != 4 or (transposed and groups > 1) or any(map(int, args.get("output_padding") or ())):
        return None
    kind: Kind = "transposed" if transposed else "conv"
    if groups > 1 and min(weight.shape[1], weight.shape[0] // groups) == 1:
        if weight.shape[1] != 1 or weight.shape[0] != groups:
            return None
        kind, groups = "depthwise", 0

    def pair(name: str, default: int) -> tuple[int, ...]:
        given = [int(n) for n in args.get(name) or [default]]
        return tuple(given * space if len(given) == 1 else given)

    size, kernel = tuple(map(int, x.shape[2:])), tuple(map(int, weight.shape[2:]))
    numbers = (pair("stride", 1), pair("padding", 0), pair("dilation", 1))
    return Form(kind, int(x.shape[0]), size, kernel, *numbers, groups=groups)
