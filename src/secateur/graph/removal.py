"""The original with channels removed, not masked: where an operator normalises over channels the two differ by nature.

Every such operator is computed on the surviving channels only, and its result put back among zeros.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.graph.calls import TRANSPARENT, Mode, map_args, schema_of
from secateur.graph.capture import capture_once
from secateur.graph.channels import Bools
from secateur.graph.components import components
from secateur.graph.cut import Slices
from secateur.graph.grouped import ties_of, whole_by_slices
from secateur.graph.labels import Label, Ledger
from secateur.graph.modules import clone_module, map_tensors, modules_of, output_tensors
from secateur.graph.randomise import run, same_draws
from secateur.graph.recorder import Call, Recorder, Recording, forward, label_parameters
from secateur.graph.rules import is_constant, label_of, tensors_in
from secateur.graph.rules.positions import is_made

Scalars = list[tuple[str, dict[int | str, list[float]]]]
#: So many numbers at most are constants in one tensor; what has more is no list of sizes.
_FEW = 16


def _numbers(func: Any, args: Any, kwargs: Any) -> dict[int | str, Any]:
    """The numbers that an operator computes with, by place: Python's, and constant tensors of one number or few.

    An integer is one where a tensor of fractions could stand as well (`h / 24`); elsewhere it is a size or an index.
    So is a tensor that holds one integer, where the operator goes element by element over fractions.
    """
    given = [*enumerate(args), *kwargs.items()]
    tensors = tensors_in((args, tuple(kwargs.values())))
    whole = not any(t.is_floating_point() or t.is_complex() for t in tensors)
    filled = not tensors and "fill_value" in schema_of(func).names  # with a whole number, which may be a factor later
    each = not whole and torch.Tag.pointwise in getattr(func, "tags", ())
    return {
        at: value
        for at, value in given
        if _is_number(value, integers=each) or ((filled or not whole) and _computes(func, at, value))
    }


def _is_number(value: Any, *, integers: bool) -> bool:
    """integers: a tensor of one integer is one, whatever its dimensions."""
    if isinstance(value, torch.Tensor):
        one = value.dim() == 0 or (value.numel() == 1 and (integers or value.is_floating_point()))
        real = not value.is_complex() and not isinstance(value, nn.Parameter)
        return real and ((one and is_constant(value)) or _is_list(value, integers=integers))
    return isinstance(value, float)


def _is_list(value: torch.Tensor, *, integers: bool) -> bool:
    """Whether a tensor is a list of few numbers that code wrote down, in which no dimension is a width."""
    few = 1 < value.numel() <= _FEW and (integers or value.is_floating_point())
    return few and is_made(value) and all(axis is None for axis in label_of(value))


def _read(value: Any) -> list[float]:
    """The numbers of a constant."""
    return value.flatten().tolist() if isinstance(value, torch.Tensor) else [float(value)]


def _same(one: list[float], other: list[float]) -> bool:
    """Whether two constants are the same; no number is the same as no number, and another count is no constant."""
    return len(one) != len(other) or all(a == b or (a != a and b != b) for a, b in zip(one, other, strict=True))


def _computes(func: Any, at: int | str, value: Any) -> bool:
    """Whether an operator computes with this integer."""
    return type(value) is int and (schema_of(func).names[at] if isinstance(at, int) else at) in _of_any_number(func)


@lru_cache(maxsize=4096)
def _of_any_number(func: Any) -> frozenset[str]:
    """The arguments of an operator that may be any number, or a tensor."""
    return frozenset(a.name for a in func._schema.arguments if str(a.type) in ("number", "Optional[number]", "Tensor"))


class _Scalars(Mode):
    """Notes the numbers every operator is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Scalars = []

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = schema_of(func).name
        if name not in TRANSPARENT:
            numbers = _numbers(func, args, kwargs or {})
            self.calls.append((name, {place: _read(value) for place, value in numbers.items()}))
        return func(*args, **(kwargs or {}))


def run_noting_scalars(model: nn.Module, inputs: Any) -> tuple[list[torch.Tensor], Scalars]:
    noted = _Scalars()
    with noted:
        outputs = run(model, inputs)
    return outputs, noted.calls


