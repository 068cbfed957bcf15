"""Capture: run a model once and write down every ATen call, on the meta device where that works.

What comes out is a `Recording`: the operator calls in order, the ledger the rules filled, and which parameters ran where.
The model itself is never touched; the run happens on a copy that shares (or does without) its storage.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import InputError, ModelError
from secateur.graph.labels import Axis, Ids, Label, Ledger
from secateur.graph.rules import RULES, Expect, Op, is_constant, label_of, tensors_in
from secateur.graph.rules.pointwise import pointwise
from secateur.graph.shapes import run_on_meta

# Whether a reshape copies depends on strides, so copies are labelled but not counted as calls, and both views are one.
TRANSPARENT = frozenset({"aten::clone", "aten::contiguous", "aten::alias", "aten::detach", "aten::lift_fresh"})
SAME_AS = {"aten::_unsafe_view": "aten::view", "aten::_reshape_alias": "aten::view"}
OUTPUT = "the model's output"


@dataclass(frozen=True)
class Unsupported:
    """An operator without a rule, and a module it ran in; everything it touched is frozen."""

    operator: str
    module: str


@dataclass
class Call:
    """One recorded operator call, as much as the later steps need."""

    name: str
    module: str
    shapes: tuple[tuple[int, ...], ...]
    labels: tuple[Label, ...]
    expects: tuple[Expect, ...]
    mixes: bool
    weight: tuple[Axis, Axis] | None
    value: Any = None  # of an operator whose result has a size that depends on data, on a run with real tensors


@dataclass
class Buffer:
    """One allocation of the forward pass: its axes, when it is born and last used."""

    sizes: tuple[int, ...]
    label: Label
    birth: int
    death: int


@dataclass(frozen=True)
class Tap:
    """Where a group can be seen: a module's output, with the axis ids of one of its dimensions."""

    module: str
    position: int
    dim: int
    axis: Ids


@dataclass
class Recording:
    """All that one run taught."""

    ledger: Ledger
    calls: list[Call] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    places: dict[str, Label] = field(default_factory=dict)  # label of every parameter and buffer
    first_use: dict[str, int] = field(default_factory=dict)
    taps: list[Tap] = field(default_factory=list)
    unsupported: list[Unsupported] = field(default_factory=list)
    on_meta: bool = True
    trained: bool = False


# ------------------------------------------------------------------------------------------------ the model's copy


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; a tensor with several names appears under the first."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    found.update(model.named_buffers())
    return found


def clone_module(model: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A deep copy of `model` whose tensors are `convert(tensor)` instead of copies; ties between names survive."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        for tensor in [
            *own,
            *(t for v in module.__dict__.values() if type(v) not in _PLAIN for t in _loose_tensors(v)),
        ]:
            if tensor is None or id(tensor) in memo:
                continue
            fresh = convert(tensor)
            if isinstance(tensor, nn.Parameter) and not isinstance(fresh, nn.Parameter):
                fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = fresh
    try:
        twin: nn.Module = _clone(model, memo)
        return twin
    except Exception as error:
        raise ModelError(
            f"The model cannot be copied ({type(error).__name__}: {error}); give its class a __deepcopy__ "
            "or remove the attribute that cannot be copied."
        ) from error


_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device, OrderedDict})


