"""Sizes that live outside tensors: attributes of modules that must follow a cut.

Standard layers say where they keep their sizes. Everything else is found by running the narrowed model on shapes alone:
where an operator gets other sizes than the plan promises, the attribute that still holds the old size is set to the new
one. A size that nobody holds (a literal in code) is a `SizeConflict`, and the plan has to do without those channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import CutError
from secateur.graph.capture import (
    TRANSPARENT,
    Call,
    Recording,
    _map_args,
    _schema,
    _to_meta,
    as_call,
    depends_on_data,
    map_tensors,
    module_stack,
    plain_kernels,
)
from secateur.graph.channels import Bools, Solution
from secateur.graph.labels import Axis, Label
from secateur.graph.rules import tensors_in
from secateur.graph.shapes import run_on_meta

Path = tuple[int, ...]  # where inside a (nested) list attribute the number stands; () for a plain integer


@dataclass(frozen=True)
class Repair:
    """Attribute `attribute` (entry `path`) of module `module` held size `old` and now holds `new`."""

    module: str
    attribute: str
    path: Path
    old: int
    new: int

    def apply(self, module: nn.Module) -> None:
        """Set the attribute on a module."""
        _put(module, self.attribute, self.path, self.new)


class SizeConflict(CutError):
    """An operator got sizes that no attribute explains; `call` is where."""

    def __init__(self, call: int, module: str, operator: str, detail: str) -> None:
        super().__init__(f"The size used by {operator} in {module or 'the model'} is written in code: {detail}.")
        self.call, self.module, self.operator, self.detail = call, module, operator, detail

    def as_json(self) -> list[int | str]:
        """What a plan keeps of it, to be settled again on a fresh copy of the network."""
        return [self.call, self.module, self.operator, self.detail]


class Sizes:
    """What every recorded call promises after a cut."""

    def __init__(self, recording: Recording, solution: Solution, alive: Bools) -> None:
        self.recording, self.solution, self.alive = recording, solution, alive
        self._count: dict[int, int] = {}

    def count(self, axis: Axis, size: int) -> int:
        """Alive indices of an axis; an unlabelled dimension keeps its size."""
        if axis is None:
            return size
        if id(axis) not in self._count:
            self._count[id(axis)] = int(self.alive[axis].sum())
        return self._count[id(axis)]

    def shapes(self, call: Call) -> tuple[tuple[int, ...], ...]:
        """Output shapes of a call after the cut."""
        return tuple(
            tuple(self.count(a, n) for a, n in zip(label, shape, strict=True)) if len(label) == len(shape) else shape
            for label, shape in zip(call.labels, call.shapes, strict=False)
        )

    def changes(self, call: Call) -> list[tuple[int, int]]:
        """(old, new) sizes this call has to do with, most specific first: arguments, then output dimensions."""
        pairs = [(len(e.axis), self.count(e.axis, 0)) for e in call.expects]
        for label in call.labels:
            pairs += self._label_changes(label)
        if call.weight is not None:
            pairs += self._label_changes(call.weight)
        return list(dict.fromkeys((old, new) for old, new in pairs if old != new))

    def _label_changes(self, label: Label) -> Iterator[tuple[int, int]]:
        for axis in label:
            if axis is not None:
                yield len(axis), self.count(axis, 0)
                distinct = np.unique(axis)
                if len(distinct) != len(axis):
                    yield len(distinct), int(self.alive[distinct].sum())


# ----------------------------------------------------------------------------------------------- standard modules


def standard_repairs(model: nn.Module, sizes: Sizes) -> list[Repair]:
    """Attributes of PyTorch's own layers, read off the calls that ran in them."""
    modules = dict(model.named_modules())
    found: dict[tuple[str, str, Path], Repair] = {}

    def want(name: str, attribute: str, new: int, path: Path = ()) -> None:
        old = _get(modules[name], attribute, path)
        if isinstance(old, int) and old != new:
            found.setdefault((name, attribute, path), Repair(name, attribute, path, old, new))

    for call in sizes.recording.calls:
        module = modules.get(call.module)
        if isinstance(module, nn.modules.conv._ConvNd) and call.weight is not None:
            _want_conv(want, call, module, sizes)
        elif isinstance(module, nn.Linear) and call.weight is not None:
            want(call.module, "out_features", sizes.count(call.weight[0], module.out_features))
            want(call.module, "in_features", sizes.count(call.weight[1], module.in_features))
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            for e in call.expects:
                attribute = {"C": "num_channels", "group": "num_groups", "normalized_shape": "normalized_shape"}.get(
                    e.arg
                )
                if attribute is not None:
                    path = () if e.position is None else (e.position,)
                    want(call.module, attribute, sizes.count(e.axis, 0), path)
    for tap in sizes.recording.taps:  # norms without tensors of their own
        module = modules.get(tap.module)
        if (
            isinstance(module, nn.modules.batchnorm._NormBase)
            and tap.dim == 1
            and not any(True for _ in module.buffers())
        ):
            want(tap.module, "num_features", sizes.count(tap.axis, 0))
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            for attribute, new in _heads(sizes, name, module):
                want(name, attribute, new)
        for attribute, new, path in _own_sizes(module):
            want(name, attribute, new, path)
    return list(found.values())


