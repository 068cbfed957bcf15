"""The network as ONNX for the engines that read it; exported once for all of them."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from secateur.runtime.export import Subject, onnx_model
from secateur.runtime.inputs import Signature

_MADE: WeakKeyDictionary[nn.Module, tuple[Signature, bytes]] = WeakKeyDictionary()


def onnx_of(model: nn.Module, inputs: Any) -> bytes:
    """The file's bytes, kept as long as `model` (a copy nobody changes) is; RunError where it cannot be expressed."""
    shapes = Signature.of(inputs)
    known = _MADE.get(model)
    if known is None or known[0] != shapes:
        data, _ = onnx_model(Subject.of(model, inputs, fixed="the batch size is the measurement's"))
        _MADE[model] = known = (shapes, data)
    return known[1]
