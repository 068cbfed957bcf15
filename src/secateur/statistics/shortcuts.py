"""What is added to a layer's output: where a residual branch meets its shortcut, whatever the network calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.graph.modules import call_with_copies
from secateur.statistics.lockstep import Made, Operators, once


@torch.no_grad()
def shortcuts(
    model: nn.Module, inputs: Any, layers: Collection[str], norms: Mapping[str, str | None]
) -> dict[str, Made]:
    """{layer: the operator whose result is added to what the layer makes}, for `lockstep.together`.

    Only where that result is there before the layer runs: of two branches that are added, for the later one.

    Args:
        model: in evaluation mode. inputs: of one batch. norms: {layer: the norm that alone reads its output}.
    """
    once(model, inputs)  # or what it does in its first pass only, and remembers, would be counted
    operators = Operators()
    outputs: dict[int, str] = {}  # a tensor, and the layer it comes from, directly or through its norm
    runs: dict[str, int] = dict.fromkeys(layers, 0)

    def begin(name: str, *_: Any) -> None:
        operators.began[name] = operators.number
        runs[name] += 1

    def end(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs[id(output)] = name

    with ExitStack() as stack:
        for name in layers:
            layer, norm = model.get_submodule(name), norms.get(name)
            last = layer if norm is None else model.get_submodule(norm)
            stack.callback(layer.register_forward_pre_hook(partial(begin, name)).remove)
            stack.callback(last.register_forward_hook(partial(end, name)).remove)
        args, keywords = call_with_copies(inputs)
        with operators:
            model(*args, **keywords)
    found: dict[str, Made] = {}
    for term, made in operators.sums:
        layer_name = outputs.get(term)
        if layer_name is not None and runs[layer_name] == 1 and made.number < operators.began[layer_name]:
            found.setdefault(layer_name, made)
    return found
