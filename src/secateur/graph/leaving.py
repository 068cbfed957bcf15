"""Tensors that leave PyTorch's operators during a trace: to NumPy, into Python numbers.

No operator is called there, so no rule would see it. Only code that mentions such a way out is watched.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.graph.code import mentions
from secateur.graph.labels import Ledger
from secateur.graph.rules import label_of

#: Methods of a tensor that hand its values to what is no operator.
_OUT = frozenset({"numpy", "tolist", "__array__", "__dlpack__"})
_MENTIONED = _OUT | {"asarray", "array", "from_dlpack"}


def watching(model: nn.Module, ledger: Ledger, stack: Sequence[str]) -> AbstractContextManager[Any]:
    """Watch a forward pass of `model`; the last of `stack` is the module that is executing."""
    return _Leaving(ledger, stack) if mentions(model, _MENTIONED) else nullcontext()


class _Leaving(TorchFunctionMode):
    """What leaves stays as it is."""

    def __init__(self, ledger: Ledger, stack: Sequence[str]) -> None:
        super().__init__()
        self.ledger, self.stack = ledger, stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _OUT and isinstance(args[0], torch.Tensor):
            for axis in label_of(args[0]):
                self.ledger.fix(axis, f"its values leave PyTorch ({name} in {self.stack[-1] or 'the model'})")
        return out