def _want_conv(want: Any, call: Call, module: nn.modules.conv._ConvNd, sizes: Sizes) -> None:
    assert call.weight is not None
    groups = next((sizes.count(e.axis, 0) for e in call.expects if e.arg == "groups"), module.groups)
    per_group = (module.out_channels if module.transposed else module.in_channels) // module.groups
    rows = sizes.count(call.weight[0], module.in_channels if module.transposed else module.out_channels)
    columns = sizes.count(call.weight[1], per_group) * groups
    want(call.module, "groups", groups)
    want(call.module, "in_channels", rows if module.transposed else columns)
    want(call.module, "out_channels", columns if module.transposed else rows)


def _heads(sizes: Sizes, name: str, module: nn.MultiheadAttention) -> Iterator[tuple[str, int]]:
    """Alive heads and features a head, from the columns of the output projection."""
    axis = sizes.recording.places[f"{name}.out_proj.weight" if name else "out_proj.weight"][1]
    if axis is not None:
        grid = sizes.alive[axis].reshape(module.num_heads, -1)
        yield "num_heads", int(grid.any(axis=1).sum())
        yield "head_dim", int(grid.any(axis=0).sum())


def _own_sizes(module: nn.Module) -> Iterator[tuple[str, int, Path]]:
    """Sizes a module's own (already narrowed) tensors show."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = next((t for t in (module.weight, module.running_mean) if t is not None), None)
        if tensor is not None:
            yield "num_features", tensor.shape[0], ()
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and isinstance(module.weight, torch.Tensor):
        for k, n in enumerate(module.weight.shape):
            yield "normalized_shape", n, (k,)
    elif isinstance(module, nn.Linear):
        yield "out_features", module.weight.shape[0], ()
        yield "in_features", module.weight.shape[1], ()
    elif isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1:
        rows, columns = module.weight.shape[:2]
        yield "out_channels", columns if module.transposed else rows, ()
        yield "in_channels", rows if module.transposed else columns, ()
    elif isinstance(module, nn.Embedding):
        yield "embedding_dim", module.weight.shape[1], ()
    elif isinstance(module, nn.PReLU):
        yield "num_parameters", module.weight.numel(), ()
    elif isinstance(module, nn.RNNBase):
        rows = module.weight_hh_l0.shape[0]
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        yield "input_size", module.weight_ih_l0.shape[1], ()
        yield "hidden_size", rows // gates, ()
    elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        yield "embed_dim", module.out_proj.weight.shape[0], ()
        for name in ("kdim", "vdim"):
            yield name, module.in_proj_weight.shape[1], ()


# -------------------------------------------------------------------------------------------------- the shape run


@dataclass(frozen=True)
class Disagreement:
    """Call number `call` got other sizes than promised."""

    call: int
    detail: str


class _Checker(TorchDispatchMode):
    """Runs a narrowed model and compares every call with what the plan promises; mends shapes so that the run goes on."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.at = sizes, 0
        self.found: list[Disagreement] = []
        self.stack: list[str] = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        calls, meta = self.sizes.recording.calls, self.sizes.recording.on_meta
        if meta:
            args, kwargs = _to_one_device(args, kwargs)
        if _schema(func)[0] in TRANSPARENT:
            return func(*args, **kwargs)
        if self.at >= len(calls):
            raise _Diverged(self.at, "the narrowed model makes more operator calls")
        call, name, names = calls[self.at], _schema(func)[0], _schema(func)[1]
        if call.name != name:
            raise _Diverged(self.at, f"{name} is called where the original calls {call.name}")
        promised = self.sizes.shapes(call)
        bound = {n: (args[k] if k < len(args) else kwargs.get(n, d)) for k, (n, d) in enumerate(names)}
        if not meta and depends_on_data(name, bound):  # the values are not comparable; go on as the original did
            self.at += 1
            return call.value
        self._check_arguments(call, bound)
        try:
            out = run_on_meta(func._schema.name, func, args, kwargs) if meta else func(*args, **kwargs)
        except Exception as error:
            if not meta or len(promised) != 1:
                raise
            self.found.append(Disagreement(self.at, " ".join(str(error).split())[:200]))
            out = torch.empty(promised[0], device="meta", dtype=_dtype(args))
        out = self._check_shapes(out, promised)
        self.at += 1
        return out

    def _check_arguments(self, call: Call, bound: dict[str, Any]) -> None:
        for expect in call.expects:
            got = bound.get(expect.arg)
            if expect.position is not None and got is not None:
                got = got[expect.position]
            want = expect.sign * self.sizes.count(expect.axis, 0)
            if got is not None and int(got) != want:
                self.found.append(Disagreement(self.at, f"{expect.arg} is {int(got)} and must be {want}"))

    def _check_shapes(self, out: Any, promised: tuple[tuple[int, ...], ...]) -> Any:
        outs = list(tensors_in(out))
        for got, want in zip(outs, promised, strict=False):
            if tuple(got.shape) != want:
                if not self.found or self.found[-1].call != self.at:
                    self.found.append(Disagreement(self.at, f"the result is {tuple(got.shape)} and must be {want}"))
                if not self.sizes.recording.on_meta:
                    raise _Diverged(self.at, self.found[-1].detail)
                swap = {
                    id(g): torch.empty(w, device="meta", dtype=g.dtype) for g, w in zip(outs, promised, strict=False)
                }
                return _map_args(out, lambda t: swap.get(id(t), t))
        return out


