"""What every layer costs before and after a cut, from the graph's own count."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.forms import FORMED, dense_macs, formed_macs
from secateur.surgery import Result


def layer_rows(result: Result) -> list[dict[str, Any]]:
    """One row for every module that multiplies, in order of execution: MACs and channels before and after."""
    graph, forms = result.graph, result.plan.forms
    dense, narrow = dict(graph.model.named_modules()), dict(result.model.named_modules())
    before, after = dense_macs(graph, None), formed_macs(graph, result.plan)
    return [
        {
            "name": name or type(graph.model).__name__,
            "kind": kind(dense[name]),
            "macs_before": macs,
            "macs_after": after[name],
            **({"form": forms[name].kind} if name in forms else {}),
            "in_before": channels(dense[name])[0],
            "in_after": channels(narrow[name])[0],
            "out_before": channels(dense[name])[1],
            "out_after": channels(narrow[name])[1],
        }
        for name, macs in before.items()
        if name in dense and name in narrow
    ]


def kind(module: nn.Module) -> str:
    """'conv2d 3x3', 'depthwise conv2d 3x3', 'linear', or the class."""
    if isinstance(module, nn.modules.conv._ConvNd):
        size = "x".join(map(str, module.kernel_size))
        grouped = {1: "", module.in_channels: "depthwise "}.get(module.groups, "grouped ")
        return f"{grouped if module.groups > 1 else ''}{type(module).__name__.lower()} {size}"
    return type(module).__name__.lower()


def channels(module: nn.Module) -> tuple[int | None, int | None]:
    """Channels that go in and come out, where the layer has them."""
    if isinstance(module, (nn.modules.conv._ConvNd, *FORMED)):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return None, None