class _Removing(Recorder):
    """Runs the masked original, but computes every mixing operator on the surviving channels only."""

    def __init__(self, recording: Recording, plan: list[Call], alive: Bools, scalars: Scalars, finite: bool) -> None:
        super().__init__(recording, meta=False)
        self.finite = finite
        self.plan, self.alive = plan, alive
        aligned = len(scalars) == len(plan) and all(c.name == s[0] for c, s in zip(plan, scalars, strict=True))
        self.scalars = scalars if aligned else None
        self.rescaled: dict[str, None] = {}

    def execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One call; where it mixes channels, on the survivors."""
        at = len(self.recording.calls)
        if schema_of(func).name in TRANSPARENT or at >= len(self.plan):
            return func(*args, **kwargs)
        call = self.plan[at]
        args, kwargs = self._scalars(func, call, at, args, kwargs)
        if not call.mixes:
            return self._cleared(func(*args, **kwargs), call)
        names = schema_of(func).names
        args = list(args)
        for expect in call.expects:
            self._adjust(args, names, expect)
        small = [map_args(a, self._gather) for a in args]
        out = func(*small, **{k: map_args(v, self._gather) for k, v in kwargs.items()})
        return self._restore(out, call)

    def _cleared(self, out: Any, call: Call) -> Any:
        """With `finite`, zeros for removed channels that are no numbers: 0 / 0 where a weight is divided by its own."""
        if not self.finite or all(bool(torch.isfinite(t).all()) for t in tensors_in(out) if t.is_floating_point()):
            return out
        for tensor, label in zip(tensors_in(out), call.labels, strict=False):
            for dim, axis in enumerate(label):
                if axis is not None and not bool(self.alive[axis].all()):
                    tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~self.alive[axis])), 0)
        return out

    def _scalars(self, func: Any, call: Call, at: int, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if self.scalars is None:
            return args, kwargs
        now, new = _numbers(func, args, kwargs), self.scalars[at][1]  # `new` has numbers made of data besides
        known = {place: (n, _read(n)) for place, n in now.items() if place in new}
        changed = {place: _like(new[place], n) for place, (n, held) in known.items() if not _same(new[place], held)}
        if not changed:
            return args, kwargs
        where = f"{call.name.removeprefix('aten::')} in {call.module or 'the model'}"
        self.rescaled[f"a constant that depends on the width ({where})"] = None
        return tuple(changed.get(k, a) for k, a in enumerate(args)), {k: changed.get(k, v) for k, v in kwargs.items()}

    def _adjust(self, args: list[Any], names: tuple[str, ...], expect: Any) -> None:
        value = expect.sign * int(self.alive[expect.axis].sum())
        k = names.index(expect.arg)
        if k >= len(args):
            return
        if expect.position is None:
            args[k] = value
        else:
            args[k] = [value if i == expect.position else n for i, n in enumerate(args[k])]

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        result = tensor
        for dim, axis in enumerate(label_of(tensor)):
            if axis is not None and tensor.shape[dim] == len(axis) and not bool(self.alive[axis].all()):
                result = result.index_select(dim, torch.from_numpy(np.flatnonzero(self.alive[axis])))
        return result

    def _restore(self, out: Any, call: Call) -> Any:
        queue = iter(zip(call.shapes, call.labels, call.strides, strict=False))

        def scatter(tensor: torch.Tensor) -> torch.Tensor:
            shape, label, strides = next(queue, (tuple(tensor.shape), (), tensor.stride()))
            full = _scatter(tensor, shape, label, self.alive)
            if full is tensor or full.stride() == strides:
                return full
            return torch.empty_strided(shape, strides, dtype=full.dtype).copy_(full)

        return map_args(out, scatter)


def _like(numbers: list[float], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.tensor(numbers, dtype=value.dtype, device=value.device).reshape(value.shape)
    return type(value)(*numbers)


def _scatter(tensor: torch.Tensor, shape: tuple[int, ...], label: Label, alive: Bools) -> torch.Tensor:
    """Put the survivors back to their places among zeros."""
    for dim, (size, axis) in enumerate(zip(shape, label, strict=False)):
        if tensor.shape[dim] != size and axis is not None:
            full = torch.zeros([*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]], dtype=tensor.dtype)
            tensor = full.index_copy_(dim, torch.from_numpy(np.flatnonzero(alive[axis])), tensor)
    return tensor


def run_removing(
    wide: nn.Module, inputs: Any, slices: Slices, scalars: Scalars, *, finite: bool = False
) -> tuple[list[torch.Tensor], tuple[str, ...]]:
    """Outputs of the original with channels removed in every mixing operator; also further reasons why masking differs.

    Args:
        wide: the masked original. inputs: (args, kwargs). slices: kept indices of every narrowed tensor.
        scalars: the numbers every operator of the cut network is given; they replace the original's.
        finite: removed channels that are no numbers become zeros.
    """
    args, kwargs = inputs
    recording = capture_once(wide, args, kwargs, meta=False, training=False)
    alive = _alive_from_slices(recording, slices)
    again = Recording(Ledger(), on_meta=False)
    twin = clone_module(wide, lambda t: t.detach() if isinstance(t, nn.Parameter) else t.detach().clone())
    label_parameters(modules_of(twin), again)
    removing = _Removing(again, recording.calls, alive, scalars, finite)
    fresh = map_tensors(inputs, _variable)
    try:
        with same_draws():
            outputs = output_tensors(forward(twin, fresh[0], fresh[1], removing))
    except Exception as error:
        return [], (f"could not be computed with channels removed ({type(error).__name__}: {error})",)
    mixed = [reason for axis, reason in recording.ledger.inexacts if not bool(alive[axis].all())]
    return outputs, tuple(dict.fromkeys([*mixed, *removing.rescaled]))


def _variable(tensor: torch.Tensor) -> torch.Tensor:
    twin: Any = tensor.clone()
    twin._secateur_constant = False
    return twin  # type: ignore[no-any-return]


def _alive_from_slices(recording: Recording, slices: Slices) -> Bools:
    """Alive slots of a recording on real tensors, from what was cut out of the parameters alone."""
    ties = ties_of(recording.ledger, whole_by_slices(recording, slices))
    component = components(recording.ledger.size, ties, recording.ledger.links)
    dead = np.zeros(int(component.max(initial=-1)) + 1, dtype=bool)
    for name, kept in slices.items():
        for axis, index in zip(recording.places[name], kept, strict=True):
            if axis is not None and index is not None:
                gone = np.ones(len(axis), dtype=bool)
                gone[index] = False
                dead[component[axis[gone]]] = True
    before = -1
    while before != int(
        dead.sum()
    ):  # through products: an axis is dead where all its slots are, a slot where any axis is
        before = int(dead.sum())
        for product in recording.ledger.products:
            grid = component[product.slots]
            for k, axis in enumerate(product.axes):
                rows = np.moveaxis(grid, k, 0).reshape(len(axis), -1)
                dead[component[axis]] |= dead[rows].all(axis=1)
                dead[rows] |= dead[component[axis]][:, None]
    alive: Bools = ~dead[component]
    return alive