class _Diverged(Exception):
    def __init__(self, call: int, detail: str) -> None:
        super().__init__(detail)
        self.call = call


def _dtype(args: Any) -> torch.dtype:
    return next((t.dtype for a in args for t in tensors_in(a)), torch.float32)


def _to_one_device(args: Any, kwargs: Any) -> tuple[Any, Any]:
    devices = {t.device.type for value in (*args, *kwargs.values()) for t in tensors_in(value)}
    if "meta" not in devices or len(devices) == 1:
        return args, kwargs

    def move(t: torch.Tensor) -> torch.Tensor:
        return t if t.device.type == "meta" else _to_meta(t)

    return tuple(_map_args(a, move) for a in args), {k: _map_args(v, move) for k, v in kwargs.items()}


def check_sizes(model: nn.Module, inputs: object, sizes: Sizes) -> list[Disagreement]:
    """Every call of the narrowed model that does not get the sizes the plan promises, in order."""
    meta = sizes.recording.on_meta
    args, kwargs = map_tensors(as_call(inputs), _to_meta if meta else lambda t: t.detach().clone())
    model.eval()
    checker = _Checker(sizes)
    try:
        with plain_kernels(), module_stack(model, checker.stack), checker:
            model(*args, **kwargs)
    except _Diverged as error:
        checker.found.append(Disagreement(error.call, str(error)))
    except Exception as error:
        checker.found.append(Disagreement(checker.at, " ".join(str(error).split())[:200]))
    return checker.found


