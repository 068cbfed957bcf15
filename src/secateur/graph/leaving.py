"""What a forward pass does past PyTorch's operators during a trace: values handed to NumPy or Python numbers, tensors
asked whether gradients are taken of them, and tensors left in variables of a class or of a Python module.

No operator is called there, so no rule would see it. Only code that mentions such a thing is watched.
"""

from __future__ import annotations

import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.graph.code import Code, globals_named
from secateur.graph.labels import Ledger
from secateur.graph.rules import label_of

#: Methods of a tensor that hand its values to what is no operator.
_OUT = frozenset({"numpy", "tolist", "__array__", "__dlpack__"})
_ASKS = "requires_grad"
_MENTIONED = _OUT | {"asarray", "array", "from_dlpack", _ASKS}
_IS_ASKED: Any = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]


def watching(
    code: Code, ledger: Ledger, stack: Sequence[str], asked: Callable[[], None]
) -> AbstractContextManager[Any]:
    """Watch a forward pass of a network whose modules have this code.

    stack: its last is the module that is executing. asked: called when a tensor is asked for `requires_grad`.
    """
    return _Leaving(ledger, stack, asked) if code.mentions(_MENTIONED) else nullcontext()


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


#: What is looked into; a class derived from them may do anything when it is asked.
_CONTAINERS = frozenset({list, tuple, set, deque, dict, OrderedDict, defaultdict})
_DEPTH, _ITEMS = 4, 10_000  # how deep, and into how many items


class Outside:
    """Where a forward pass may leave tensors: variables of modules' classes, and of Python modules their code names.

    Code does not change while it runs; what the variables hold is asked anew every time.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self._of = dict.fromkeys(type(module) for _, module in modules)  # in their order
        self._kinds = [
            (
                [k for k in kind.__mro__ if not f"{k.__module__}.".startswith(("torch.", "builtins."))],
                globals_named(kind),
            )
            for kind in self._of
        ]

    def now(self, modules: list[tuple[str, nn.Module]]) -> Outside:
        """The same; another one where there are modules of other classes by now."""
        return self if {type(module) for _, module in modules} == self._of.keys() else Outside(modules)

    def tensors(self) -> dict[int, tuple[str, torch.Tensor]]:
        """Those that lie there now, and where.

        Containers and plain objects are looked into; whoever reads them there is not seen.
        """
        found: dict[int, tuple[str, torch.Tensor]] = {}
        for own, named in self._kinds:
            places = [(f"{k.__qualname__}.{name}", value) for k in own for name, value in vars(k).items()]
            others = [(f"{room}.{name}", held[name]) for room, held, name in named if name in held]
            for where, value in (*places, *others):
                for tensor in (*_held(value, _DEPTH), *_held_by(value)):
                    found.setdefault(id(tensor), (where, tensor))
        return found


def _held(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value) in _CONTAINERS and depth and len(value) <= _ITEMS:
        for item in tuple(value.values() if isinstance(value, dict) else value):
            yield from _held(item, depth - 1)


def _held_by(value: Any) -> Iterator[torch.Tensor]:
    """What an object or a class that a variable names holds in turn."""
    if isinstance(value, torch.Tensor | nn.Module | types.ModuleType | types.FunctionType):
        return
    try:
        own = object.__getattribute__(value, "__dict__")  # past any __getattr__ of its own
    except AttributeError:
        return
    for item in tuple(own.values()):
        yield from _held(item, _DEPTH - 1)
