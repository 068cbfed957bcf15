"""Whatever device a program has made the default: what Secateur makes for itself lies where it would without one.

`torch.set_default_device("cuda")` and `with torch.device("meta"):` reach into every function that makes a tensor. The
code of a model relies on that, ours must not: its generators, tables and copies belong to the CPU. On the meta device,
where tensors have no values, a model cannot run: its code then makes tensors beside its weights.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

F = TypeVar("F", bound=Callable[..., Any])
_MODELS = ("secateur.models", "secateur.examples")  # code of models, too


def own_defaults(function: F) -> F:
    """`function` of a model (or of something else), free of the program's default device."""

    @functools.wraps(function)
    def called(*args: Any, **keywords: Any) -> Any:
        default = torch.get_default_device()
        if default.type == "cpu":
            return function(*args, **keywords)
        with _Ours(_device_of(args) if default.type == "meta" else None):
            return function(*args, **keywords)

    return cast(F, called)


class _Ours(TorchFunctionMode):
    """Tensors that our code makes know no default device; those of other code lie on `others`, if that is given."""

    def __init__(self, others: torch.device | None) -> None:
        super().__init__()
        self.others = others

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _device_constructors() and kwargs.get("device") is None:
            if _is_ours(sys._getframe(1)):
                with torch._C.DisableTorchFunction():
                    return func(*args, **kwargs)
            if self.others is not None:
                kwargs = {**kwargs, "device": self.others}
        return func(*args, **kwargs)


def _is_ours(frame: FrameType | None) -> bool:
    """Whether the code that called a function, past modes that handed the call on, is Secateur's own."""
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "") if frame is not None else ""
    return (name == "secateur" or name.startswith("secateur.")) and not name.startswith(_MODELS)


def _device_of(arguments: Iterable[Any]) -> torch.device:
    """Where the weights of the model among them are, or of a graph's."""
    models = [getattr(each, "model", each) for each in arguments]
    tensors = [tensor for model in models if isinstance(model, nn.Module) for tensor in model.parameters()]
    return next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))