# ------------------------------------------------------------------------------------------------------ repairing


def repair_sizes(model: nn.Module, inputs: object, sizes: Sizes) -> list[Repair]:
    """Set every attribute of `model` (narrowed, shapes only) that must follow; returns what was set.

    Raises `SizeConflict` naming the first call that no attribute explains.
    """
    modes = [(m, m.training) for m in model.modules()]
    done = standard_repairs(model, sizes)
    modules = dict(model.named_modules())
    for repair in done:
        repair.apply(modules[repair.module])
    search = _Search(model, inputs, sizes, modules)
    done += search.run()
    for module, training in modes:
        module.training = training
    return done


class _Search:
    """Tries attributes one after the other; what helps in one module is applied to its siblings of the same class."""

    def __init__(self, model: nn.Module, inputs: object, sizes: Sizes, modules: dict[str, nn.Module]) -> None:
        self.model, self.inputs, self.sizes, self.modules = model, inputs, sizes, modules

    def run(self) -> list[Repair]:
        done: list[Repair] = []
        found = check_sizes(self.model, self.inputs, self.sizes)
        while found:
            step, found = self._step(found)
            done += step
        return done

    def _step(self, found: list[Disagreement]) -> tuple[list[Repair], list[Disagreement]]:
        """Mend the first disagreement: the first candidate after which the run gets further."""
        first = found[0].call
        severity = _severity(found)
        for candidate in self._candidates(first):
            repairs = [r for one in candidate for r in self._with_siblings(one, first)]
            for repair in repairs:
                repair.apply(self.modules[repair.module])
            after = check_sizes(self.model, self.inputs, self.sizes)
            if _severity(after) < severity:
                return repairs, after
            for repair in repairs:
                _put(self.modules[repair.module], repair.attribute, repair.path, repair.old)
        call = self.sizes.recording.calls[min(first, len(self.sizes.recording.calls) - 1)]
        raise SizeConflict(first, call.module, call.name.removeprefix("aten::"), found[0].detail)

    def _candidates(self, first: int) -> Iterator[list[Repair]]:
        """Attributes that still hold an old size, in the executing module, then its ancestors.

        A list that holds the sizes of all parts changes as a whole; else one number at a time, nearest module first.
        """
        calls = self.sizes.recording.calls
        call = calls[min(first, len(calls) - 1)]
        pairs = self.sizes.changes(call)
        if first > 0:
            pairs += [p for p in self.sizes.changes(calls[first - 1]) if p not in pairs]
        parts = [(len(e.axis), self.sizes.count(e.axis, 0)) for e in call.expects if e.position is not None]
        for name in self._near(call.module):
            yield from _whole_lists(name, self.modules[name], parts)
            numbers = list(_numbers(self.modules[name]))
            for old, new in pairs:
                single = [Repair(name, attribute, path, old, new) for attribute, path, n in numbers if n == old]
                yield from ([repair] for repair in single)
                if len(single) > 1:  # sizes the code divides by each other must change at once
                    yield single

    def _near(self, name: str) -> list[str]:
        """A module, its ancestors, then its descendants (whose methods it may call)."""
        prefix = name + "." if name else ""
        names = [name]
        while names[-1]:
            names.append(names[-1].rpartition(".")[0])
        return names + [
            n for n in self.modules if n.startswith(prefix) and n != name and n.count(".") <= prefix.count(".") + 1
        ]

    def _with_siblings(self, repair: Repair, first: int) -> list[Repair]:
        """The same attribute in every module of the same class, where the corresponding call changes likewise."""
        calls = self.sizes.recording.calls
        at = min(first, len(calls) - 1)
        result = [repair]
        if not calls[at].module.startswith(repair.module):  # an attribute of a child: its parent decides
            return result
        suffix = calls[at].module[len(repair.module) :]
        for k in like_calls(self.sizes.recording, self.modules, at, suffix):
            owner = calls[k].module[: len(calls[k].module) - len(suffix)]
            if owner == repair.module or type(self.modules[owner]) is not type(self.modules[repair.module]):
                continue
            held = _get(self.modules[owner], repair.attribute, repair.path)
            position = repair.path[0] if repair.path else None
            exact = {
                len(e.axis): self.sizes.count(e.axis, 0) for e in calls[k].expects if e.position in (position, None)
            }
            near = dict(self.sizes.changes(calls[k]) + (self.sizes.changes(calls[k - 1]) if k else []))
            new = exact.get(held, near.get(held))
            if new is not None and new != held:
                result.append(Repair(owner, repair.attribute, repair.path, held, new))
        return result


