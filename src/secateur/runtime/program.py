"""`Program`: an exported network run straight from its graph, one operator after the other, as an ordinary module.

It has the parameters and buffers of the network that was exported, under their names; nothing of the file is ever
evaluated, imported or compiled.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur._files import parse_json, said, shown
from secateur.errors import InputError, ModelError
from secateur.runtime.archive import TYPES, Archive, NotRun, foreign
from secateur.runtime.rehearsal import Like, contiguous, rehearse
from secateur.runtime.steps import argument, fill, keep, steps_of

_LARGEST_HINT = 64


@dataclass(frozen=True)
class _Spec:
    """How nested tuples, lists and dicts lie flat, as PyTorch's own description says."""

    kind: str | None  # None: a leaf
    keys: tuple[str, ...]
    children: tuple[_Spec, ...]


class Program(nn.Module):
    """An exported network; `dynamic` says whether it takes any batch size."""

    def __init__(self, archive: Archive) -> None:
        """Build the network; NotRun where the graph asks for more than operators on numbers, RunError if damaged."""
        super().__init__()
        with foreign(archive.path):
            graph = archive.graph_module["graph"]
            signature = archive.graph_module["signature"]
            self._held: list[tuple[str, str]] = []  # graph name, parameter or buffer
            self._given: list[tuple[str | None, tuple[int | None, ...], torch.dtype | None]] = []
            self._register(archive)
            for spec in signature["input_specs"]:
                self._add_input(spec, graph["tensor_values"], archive)
            self._results = [_result(spec) for spec in signature["output_specs"]]
            call = archive.graph_module["module_call_graph"][0]["signature"]
            self._in_spec, self._out_spec = _tree(call["in_spec"]), _tree(call["out_spec"])
            known = [name for name, _ in self._held] + [name for name, *_ in self._given if name is not None]
            self._steps = steps_of(graph["nodes"], self._results, known)
            self.dynamic = next((sizes[0] is None for _, sizes, _ in self._given if sizes), False)
            self._rehearsed: set[Any] = set()
            self._first_rehearsal(graph["tensor_values"])
        super().train(False)

    def forward(self, *given: Any, **named: Any) -> Any:
        """Compute what the exported network computes."""
        values: dict[str, Any] = {name: self._tensor(path) for name, path in self._held}
        self._bind(values, given, named)
        device = next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))
        self._rehearse(values, device)
        for step in self._steps:
            args, kwargs = step.arguments(values, device)
            keep(values, step.outputs, step.call(*args, **kwargs))
            for name in step.spent:
                del values[name]
        leaves = iter([fill(result, values, device) for result in self._results])
        return _built(self._out_spec, leaves)

    def train(self, mode: bool = True) -> Program:
        """An exported network is one for inference."""
        if mode:
            raise ModelError(
                "This network was read from model.pt2, which holds it for inference only: to train it, load it with "
                "secateur.load(folder, model=...) and a fresh copy of the original network."
            )
        return super().train(False)

    def extra_repr(self) -> str:
        """How many operators it calls."""
        return f"{len(self._steps)} operators, {'any batch size' if self.dynamic else 'one batch size'}"

    # ----------------------------------------------------------------------------------------------------- rehearsing

    def _first_rehearsal(self, rows: Mapping[str, Any]) -> None:
        """With inputs as those of the export, comparing all that the file says of shapes on the way."""
        weights = {name: Like.of(self._tensor(path)) for name, path in self._held}
        inputs = {}
        for name, sizes, kind in self._given:
            if name is not None and kind is not None:
                shape = tuple(
                    n if n is not None else _hint(row) for n, row in zip(sizes, rows[name]["sizes"], strict=True)
                )
                inputs[name] = Like(shape, contiguous(shape), kind, torch.device("cpu"))
        records = {name: (tuple(map(_size, row["sizes"])), TYPES[row["dtype"]]) for name, row in rows.items()}
        rehearse(self._steps, weights, inputs, torch.device("cpu"), records)

    def _rehearse(self, values: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Once for inputs of each kind; not where others go through the network without numbers of their own."""
        given = [name for name, *_ in self._given if name is not None]
        if torch.compiler.is_compiling() or torch._C._is_tracing() or not _concrete(values[name] for name in given):
            return
        inputs = {name: Like.of(values[name]) for name in given}
        kinds = next(((values[name].dtype, device) for name, _ in self._held), None)
        key = (tuple(inputs.values()), kinds)
        if key in self._rehearsed:
            return
        weights = {name: Like.of(values[name]) for name, _ in self._held}
        try:
            rehearse(self._steps, weights, inputs, device)
        except ValueError as error:
            sizes = " and ".join("x".join(map(str, like.sizes)) for like in inputs.values())
            raise InputError(f"The exported network cannot be run with inputs of {sizes}: {said(error)}.") from error
        self._rehearsed.add(key)

    # ------------------------------------------------------------------------------------------------------- building

    def _register(self, archive: Archive) -> None:
        made: dict[int, nn.Parameter] = {}
        for name, tensor in archive.weights.items():
            module, last = self._owner(name)
            if name in archive.parameters:
                if id(tensor) not in made:
                    made[id(tensor)] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
                module.register_parameter(last, made[id(tensor)])
            else:
                module.register_buffer(last, tensor)

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        *path, last = name.split(".")
        module: nn.Module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        return module, last

    def _add_input(self, spec: Mapping[str, Any], tensors: Mapping[str, Any], archive: Archive) -> None:
        ((kind, row),) = spec.items()
        if kind == "parameter":
            self._held.append((row["arg"]["name"], row["parameter_name"]))
        elif kind == "buffer" and row["persistent"]:
            self._held.append((row["arg"]["name"], row["buffer_name"]))
        elif kind in ("buffer", "tensor_constant"):
            name = row["buffer_name"] if kind == "buffer" else row["tensor_constant_name"]
            module, last = self._owner(name)
            module.register_buffer(last, archive.constants[name], persistent=False)
            self._held.append((row["arg"]["name"], name))
        elif kind == "user_input" and "as_tensor" in row["arg"]:
            name = row["arg"]["as_tensor"]["name"]
            meta = tensors[name]
            self._given.append((name, tuple(_size(n) for n in meta["sizes"]), TYPES[meta["dtype"]]))
        elif kind == "user_input" or kind == "constant_input":
            self._given.append((None, (), None))
        else:
            raise NotRun(f"The exported network has an input of the kind {shown(kind)}, which is not run from a file.")
        if self._held:
            self._tensor(self._held[-1][1])  # a name without a tensor shows here, not when the network runs

    def _tensor(self, path: str) -> torch.Tensor:
        module: Any = self
        *parts, last = path.split(".")
        for part in parts:
            module = module._modules[part]
        found = module._parameters[last] if last in module._parameters else module._buffers[last]
        if not isinstance(found, torch.Tensor):
            raise TypeError(f"{path} is no tensor")
        return found

    def _bind(self, values: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves: list[Any] = []
        if not _flat(self._in_spec, (args, kwargs), leaves) or len(leaves) != len(self._given):
            raise InputError(
                f"The exported network takes {_inputs(self._given)}, laid out as in the example it was exported "
                f"with: it was called with {len(args)} positional and {len(kwargs)} keyword arguments of another form."
            )
        for (name, sizes, kind), leaf in zip(self._given, leaves, strict=True):
            if name is None:
                continue
            if not isinstance(leaf, torch.Tensor) or not _fits(leaf, sizes):
                got = tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf).__name__
                raise InputError(f"The exported network takes {_inputs(self._given)}: it was given {got}.")
            if kind is not None and leaf.dtype.is_floating_point != kind.is_floating_point:
                raise InputError(f"The exported network takes numbers of the type {kind}: it was given {leaf.dtype}.")
            values[name] = leaf


def _result(spec: Mapping[str, Any]) -> Any:
    ((kind, row),) = spec.items()
    if kind != "user_output":
        raise NotRun(f"The exported network changes what it holds while it runs ({shown(kind)}): it is not run here.")
    return argument(row["arg"])


def _size(number: Mapping[str, Any]) -> int | None:
    return int(number["as_int"]) if "as_int" in number else None


def _hint(number: Mapping[str, Any]) -> int:
    """What an open dimension was when the network was exported, if that is small enough to try."""
    hint = (number["as_expr"].get("hint") or {}).get("as_int")
    return hint if type(hint) is int and 0 < hint <= _LARGEST_HINT else 2


def _concrete(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether there are numbers in them, and sizes are no symbols."""
    return all(
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.device.type != "meta"
        and all(type(n) is int for n in tensor.shape)
        for tensor in tensors
    )


def _tree(text: str) -> _Spec:
    version, spec = parse_json(text)
    if version != 1:
        raise NotRun(f"The layout of the exported network's inputs has version {shown(version)}, which is not known.")
    return _spec(spec)


_KINDS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def _spec(row: Mapping[str, Any]) -> _Spec:
    kind, children = row["type"], tuple(_spec(child) for child in row["children_spec"])
    if kind is None:
        return _Spec(None, (), ())
    if kind not in _KINDS:
        raise NotRun(f"The exported network takes or returns a {shown(kind)}, which is not built from a file.")
    keys = parse_json(row["context"]) if kind in _KINDS[2:] else []
    if not all(isinstance(key, str) for key in keys) or (kind in _KINDS[2:] and len(keys) != len(children)):
        raise NotRun("The exported network takes or returns a dict whose keys are not text, which is not built here.")
    return _Spec(kind, tuple(keys), children)


# ------------------------------------------------------------------------------------------------------ laid out flat


def _flat(spec: _Spec, value: Any, leaves: list[Any]) -> bool:
    """Append the leaves of `value`; whether it is laid out as `spec` says."""
    if spec.kind is None:
        leaves.append(value)
        return True
    if spec.kind in _KINDS[2:]:
        if not isinstance(value, Mapping) or set(value) != set(spec.keys):
            return False
        items = [value[key] for key in spec.keys]
    else:
        if not isinstance(value, list | tuple) or len(value) != len(spec.children):
            return False
        items = list(value)
    return all(_flat(child, item, leaves) for child, item in zip(spec.children, items, strict=True))


def _built(spec: _Spec, leaves: Any) -> Any:
    if spec.kind is None:
        return next(leaves)
    items = [_built(child, leaves) for child in spec.children]
    if spec.kind == "builtins.tuple":
        return tuple(items)
    if spec.kind == "builtins.list":
        return items
    pairs = zip(spec.keys, items, strict=True)
    return dict(pairs) if spec.kind == "builtins.dict" else collections.OrderedDict(pairs)


def _fits(tensor: torch.Tensor, sizes: Sequence[int | None]) -> bool:
    return tensor.dim() == len(sizes) and all(w is None or w == n for w, n in zip(sizes, tensor.shape, strict=True))


def _inputs(given: Sequence[tuple[str | None, Sequence[int | None], Any]]) -> str:
    shapes = ["x".join("any" if n is None else str(n) for n in sizes) for name, sizes, _ in given if name is not None]
    return " and ".join(f"a tensor {shape}" for shape in shapes) or "no tensor"
