"""What a forward pass does past PyTorch's operators during a trace: values handed to NumPy or Python numbers, and
tensors asked whether gradients are taken of them.

No operator is called there, so no rule would see it. Only code that mentions such a thing is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
_ASKS = "requires_grad"
_MENTIONED = _OUT | {"asarray", "array", "from_dlpack", _ASKS}
_IS_ASKED: Any = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]


def watching(
    model: nn.Module, ledger: Ledger, stack: Sequence[str], asked: Callable[[], None]
) -> AbstractContextManager[Any]:
    """Watch a forward pass of `model`.

    stack: its last is the module that is executing. asked: called when a tensor is asked for `requires_grad`.
    """
    return _Leaving(ledger, stack, asked) if mentions(model, _MENTIONED) else nullcontext()


class _Leaving(TorchFunctionMode):
    """What leaves stays as it is."""

    def __init__(self, ledger: Ledger, stack: Sequence[str], asked: Callable[[], None]) -> None:
        super().__init__()
        self.ledger, self.stack, self.asked = ledger, stack, asked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func == _IS_ASKED:
            self.asked()
        name = getattr(func, "__name__", "")
        if name in _OUT and isinstance(args[0], torch.Tensor):
            for axis in label_of(args[0]):
                self.ledger.fix(axis, f"its values leave PyTorch ({name} in {self.stack[-1] or 'the model'})")
        return out
