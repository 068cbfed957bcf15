"""`Program`: an exported network run straight from its graph, one operator after the other, as an ordinary module.

It has the parameters and buffers of the network that was exported, under their names; nothing of the file is ever
evaluated, imported or compiled.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur._files import parse_json, shown
from secateur.errors import InputError, ModelError
from secateur.runtime.archive import TYPES, Archive, NotRun, foreign
from secateur.runtime.operators import find

_LAYOUTS: Mapping[int, torch.layout] = {7: torch.strided}
_FORMATS: Mapping[int, torch.memory_format] = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_PLAIN: Mapping[str, type] = {"as_int": int, "as_bool": bool, "as_string": str}


@dataclass(frozen=True)
class _Name:
    """A value of the graph, to be looked up when it runs."""

    name: str


class _Device:
    """Wherever the parameters are."""


@dataclass(frozen=True)
class _Step:
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Any, ...]  # a name, a list of names, or None for what nobody reads
    spent: tuple[str, ...]  # values no later step reads


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
            self._steps = _steps(graph["nodes"], self._results, known)
            self.dynamic = next((sizes[0] is None for _, sizes, _ in self._given if sizes), False)
        super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the exported network computes."""
        values: dict[str, Any] = {name: self._tensor(path) for name, path in self._held}
        self._bind(values, args, kwargs)
        device = next((t.device for t in [*self.parameters(), *self.buffers()]), torch.device("cpu"))
        for step in self._steps:
            given = [_fill(a, values, device) for a in step.args]
            got = step.call(*given, **{k: _fill(v, values, device) for k, v in step.kwargs.items()})
            _keep(values, step.outputs, got)
            for name in step.spent:
                del values[name]
        leaves = iter([_fill(result, values, device) for result in self._results])
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


# ------------------------------------------------------------------------------------------------------ reading graphs


def _steps(nodes: Sequence[Mapping[str, Any]], results: Sequence[Any], known: Sequence[str]) -> list[_Step]:
    last: dict[str, int] = {}
    computed = set(known)
    made = []
    for index, node in enumerate(nodes):
        args, kwargs = [], {}
        for row in node["inputs"]:
            value = _argument(row["arg"])
            if row["kind"] == 2:
                kwargs[str(row["name"])] = value
            else:
                args.append(value)
        outputs = tuple(_output(row) for row in node["outputs"])
        read = _names([args, *kwargs.values()])
        _check_known(read, computed)
        computed.update(_flat_names(outputs))
        last.update((name, index) for name in [*read, *_flat_names(outputs)])
        made.append((find(node["target"]), tuple(args), kwargs, outputs))
    _check_known(_names(results), computed)
    last.update((name, len(made)) for name in _names(results))
    spent: list[list[str]] = [[] for _ in range(len(made) + 1)]
    for name, index in last.items():
        spent[index].append(name)
    return [_Step(*step, tuple(spent[index])) for index, step in enumerate(made)]


def _check_known(names: Sequence[str], known: set[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"nothing computes {shown(unknown[0])}")


def _argument(row: Mapping[str, Any]) -> Any:
    """One argument: a constant, a `_Name`, or a list of them."""
    ((kind, value),) = row.items()
    if kind == "as_none":
        return None
    if kind in _PLAIN and type(value) is _PLAIN[kind]:
        return value
    if kind == "as_float":
        return _FLOATS[value] if isinstance(value, str) else float(value)
    if kind == "as_tensor":
        return _Name(value["name"])
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return _Name(value["as_name"]) if "as_name" in value else _argument(value)
    if kind == "as_optional_tensor":
        return _argument(value)
    if kind in ("as_tensors", "as_optional_tensors"):
        return [_Name(v["name"]) if "name" in v else _argument(v) for v in value]
    if kind in ("as_ints", "as_floats", "as_bools", "as_strings", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
        single = kind.removesuffix("s")
        return [_argument({single: v}) for v in value]
    if kind in _TABLES:
        return _TABLES[kind][value]
    if kind == "as_device":
        return _Device()
    raise NotRun(f"The exported network has an argument of the kind {shown(kind)}, which is not run from a file.")


_TABLES: Mapping[str, Mapping[int, Any]] = {
    "as_scalar_type": TYPES,
    "as_memory_format": _FORMATS,
    "as_layout": _LAYOUTS,
}


def _output(row: Mapping[str, Any]) -> Any:
    value = _argument(row)
    if isinstance(value, _Name):
        return value.name
    if isinstance(value, list):
        return [item.name if isinstance(item, _Name) else None for item in value]
    return None


def _result(spec: Mapping[str, Any]) -> Any:
    ((kind, row),) = spec.items()
    if kind != "user_output":
        raise NotRun(f"The exported network changes what it holds while it runs ({shown(kind)}): it is not run here.")
    return _argument(row["arg"])


def _size(number: Mapping[str, Any]) -> int | None:
    return int(number["as_int"]) if "as_int" in number else None


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


# ------------------------------------------------------------------------------------------------------------- running


def _fill(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(value, _Name):
        return values[value.name]
    if isinstance(value, list):
        return [_fill(item, values, device) for item in value]
    return device if isinstance(value, _Device) else value


def _keep(values: dict[str, Any], outputs: tuple[Any, ...], got: Any) -> None:
    if not outputs:  # an assertion
        return
    for output, value in zip(outputs, got if len(outputs) > 1 else [got], strict=True):
        if isinstance(output, list):
            values.update((name, v) for name, v in zip(output, value, strict=True) if name is not None)
        elif output is not None:
            values[output] = value


def _names(value: Any) -> list[str]:
    if isinstance(value, _Name):
        return [value.name]
    return [n for item in value for n in _names(item)] if isinstance(value, list | tuple) else []


def _flat_names(outputs: tuple[Any, ...]) -> list[str]:
    return [n for o in outputs for n in (o if isinstance(o, list) else [o]) if n is not None]


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