def _clone(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`, with a short way for ordinary modules and containers (it is most of the time of a cut)."""
    kind = type(value)
    if kind in _PLAIN and kind is not OrderedDict:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is list or kind is dict or kind is OrderedDict:
        fresh: Any = kind()
        memo[id(value)] = fresh
        if kind is list:
            fresh.extend(_clone(item, memo) for item in value)
        else:
            fresh.update((key, _clone(item, memo)) for key, item in value.items())
        return fresh
    if isinstance(value, nn.Module) and _is_ordinary(kind):
        fresh = kind.__new__(kind)
        memo[id(value)] = fresh
        fresh.__dict__.update((key, _clone(item, memo)) for key, item in value.__dict__.items())
        return fresh
    return copy.deepcopy(value, memo)


@lru_cache(maxsize=4096)
def _is_ordinary(kind: type[nn.Module]) -> bool:
    """Whether a module class is copied by copying its attributes."""
    hooks = ("__getstate__", "__reduce__", "__reduce_ex__", "__setstate__", "__new__")
    plain: list[type] = [object, nn.Module, nn.RNNBase, nn.MultiheadAttention, nn.Transformer]
    owners = {next(c for c in kind.__mro__ if name in c.__dict__) for name in hooks if hasattr(kind, name)}
    standard = all(c in plain or c.__module__.startswith("torch.nn.modules.") for c in owners)
    return standard and not hasattr(kind, "__deepcopy__") and not hasattr(kind, "__slots__")


def _loose_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors a module holds as plain attributes, in a list or a dict at most."""
    items = value if isinstance(value, list | tuple) else value.values() if type(value) is dict else [value]
    for item in items:
        if isinstance(item, torch.Tensor):
            yield item


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with `function` applied to every tensor in its tuples, lists, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, function) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(v, function) for v in value)
    if isinstance(value, Mapping):
        return {k: map_tensors(v, function) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value)}
    return value


def output_tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a model output: tuples, lists, dicts, dataclasses and plain objects, in a fixed order."""
    found: list[torch.Tensor] = []
    map_tensors(value, found.append)
    if not found and hasattr(value, "__dict__"):
        for item in vars(value).values():
            map_tensors(item, found.append)
    return found


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tensor, a tuple or list of arguments, or a dict of keywords."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


# --------------------------------------------------------------------------------------------------- the recorder


@lru_cache(maxsize=4096)
def _schema(func: Any) -> tuple[str, tuple[tuple[str, Any], ...], tuple[int | None, ...], bool]:
    """Name without in-place underscore, (argument, default) pairs, which argument each output aliases, pointwise tag."""
    schema = func._schema
    names = tuple((a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments)
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
    return SAME_AS.get(schema.name, schema.name), names, tuple(aliases), torch.Tag.pointwise in func.tags


def find_rule(name: str, is_pointwise: bool) -> Callable[[Op], Any] | None:
    """The rule of an operator; in-place, copy and functional variants share it."""
    for candidate in (name, name.removesuffix("_"), name.removesuffix("_copy"), name.removesuffix("_functional")):
        if candidate in RULES:
            return RULES[candidate]
    return pointwise if is_pointwise else None


DATA_DEPENDENT = frozenset(
    "aten::nonzero aten::_local_scalar_dense aten::masked_select aten::_unique2 aten::unique_dim aten::is_nonzero "
    "aten::unique_consecutive torchvision::nms".split()
)


def depends_on_data(name: str, bound: Mapping[str, Any]) -> bool:
    """Whether an operator's result has a size (or is a number) that depends on values."""
    if name == "aten::index":
        return any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in(bound["indices"]))
    return name in DATA_DEPENDENT


class RuleError(ModelError):
    """A rule fails or returned a label that does not fit its tensor: a defect of the rule, never of the model."""


class Recorder(TorchDispatchMode):
    """The dispatch mode that labels tensors as they flow."""

    def __init__(self, recording: Recording, meta: bool) -> None:
        super().__init__()
        self.recording, self.meta = recording, meta
        self.stack: list[str] = [""]
        self.moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.meta:
            args, kwargs = self._on_one_device(args, kwargs)
        return self.record(func, args, kwargs, self.execute)

    def execute(self, func: Any, args: Any, kwargs: Any, op: Op | None) -> Any:
        """Run the operator; verification overrides this."""
        return run_on_meta(func._schema.name, func, args, kwargs) if self.meta else func(*args, **kwargs)

    def record(self, func: Any, args: Any, kwargs: Any, execute: Callable[..., Any]) -> Any:
        """Execute one call, apply its rule, label its outputs, note its buffers."""
        name, names, aliases, is_pointwise = _schema(func)
        out = execute(func, args, kwargs, None)
        bound = {n: (args[k] if k < len(args) else kwargs.get(n, d)) for k, (n, d) in enumerate(names)}
        calls = self.recording.calls
        op = Op(len(calls), name, self.stack[-1], bound, out, self.recording.ledger)
        self._note_uses(op)
        labels = self._labels(op, is_pointwise)
        outs = op.outputs()
        constant = all(is_constant(t) for t in op.tensors())
        for k, tensor in enumerate(outs):
            label = labels[k] if k < len(labels) else (None,) * tensor.dim()
            self._attach(tensor, label, constant, aliases[k] if k < len(aliases) else None, args, op.index)
        if name not in TRANSPARENT:
            calls.append(self._call(op, outs, labels))
            if not self.meta and depends_on_data(name, bound):
                calls[-1].value = out
        return out

    @staticmethod
    def _call(op: Op, outs: list[torch.Tensor], labels: list[Label]) -> Call:
        shapes = tuple(tuple(t.shape) for t in outs)
        return Call(op.name, op.module, shapes, tuple(labels), tuple(op.expects), op.mixes, op.weight)

    def _labels(self, op: Op, is_pointwise: bool) -> list[Label]:
        found = find_rule(op.name, is_pointwise)
        if found is None:
            return self._freeze(op)
        try:
            result = found(op)
        except Exception as error:
            raise RuleError(
                f"The rule of {op.name} fails in {op.module or 'the model'} ({type(error).__name__}: {error}); please report "
                "it, or register another with secateur.graph.rule."
            ) from error
        labels = result if isinstance(result, list) else [result]
        for label, out in zip(labels, op.outputs(), strict=False):
            sizes = [None if axis is None else len(axis) for axis in label]
            if len(label) != out.dim() or any(n not in (None, m) for n, m in zip(sizes, out.shape, strict=True)):
                raise RuleError(f"The rule of {op.name} labels {sizes} for a tensor of shape {tuple(out.shape)}.")
        return labels

    def _freeze(self, op: Op) -> list[Label]:
        for tensor in op.tensors():
            for axis in label_of(tensor):
                op.ledger.fix(axis, f"operator {op.name} has no rule (in {op.module or 'the model'})")
        self.recording.unsupported.append(Unsupported(op.name, op.module))
        return [(None,) * out.dim() for out in op.outputs()]

    def _attach(
        self, tensor: torch.Tensor, label: Label, constant: bool, alias: int | None, args: Any, index: int
    ) -> None:
        holder: Any = tensor
        source = args[alias] if alias is not None and alias < len(args) else None
        buffer = getattr(source, "_secateur_buffer", None) if isinstance(source, torch.Tensor) else None
        if alias is None and not constant and tensor.numel():
            buffer = len(self.recording.buffers)
            self.recording.buffers.append(Buffer(tuple(tensor.shape), label, index, index))
        holder._secateur_label, holder._secateur_constant, holder._secateur_buffer = label, constant, buffer

    def _note_uses(self, op: Op) -> None:
        for tensor in op.tensors():
            buffer = getattr(tensor, "_secateur_buffer", None)
            if buffer is not None:
                self.recording.buffers[buffer].death = op.index
            name = getattr(tensor, "_secateur_name", None)
            if name is not None:
                self.recording.first_use.setdefault(name, op.index)

    def _on_one_device(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Constants the model made on the CPU join the meta device when they meet it."""
        devices = {t.device.type for value in (*args, *kwargs.values()) for t in tensors_in(value)}
        if "meta" not in devices or len(devices) == 1:
            return args, kwargs
        move = self._move
        return tuple(_map_args(a, move) for a in args), {k: _map_args(v, move) for k, v in kwargs.items()}

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "meta":
            return tensor
        if id(tensor) not in self.moved:
            twin: Any = _to_meta(tensor)
            for attribute in ("_secateur_label", "_secateur_constant", "_secateur_buffer"):
                if hasattr(tensor, attribute):
                    setattr(twin, attribute, getattr(tensor, attribute))
            self.moved[id(tensor)] = (tensor, twin)
        return self.moved[id(tensor)][1]


def _map_args(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map_args(item, function) for item in value)
    return value


# ----------------------------------------------------------------------------------------------------- running it


@contextmanager
def module_stack(
    model: nn.Module, stack: list[str], on_exit: Callable[[str, Any], None] | None = None
) -> Iterator[None]:
    """Keep `stack` at the path of the module that is executing."""
    paths: dict[int, str] = {}
    for name, module in model.named_modules():
        paths.setdefault(id(module), name)

    def enter(module: nn.Module, _inputs: Any) -> None:
        stack.append(paths.get(id(module), stack[-1]))

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        name = stack.pop()
        if on_exit is not None and id(module) in paths:
            on_exit(name, output)

    with ExitStack() as handles:
        handles.callback(register_module_forward_pre_hook(enter).remove)
        handles.callback(register_module_forward_hook(leave, always_call=True).remove)
        yield


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Switch off fused fast paths that hide their parts (multi-head attention, oneDNN recurrent layers), and gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def forward(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], recorder: Recorder) -> Any:
    """Run `model` under `recorder`, noting taps."""

    def tap(name: str, output: Any) -> None:
        for position, tensor in enumerate(output_tensors(output)):
            for dim, axis in enumerate(label_of(tensor)):
                if axis is not None:
                    recorder.recording.taps.append(Tap(name, position, dim, axis))

    with plain_kernels(), module_stack(model, recorder.stack, tap), recorder:
        return model(*args, **kwargs)


def label_parameters(model: nn.Module, recording: Recording) -> None:
    """Fresh ids for every dimension of every parameter and buffer, except the kernel positions of convolutions."""
    kernels = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd)
        for name, tensor in module.named_parameters(recurse=True)
        if tensor.dim() >= 3
    }
    for name, tensor in named_tensors(model).items():
        channels = 2 if id(tensor) in kernels else tensor.dim()
        label: list[Axis] = [recording.ledger.fresh(n) if d < channels else None for d, n in enumerate(tensor.shape)]
        holder: Any = tensor
        holder._secateur_label, holder._secateur_constant, holder._secateur_name = tuple(label), True, name
        recording.places[name] = tuple(label)


def capture(model: nn.Module, example_inputs: Any) -> Recording:
    """Record one forward pass of `model` (unwrapped, any mode); meta first, real tensors where meta cannot run."""
    args, kwargs = as_call(example_inputs)
    try:
        return _capture(model, args, kwargs, meta=True)
    except RuleError:
        raise
    except Exception as first:
        try:
            return _capture(model, args, kwargs, meta=False)
        except Exception as error:
            raise _explain(model, args, kwargs, error) from first


def _capture(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, meta: bool) -> Recording:
    twin = clone_module(model, _to_meta if meta else lambda t: t.detach().clone() if t.numel() < 65536 else t.detach())
    twin.eval()
    recording = Recording(Ledger(), on_meta=meta)
    label_parameters(twin, recording)
    recorder = Recorder(recording, meta)
    inputs = map_tensors((args, kwargs), lambda t: _input(t, meta))
    output = forward(twin, *inputs, recorder)
    _fix_outputs(recording, output)
    if any(name not in recording.first_use for name, _ in twin.named_parameters()):
        _capture_training(twin, inputs, recording, meta)
    return recording


def _input(tensor: torch.Tensor, meta: bool) -> torch.Tensor:
    twin: Any = _to_meta(tensor) if meta else tensor.detach().clone()
    twin._secateur_constant = False
    return twin  # type: ignore[no-any-return]


def _fix_outputs(recording: Recording, output: Any) -> None:
    for tensor in output_tensors(output):
        for axis in label_of(tensor):
            recording.ledger.fix(axis, f"reaches {OUTPUT}")
        buffer = getattr(tensor, "_secateur_buffer", None)
        if buffer is not None and buffer < len(recording.buffers):
            recording.buffers[buffer].death = len(recording.calls)


def _capture_training(twin: nn.Module, inputs: Any, recording: Recording, meta: bool) -> None:
    """Heads that only run in training mode (auxiliary classifiers) still consume channels: run once more with them on.

    Leaf modules stay in evaluation mode, so that norms need no batch and dropout stays off. What this run computes does
    not count as cost.
    """
    extra = Recording(recording.ledger, places=recording.places, first_use=dict(recording.first_use), on_meta=meta)
    for module in twin.modules():
        module.training = any(True for _ in module.children())
    before = len(recording.ledger.macs)
    try:
        output = forward(twin, *map_tensors(inputs, lambda t: _input(t, meta)), Recorder(extra, meta))
    except Exception:
        return  # a forward that needs targets in training mode; parameters never run are reported as such
    finally:
        del recording.ledger.macs[before:]
    _fix_outputs(recording, output)
    offset = len(recording.calls)
    for name, first in extra.first_use.items():
        recording.first_use.setdefault(name, first + offset)
    recording.unsupported += extra.unsupported
    recording.trained = True


def _explain(model: nn.Module, args: Any, kwargs: Any, error: Exception) -> Exception:
    shapes = [tuple(t.shape) for t in output_tensors([list(args), dict(kwargs)])]
    said = " ".join(str(error).split())[:300]
    if not shapes:
        return InputError(
            f"The example inputs hold no tensor, and the model's forward failed: {said}. Give example inputs."
        )
    return ModelError(
        f"The forward pass of {type(model).__name__} failed on the example inputs of shape "
        f"{', '.join(map(str, shapes))}: {type(error).__name__}: {said}. Check their shape, number and dtype."
    )
