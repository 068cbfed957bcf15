"""Gates in front of the layers that read a channel which are one number for all samples in the end, and fold away.

What they let through is set before a forward pass; folded, it multiplies the weights that read the channel: exact with
whatever lies before, and with padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateur._hints import few
from secateur._protocols import BoolArray, IntArray
from secateur.errors import VerificationError
from secateur.graph.modules import call_with_copies, map_tensors, output_tensors
from secateur.graph.readers import readers
from secateur.methods.contract import Method
from secateur.methods.kit.sample_gates import SampleGates
from secateur.statistics.gather import untouched
from secateur.statistics.narrow import uses_its_weight
from secateur.surgery import Result

#: How far the folded network may be from the gated one, as a share of the largest output, in float32.
_AGREEMENT = 1e-3


def foldable(method: Method) -> dict[str, IntArray]:
    """The layers that read channels, with the channel at each input; groups that get no gates stay whole from now on.

    Those are groups that something else reads as well, or a layer into whose weight nothing can be folded.
    """
    tables, others = readers(method.graph)
    modules = dict(method.model.named_modules())
    ends = np.cumsum(method.graph.widths())
    for name, table in tables.items():
        if not uses_its_weight(modules[name]):
            read = np.unique(np.searchsorted(ends, table[table >= 0], "right"))
            others += [method.graph.groups[k].name for k in read]
    if others:
        method.notes.append(
            "Groups that are read by more than convolutions and linear layers with weights of their own stay whole: "
            f"{few(others)}."
        )
    method.constraints = method.constraints.keeping(others)
    return tables


def check_folded(method: Method, result: Result, hard: AbstractContextManager[None]) -> None:
    """VerificationError unless the narrow network computes what the gated model does within `hard`.

    hard: while it is open the model has the gates of the result's plan. Nothing is compared where removing is not
    masking, as the proof of the cut says.
    """
    proof = result.verification
    if proof is None or not proof.exact:
        return
    inputs = map_tensors(method.example_inputs, lambda tensor: tensor.to(method.device))
    (args, keywords), (again, named) = call_with_copies(inputs), call_with_copies(inputs)
    with untouched(method.model), untouched(result.model), hard:
        wanted, given = output_tensors(method(*args, **keywords)), output_tensors(result.model(*again, **named))
    error = max(float((w - g).abs().max() / w.abs().max().clamp_min(1e-30)) for w, g in zip(wanted, given, strict=True))
    if not error <= _AGREEMENT:
        raise VerificationError(
            f"With gates folded into its weights the narrow network differs by {error:.1e} of the largest output: "
            "report this as a defect, with the network."
        )


class FoldedGates(SampleGates):
    """The gates in front of all readers; what they let through is set from outside, before the forward pass."""

    def __init__(self, model: nn.Module, tables: Mapping[str, IntArray], gated: BoolArray) -> None:
        """Insert hooks for the channels that are `gated`."""
        super().__init__(model, tables, torch.zeros(len(gated)), gated)

    def let(self, factors: torch.Tensor) -> None:
        """Multiply channels by these from now on, [samples or 1, live]."""
        self._set(factors)

    def fold(self, twin: nn.Module, factors: torch.Tensor) -> None:
        """Take the gates out of a copy of the model, and multiply the weights behind them by `factors` [live]."""
        whole, done = torch.cat([factors, factors.new_ones(1)]), set()
        for name, index in self._index.items():
            layer = twin.get_submodule(name)
            for number, hook in list(layer._forward_pre_hooks.items()):
                if isinstance(hook, partial) and getattr(hook.func, "__self__", None) is self:
                    del layer._forward_pre_hooks[number]
                    layer._forward_pre_hooks_with_kwargs.pop(number, None)
            weight = layer.get_parameter("weight")
            if id(weight) not in done:  # two layers may share it, and read the same channels then
                done.add(id(weight))
                weight.mul_(_behind(layer, whole[index.to(whole.device)]).to(weight))


def _behind(layer: nn.Module, factors: torch.Tensor) -> torch.Tensor:
    """Factors of a layer's inputs as factors of its weight."""
    if not isinstance(layer, _ConvNd):
        return factors
    inner = [1] * len(layer.kernel_size)
    if layer.transposed:
        return factors.view(-1, 1, *inner)
    each = factors.view(layer.groups, -1).repeat_interleave(layer.out_channels // layer.groups, 0)
    return each.view(*each.shape, *inner)
