"""What the code of a network's modules mentions: read once per class, nothing is run.

Three questions are answered here: may the forward pass differ in training mode, may it differ on the meta device, and
does it mention a given name.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

#: PyTorch's own layers that know the mode and have one structure in both.
STEADY = (_NormBase, _DropoutNd, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.RReLU)
_FOREIGN = ("torch.", "numpy.", "math.")  # code that is not followed
#: What nobody can call, though most attributes of modules are of it.
_DATA = frozenset({bool, int, float, str, type(None), list, tuple, dict, set, OrderedDict})
#: Functions that are told the mode and return the same shape in both; and all whose name begins with "drop".
_TOLD = (
    "batch_norm", "instance_norm", "alpha_dropout", "feature_alpha_dropout", "rrelu", "stochastic_depth",
    "scaled_dot_product_attention", "multi_head_attention_forward",
)  # fmt: skip
#: Names of what tells the meta device from others, and of PyTorch's functions that do nothing there.
_SHY = frozenset({"is_meta", "is_cpu", "dirac_", "orthogonal_", "sparse_"})


class Code:
    """The code of some modules: their classes, and the functions that single ones carry themselves.

    Read in one pass, for the questions below; it is that of the moment.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.kinds: dict[Any, None] = {}
        self.own: list[types.FunctionType] = []
        for module in modules:
            self.kinds[type(module)] = None
            self.own += _own_functions(module)

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name in code that calls of these modules themselves may reach, their parts' code left out."""
        own = (_mentioned(function.__code__) for function in self.own)
        return frozenset().union(*map(_names_of_class, self.kinds), *own)

    def mentions(self, names: frozenset[str]) -> bool:
        """Whether it holds one of these names."""
        return not names.isdisjoint(self.names)

    def training_differs(self) -> bool:
        """Whether the forward pass may do something else in training mode, dropout and batch statistics aside."""
        return any(map(_asks_for_training, self.own)) or any(
            _class_asks_for_training(kind) for kind in self.kinds if not issubclass(kind, STEADY)
        )

    def meta_differs(self) -> bool:
        """Whether the forward pass may do something else on tensors without storage: it asks, or what it calls."""
        return self.mentions(_SHY)


def names_read(module: nn.Module) -> frozenset[str]:
    """Every name in code that a call of `module` itself may reach, its parts' code left out."""
    return Code([module]).names


def globals_named(kind: type) -> list[tuple[str, dict[str, Any], str]]:
    """Names outside all modules in code that a call of an instance may reach: the room, its variables, the name."""
    functions = _functions_of(kind)
    return [(f.__module__, f.__globals__, name) for f in functions for name in _mentioned(f.__code__)]


def _own_functions(module: nn.Module) -> Iterator[types.FunctionType]:
    """Functions a module carries itself: hooks, a forward of its own, callables among its attributes."""
    held = [v for k, v in vars(module).items() if type(v) not in _DATA and callable(v) and k != "_compiled_call_impl"]
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    for value in (*held, *hooks):
        function = _function_in(value)
        if function is not None:
            yield from _reached([function], type(module))


def _function_in(value: Any) -> types.FunctionType | None:
    """The Python function behind a callable that is none of PyTorch's."""
    while isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, "__func__", value)
    value = inspect.unwrap(value) if isinstance(value, types.FunctionType) else value
    if isinstance(value, types.FunctionType) and not f"{value.__module__}.".startswith(_FOREIGN):
        return value
    return None


@lru_cache(maxsize=4096)
def _class_asks_for_training(kind: type) -> bool:
    switched = any(_function_in(inspect.getattr_static(kind, name)) is not None for name in ("train", "eval"))
    return switched or any(_asks_for_training(function) for function in _functions_of(kind))


@lru_cache(maxsize=4096)
def _names_of_class(kind: type) -> frozenset[str]:
    return frozenset(name for function in _functions_of(kind) for name in _mentioned(function.__code__))


def _functions_of(kind: type) -> Iterable[types.FunctionType]:
    """The functions that a call of an instance may reach, PyTorch's own left out."""
    entries = [inspect.getattr_static(kind, name, None) for name in ("forward", "__call__")]
    return _reached([f for f in map(_function_in, entries) if f is not None], kind)


def _reached(front: list[types.FunctionType], kind: type) -> list[types.FunctionType]:
    """Functions named in the code of others: methods of the class, functions of their modules, closures."""
    found: dict[types.CodeType, types.FunctionType] = {f.__code__: f for f in front}
    while front:
        function = front.pop()
        for value in _named_by(function, kind):
            inner = _function_in(value)
            if inner is not None and inner.__code__ not in found and not _is_steady(inner.__name__):
                found[inner.__code__] = inner
                front.append(inner)
    return list(found.values())


def _named_by(function: types.FunctionType, kind: type) -> Iterator[Any]:
    names = _mentioned(function.__code__)
    rooms = [v.__dict__ for n in names if isinstance(v := function.__globals__.get(n), types.ModuleType)]
    rooms = [room for room in rooms if not f"{room.get('__name__')}.".startswith(_FOREIGN)]
    for name in names:
        method = inspect.getattr_static(kind, name, None)
        yield method.fget if isinstance(method, property) else method
        yield function.__globals__.get(name)
        yield from (room.get(name) for room in rooms)
    yield from enclosed(function)


def enclosed(function: types.FunctionType) -> list[Any]:
    """What a closure holds; a name that has no value yet holds nothing."""
    return [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]


@lru_cache(maxsize=16384)
def _mentioned(code: types.CodeType) -> frozenset[str]:
    """Names in a code object and the functions inside it; strings too, for `getattr` takes them."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _mentioned(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            names.add(constant)
    return frozenset(names)


def _asks_for_training(function: types.FunctionType) -> bool:
    code = function.__code__
    mentioned = "training" in _mentioned(code) or "training" in code.co_varnames
    return mentioned and _decides_by_training(code)


@lru_cache(maxsize=4096)
def _decides_by_training(code: types.CodeType) -> bool:
    """Whether code does more with `training` than tell it to dropout and its like; yes where it cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return True
    told = {id(inner) for node in ast.walk(tree) for part in _told(node) for inner in ast.walk(part)}
    return any(
        "training" in (getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "value", None))
        and id(node) not in told
        for node in ast.walk(tree)
    )


def _is_steady(name: str) -> bool:
    return name in _TOLD or name.startswith("drop")


def _told(node: ast.AST) -> list[ast.AST]:
    """Parts of a call in which `training` decides nothing here: those of dropout, and keywords to a function by name,
    which is read in its turn."""
    if not isinstance(node, ast.Call):
        return []
    name = str(getattr(node.func, "attr", getattr(node.func, "id", "")))
    if _is_steady(name):
        return [node]
    return [k for k in node.keywords if k.arg == "training"] if isinstance(node.func, ast.Name) else []
