"""Which layer a runtime's time belongs to.

PyTorch's modules are watched directly. A file has nodes: a node belongs to the layer whose weight it reads, or else to
the layer whose code it was exported from; what a runtime fused into a node goes with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from secateur.forms import FORMED
from secateur.runtime.engines.base import REST, Seconds, device_of
from secateur.runtime.export import needed

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
LAYERS = (*CONVS, *NORMS, *FORMED, nn.Linear)
#: Operators that a runtime computes while it writes a convolution's output, and name the node after.
_FUSED_AFTER = frozenset("Relu Clip LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Gelu Softplus Mul".split())
#: These may bear the scope of a normalisation that was folded into them; others may share equal vectors.
_MULTIPLY = frozenset("Conv ConvTranspose Gemm MatMul".split())
#: What runtimes add to the names of nodes.
_ADDED = re.compile(r"^fused |(?:/MatMulAddFusion|/WithoutBiases|_bn_nchwc|_nchwc|_nhwc|_token_\d+)+$")


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, float]]:
    """Seconds by layer while the model runs; a layer that is called several times counts them all."""
    spent: dict[str, float] = {}
    started: dict[str, float] = {}
    now = clock(model)

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            started[name] = now()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            spent[name] = spent.get(name, 0.0) + now() - started[name]

        return hook

    with ExitStack() as handles:
        for name, module in model.named_modules():
            if isinstance(module, LAYERS):
                handles.callback(module.register_forward_pre_hook(enter(name)).remove)
                handles.callback(module.register_forward_hook(leave(name)).remove)
        yield spent


def clock(model: nn.Module) -> Callable[[], float]:
    """Seconds; where the network is on a GPU, after all that was asked of it is done."""
    device = device_of(model)
    if device.type != "cuda":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def with_rest(spent: Mapping[str, float], whole: float) -> Seconds:
    """The layers' seconds and, under REST, what they leave of the whole run."""
    return {**spent, REST: max(0.0, whole - sum(spent.values()))}


def summed(names: Mapping[str, str], times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds by layer, from seconds by node; a node of no layer is left out."""
    spent: dict[str, float] = {}
    for node, seconds in times:
        layer = names.get(node) or names.get(_ADDED.sub("", _ADDED.sub("", node)))
        if layer:
            spent[layer] = spent.get(layer, 0.0) + seconds
    return spent


def layers_of_nodes(data: bytes, model: nn.Module) -> dict[str, str]:
    """The layer of every node of an ONNX file, by the node's name and by its outputs' names.

    A node is named after its layer where it has one; an output that only an activation lies before is its layer's too,
    because a runtime that fuses the two keeps the last name. "" where there is no layer.
    """
    layers = {name for name, module in model.named_modules() if isinstance(module, LAYERS)}
    graph = needed("onnx").load_from_string(data).graph
    stored = {tensor.name for tensor in graph.initializer}
    nodes: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for node in graph.node:
        ways = (_by_weight, _by_scope) if node.op_type in _MULTIPLY else (_by_scope, _by_weight)
        layer = ways[0](node, layers) or ways[1](node, layers)
        nodes[node.name] = layer
        if not layer and node.op_type in _FUSED_AFTER:
            before = {outputs.get(name, "") for name in node.input if name and name not in stored}
            layer = before.pop() if len(before) == 1 else ""
        outputs.update(dict.fromkeys(node.output, layer))
    return {**outputs, **nodes}


def _by_weight(node: Any, layers: set[str]) -> str:
    """The layer of the first weight or bias a node reads."""
    owners = (name.rpartition(".")[0] for name in node.input)
    return next((owner for owner in owners if owner in layers), "")


def _by_scope(node: Any, layers: set[str]) -> str:
    """The innermost layer in whose forward the node came up, as the exporter noted it: ': Net/conv: Conv2d/...'."""
    scope = next((row.value for row in node.metadata_props if row.key == "namespace"), "")
    names = [part.partition(": ")[0] for part in scope.split("/")]
    return next((name for name in reversed(names) if name in layers), "")
