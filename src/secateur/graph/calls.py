"""What there is to know of an operator call by its schema: its name, its arguments, what its outputs alias."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import ModelError
from secateur.graph.modules import to_meta
from secateur.graph.rules import tensors_in


class Mode(TorchDispatchMode):
    """A dispatch mode that torch.compile need not know of: PyTorch then loads no compiler and wraps no call.

    Subclasses write `handle`. In inference mode PyTorch hands over operators whole that it else takes apart
    (conv2d into convolution): they are taken apart here, so that one set of rules serves both.
    """

    supports_higher_order_operators = True  # they come here, to be refused in a sentence

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator call."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            raise ModelError(
                f"The forward pass calls torch's operator {func.name()!r}, which takes functions (as torch.cond does) "
                "and whose parts are not followed; write it with Python's own if and for, or plain operators."
            )
        if torch.is_inference_mode_enabled() and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        return self.handle(func, args, kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@lru_cache(maxsize=4096)
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others, with and without gradients."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


# Whether a reshape copies depends on strides, so copies are labelled but not counted as calls, and both views are one.
TRANSPARENT = frozenset({"aten::clone", "aten::contiguous", "aten::alias", "aten::detach", "aten::lift_fresh"})


SAME_AS = {"aten::_unsafe_view": "aten::view", "aten::_reshape_alias": "aten::view"}


DATA_DEPENDENT = frozenset(
    "aten::nonzero aten::_local_scalar_dense aten::masked_select aten::_unique2 aten::unique_dim aten::is_nonzero "
    "aten::unique_consecutive torchvision::nms".split()
)


class Schema(NamedTuple):
    """What an operator says of itself.

    name: with variants that do the same under one. own: as it is spelt. defaults: of all arguments, in order. aliases:
    which argument each output shares its storage with. pointwise: whether it is tagged so. random: whether it draws
    random numbers.
    """

    name: str
    own: str
    names: tuple[str, ...]
    defaults: dict[str, Any]
    aliases: tuple[int | None, ...]
    pointwise: bool
    random: bool


@lru_cache(maxsize=4096)
def schema_of(func: Any) -> Schema:
    """The schema of an operator, read once; operators hash slowly, so ask once a call."""
    schema = func._schema
    defaults = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
    owner: dict[str, int] = {}
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None:
            for mark in argument.alias_info.before_set:
                owner[mark] = position
    aliases = []
    for returned in schema.returns:
        marks = returned.alias_info.before_set if returned.alias_info is not None else ()
        aliases.append(next((owner[m] for m in marks if m in owner), None))
    if schema.name in ("aten::_unsafe_view", "aten::_reshape_alias"):
        aliases = [0]
    tags, name = func.tags, SAME_AS.get(schema.name, schema.name)
    pointwise, random = torch.Tag.pointwise in tags, torch.Tag.nondeterministic_seeded in tags
    return Schema(name, schema.name, tuple(defaults), defaults, tuple(aliases), pointwise, random)


def bind(schema: Schema, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, in the order of the schema."""
    return {**schema.defaults, **dict(zip(schema.names, args, strict=False)), **kwargs}


def depends_on_data(name: str, bound: Mapping[str, Any]) -> bool:
    """Whether an operator's result has a size (or is a number) that depends on values."""
    if name == "aten::index":
        return any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in(bound["indices"]))
    return name in DATA_DEPENDENT


def map_args(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(map_args(item, function) for item in value)
    return value


def on_one_device(args: Any, kwargs: Any, move: Callable[[torch.Tensor], torch.Tensor] = to_meta) -> tuple[Any, Any]:
    """Constants a model made on the CPU join the meta device when they meet it."""
    places = [t.is_meta for t in tensors_in((args, tuple(kwargs.values())) if kwargs else args)]
    if False not in places or True not in places:
        return args, kwargs

    def carry(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.is_meta else move(tensor)

    return tuple(map_args(a, carry) for a in args), {k: map_args(v, carry) for k, v in kwargs.items()}