def like_calls(recording: Recording, modules: dict[str, nn.Module], at: int, suffix: str | None = None) -> list[int]:
    """Calls that are the same operator at the same point of a module of the same class as call `at`'s."""
    calls = recording.calls
    seen: dict[str, int] = {}
    ordinal = []
    for call in calls:
        ordinal.append(seen.get(call.module, 0))
        seen[call.module] = ordinal[-1] + 1
    wanted = calls[at]
    kind = type(modules[wanted.module])
    return [
        k
        for k, call in enumerate(calls)
        if call.name == wanted.name
        and ordinal[k] == ordinal[at]
        and call.module in modules
        and type(modules[call.module]) is kind
        and (
            suffix is None
            or (call.module.endswith(suffix) and call.module[: len(call.module) - len(suffix)] in modules)
        )
    ]


def _severity(found: list[Disagreement]) -> tuple[float, int]:
    """Smaller is better: nothing wrong, then a later first disagreement, then fewer of them there."""
    if not found:
        return (-float("inf"), 0)
    return (-found[0].call, sum(d.call == found[0].call for d in found))


def _whole_lists(name: str, module: nn.Module, parts: list[tuple[int, int]]) -> Iterator[list[Repair]]:
    """Lists whose entries are the old sizes of all parts of a split."""
    for attribute, value in vars(module).items():
        if len(parts) > 1 and isinstance(value, list | tuple) and list(value) == [old for old, _ in parts]:
            yield [Repair(name, attribute, (k,), old, new) for k, (old, new) in enumerate(parts) if old != new]


def _numbers(module: nn.Module) -> Iterator[tuple[str, Path, int]]:
    """Integers a module holds as attributes, in lists and tuples too."""
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or attribute in ("training", "call_super_init", "dump_patches"):
            continue
        for path, number in _walk(value):
            yield attribute, path, number


def _walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield path, value
    elif isinstance(value, list | tuple) and len(path) < 2:
        for k, item in enumerate(value):
            yield from _walk(item, (*path, k))


def _get(module: nn.Module, attribute: str, path: Path) -> Any:
    value: Any = getattr(module, attribute, None)
    for k in path:
        if not isinstance(value, list | tuple) or k >= len(value):
            return None
        value = value[k]
    return value


def _put(module: nn.Module, attribute: str, path: Path, new: int) -> None:
    if path:
        setattr(module, attribute, _replaced(getattr(module, attribute), path, new))
    else:
        setattr(module, attribute, new)


def _replaced(value: Any, path: Path, new: int) -> Any:
    if not path:
        return new
    items = list(value)
    items[path[0]] = _replaced(items[path[0]], path[1:], new)
    return (
        items
        if isinstance(value, list)
        else type(value)(items)
        if not hasattr(value, "_fields")
        else type(value)(*items)
    )
