"""Capture: run a model once and write down every ATen call, on the meta device where that works.

What comes out is a `Recording`: the operator calls in order, the ledger the rules filled, and which parameters ran.
The model itself is never touched; the run happens on a copy that shares (or does without) its storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.errors import InputError, ModelError
from secateur.graph.calls import TRANSPARENT, Mode, depends_on_data, on_one_device, schema_of
from secateur.graph.forms import Form
from secateur.graph.labels import Axis, Ids, Label, Ledger
from secateur.graph.modules import (
    as_call,
    clone_module,
    map_tensors,
    module_stack,
    named_tensors,
    output_tensors,
    plain_kernels,
    to_meta,
)
from secateur.graph.rules import RULES, Expect, Op, is_constant, label_of
from secateur.graph.rules.pointwise import pointwise
from secateur.graph.shapes import run_on_meta

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
    strides: tuple[tuple[int, ...], ...]  # of the outputs: PyTorch picks operators by them
    form: Form | None = None  # of a convolution or linear layer
    value: Any = None  # of an operator whose result has a size that depends on data, on a run with real tensors
    repeats: int = 1  # how many groups of a convolution share the columns of its weight


@dataclass
class Buffer:
    """One allocation of the forward pass: its axes, when it is born and last used."""

    sizes: tuple[int, ...]
    label: Label
    birth: int
    death: int


@dataclass(frozen=True, eq=False)
class Tap:
    """One labelled dimension of a module's output: tensor number `position`, dimension `dim`, slot ids `axis`."""

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
    training_error: str = ""  # why the run with training branches on came to nothing


class RuleError(ModelError):
    """A rule fails or returned a label that does not fit its tensor: a defect of the rule, never of the model."""


def find_rule(name: str, is_pointwise: bool) -> Callable[[Op], Any] | None:
    """The rule of an operator; in-place, copy and functional variants share it."""
    for candidate in (name, name.removesuffix("_"), name.removesuffix("_copy"), name.removesuffix("_functional")):
        if candidate in RULES:
            return RULES[candidate]
    return pointwise if is_pointwise else None


class Recorder(Mode):
    """The dispatch mode that labels tensors as they flow."""

    def __init__(self, recording: Recording, meta: bool) -> None:
        super().__init__()
        self.recording, self.meta = recording, meta
        self.stack: list[str] = [""]
        self.moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.meta:
            args, kwargs = on_one_device(args, kwargs, self._move)
        return self.record(func, args, kwargs)

    def execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operator; verification overrides this."""
        return run_on_meta(func._schema.name, func, args, kwargs) if self.meta else func(*args, **kwargs)

    def record(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute one call, apply its rule, label its outputs, note its buffers."""
        name, names, aliases, is_pointwise = schema_of(func)
        out = self.execute(func, args, kwargs)
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
        strides = tuple(t.stride() for t in outs)
        seen = (shapes, tuple(labels), tuple(op.expects), op.mixes, op.weight, strides)
        repeats = int(op.args.get("groups") or 1) if op.weight is not None else 1
        return Call(op.name, op.module, *seen, op.form, repeats=repeats)

    def _labels(self, op: Op, is_pointwise: bool) -> list[Label]:
        found = find_rule(op.name, is_pointwise)
        if found is None:
            return self._freeze(op)
        try:
            result = found(op)
        except Exception as error:
            raise RuleError(
                f"The rule of {op.name} fails in {op.module or 'the model'} ({type(error).__name__}: {error}); "
                "please report it, or register another with secateur.graph.rule."
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

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stand-in of a constant, with its label."""
        if id(tensor) not in self.moved:
            twin: Any = to_meta(tensor)
            for attribute in ("_secateur_label", "_secateur_constant", "_secateur_buffer"):
                if hasattr(tensor, attribute):
                    setattr(twin, attribute, getattr(tensor, attribute))
            self.moved[id(tensor)] = (tensor, twin)
        return self.moved[id(tensor)][1]


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
        label: list[Axis] = [
            recording.ledger.parameter(n) if d < channels else None for d, n in enumerate(tensor.shape)
        ]
        holder: Any = tensor
        holder._secateur_label, holder._secateur_constant, holder._secateur_name = tuple(label), True, name
        recording.places[name] = tuple(label)


def capture(model: nn.Module, example_inputs: Any) -> Recording:
    """Record one forward pass of `model` (unwrapped, any mode); meta first, real tensors where meta cannot run."""
    args, kwargs = as_call(example_inputs)
    try:
        return capture_once(model, args, kwargs, meta=True)
    except RuleError:
        raise
    except Exception as first:
        try:
            return capture_once(model, args, kwargs, meta=False)
        except Exception as error:
            raise _explain(model, args, kwargs, error) from first


def capture_once(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, meta: bool) -> Recording:
    twin = clone_module(model, to_meta if meta else _alias)
    twin.eval()
    recording = Recording(Ledger(), on_meta=meta)
    label_parameters(twin, recording)
    recorder = Recorder(recording, meta)
    inputs: tuple[Any, Any] = map_tensors((args, kwargs), lambda t: _input(t, meta))
    output = forward(twin, inputs[0], inputs[1], recorder)
    _fix_outputs(recording, output)
    if any(name not in recording.first_use for name, _ in twin.named_parameters()):
        _capture_training(twin, inputs, recording, meta)
    return recording


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter's own storage, never written to; a copy of a buffer, for a forward may write to it."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def _input(tensor: torch.Tensor, meta: bool) -> torch.Tensor:
    twin: Any = to_meta(tensor) if meta else tensor.detach().clone()
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
        again = map_tensors(inputs, lambda t: _input(t, meta))
        output = forward(twin, again[0], again[1], Recorder(extra, meta))
    except Exception as error:  # a forward that needs targets in training mode, say
        recording.training_error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return
    finally:
        del recording.ledger.macs[before:]
    _fix_outputs(recording, output)
    offset = len(recording.calls)
    for name, first in extra.first_use.items():
        recording.first_use.setdefault(name, first + offset)
    recording.unsupported += extra.unsupported


def _explain(model: nn.Module, args: Any, kwargs: Any, error: Exception) -> Exception:
    """Who is to blame for a forward that failed: the inputs, the model, or the trace (if it runs without one)."""
    shapes = [tuple(t.shape) for t in output_tensors([list(args), dict(kwargs)])]
    said = " ".join(str(error).split())[:300]
    if not shapes:
        return InputError(
            f"The example inputs hold no tensor, and the model's forward failed: {said}. Give example inputs."
        )
    if _runs_alone(model, args, kwargs):
        return ModelError(
            f"{type(model).__name__} runs, but not under Secateur's trace ({type(error).__name__}: {said}); "
            "please report this."
        )
    return ModelError(
        f"The forward pass of {type(model).__name__} failed on the example inputs of shape "
        f"{', '.join(map(str, shapes))}: {type(error).__name__}: {said}. Check their shape, number and dtype."
    )


def _runs_alone(model: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a copy of the model runs without a trace; whatever its forward raises is the answer no."""
    twin = clone_module(model, _alias).eval()
    inputs = map_tensors((args, kwargs), lambda t: t.detach().clone())
    try:
        with torch.no_grad():
            twin(*inputs[0], **inputs[1])
    except Exception:
        return False
    return True
